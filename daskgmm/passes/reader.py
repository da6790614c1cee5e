"""How a pass reads: which rows of which samples, from where, as which columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.data.blocks import Block, Region, Samples, Source, whole
from daskgmm.families.encoding import PLAIN, FeatureEncoding, spans, strip_rows
from daskgmm.families.frame import Array, Rows
from daskgmm.process import single_blas

Kernel = Callable[..., Any]  # (block, pieces, …) -> a small result
Labelled = tuple[npt.NDArray[np.generic], Any]  # x (n, d) and weights (n,) or None, or a pair: these, and labels (n,)


@dataclass(frozen=True)
class Reader:
    """The rows of some samples, as a pass reads them."""

    samples: Samples
    encoding: FeatureEncoding = PLAIN  # of what kernels get
    unlabelled: bool = False  # leave out the rows whose component is known
    kept: tuple[tuple[Any, Any], ...] = ()  # of each block, in place of the source: a key, and its pieces' future
    recorded: Callable[[Callable[[], Any]], Any] | None = None  # returns what a pass does, or did in an earlier run


@dataclass(frozen=True)
class BlockReader:
    """The part of a `Reader` that travels to the tasks."""

    source: Source | None  # None: the arrays of dask's chunks come with each task
    beside: tuple[str, ...]
    encoding: FeatureEncoding
    unlabelled: bool

    @staticmethod
    def of(reader: Reader) -> BlockReader:
        source = reader.samples.source
        return BlockReader(None if reader.samples.graph else source, source.beside, reader.encoding, reader.unlabelled)

    def run(
        self,
        kernel: Kernel,
        block: Block,
        chunks: Sequence[Sequence[Any]] | None,
        kept: Sequence[Labelled] | None,
        own: Sequence[Any] = (),
    ) -> Any:
        """Apply a kernel to a block, whose pieces are read as the kernel asks for them."""
        pieces = self._pieces(block, chunks) if kept is None else iter(kept)
        with single_blas():
            return kernel(block, encode_pieces(others(pieces) if self.unlabelled else pieces, self.encoding), *own)

    def _pieces(self, block: Block, chunks: Any) -> Iterator[Labelled]:
        if self.source is None:
            for region, arrays in zip(block.regions, chunks, strict=True):
                yield Source.of(arrays, self.beside).read(whole(len(region)))
        elif self.source.home is None:
            yield from map(self.source.read, block.regions)
        else:
            self.source.home.check()
            yield from _read_ahead(self.source, block.regions)


def _read_ahead(source: Source, regions: Sequence[Region]) -> Iterator[Labelled]:
    """Read and decode the next region while the kernel works on this one."""
    with ThreadPoolExecutor(1, "daskgmm-read") as reader:
        coming = reader.submit(source.read, regions[0])
        for region in regions[1:]:
            here = coming.result()
            coming = reader.submit(source.read, region)
            yield here
        yield coming.result()


def encode_pieces(pieces: Iterable[Rows], encoding: FeatureEncoding) -> Iterable[Rows]:
    """Encode rows as the columns of which φ is made, some rows at a time, as these may be many columns."""
    return pieces if encoding.plain else _encode_pieces(pieces, encoding)


def _encode_pieces(pieces: Iterable[Rows], encoding: FeatureEncoding) -> Iterator[Rows]:
    for x, weights in pieces:
        for at in spans(len(x), strip_rows(encoding.width(x.shape[1]))):
            yield encoding.encode(x[at]), None if weights is None else weights[at]


def split(beside: Any) -> tuple[Array | None, npt.NDArray[Any] | None]:
    """Split what is beside the features into weights and labels, None where there are none."""
    return beside if isinstance(beside, tuple) else (beside, None)


def others(pieces: Iterable[Labelled]) -> Iterator[Rows]:
    """Leave out the rows with a label, which are those whose component is known."""
    for x, (weights, labels) in pieces:
        free = labels < 0
        if free.all():
            yield x, weights
        elif free.any():
            yield x[free], None if weights is None else weights[free]


def not_finite_error(where: str, value: float, remedy: str) -> ValueError:
    """Build the error that a value is not finite."""
    kind = "NaN" if np.isnan(value) else "infinity"
    return ValueError(f"Input X contains {kind}: {where} is {value}; {remedy}, or fill them in first")


def outside_error(where: str, value: float, encoding: FeatureEncoding) -> ValueError:
    """Build the error that a value is not one that the family takes."""
    return ValueError(f"Input X is {value:g} at {where}, but the mixture needs {encoding.needs}: encode values as such")
