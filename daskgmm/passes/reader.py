"""Read the rows of a pass, from their store or from memory, and encode them as the family's columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.data.blocks import Block, Region, Samples, Source
from daskgmm.families.encoding import PLAIN, FeatureEncoding, spans, strip_rows
from daskgmm.families.frame import Array, Rows
from daskgmm.process import single_blas

Kernel = Callable[..., Any]  # (block, pieces, …) -> a small result
# Rows x (n, d), and their weights (n,) or None; where labels are given, the pair (weights, labels) in place of weights.
RowPiece = tuple[npt.NDArray[np.generic], Any]


@dataclass(frozen=True)
class Reader:
    """The rows of some samples, as a pass reads them."""

    samples: Samples
    encoding: FeatureEncoding = PLAIN  # of the rows that kernels receive
    unlabelled: bool = False  # leave out the rows whose component is known
    kept: tuple[tuple[Any, Any], ...] = ()  # for each block, in place of the source: a key, and its pieces' future
    recorded: Callable[[Callable[[], Any]], Any] | None = None  # returns a pass's result, perhaps of an earlier run


@dataclass(frozen=True)
class BlockReader:
    """The part of a `Reader` that travels to the tasks."""

    source: Source | None  # None: the arrays of dask's chunks come with each task
    annotation_names: tuple[str, ...]
    encoding: FeatureEncoding
    unlabelled: bool

    @staticmethod
    def of(reader: Reader) -> BlockReader:
        samples, names = reader.samples, reader.samples.source.annotation_names
        return BlockReader(None if samples.graph else samples.source, names, reader.encoding, reader.unlabelled)

    def run(
        self, kernel: Kernel, block: Block, chunks: Any, kept: Sequence[RowPiece] | None, args: Sequence[Any] = ()
    ) -> Any:
        """Apply a kernel to a block, whose pieces are read as the kernel asks for them.

        Pieces come from ``kept``, from dask's ``chunks`` (the arrays of each region), or else from the source.
        """
        pieces = self._pieces(block, chunks) if kept is None else iter(kept)
        rows = encode_pieces(drop_labelled(pieces) if self.unlabelled else pieces, self.encoding)
        with single_blas():
            return kernel(block, rows, *args)

    def _pieces(self, block: Block, chunks: Any) -> Iterator[RowPiece]:
        if self.source is None:
            for region, arrays in zip(block.regions, chunks, strict=True):
                yield Source.of(arrays, self.annotation_names).read((slice(None),) * len(region))
        elif self.source.store_root is None:
            yield from map(self.source.read, block.regions)
        else:
            self.source.store_root.check()
            yield from _read_ahead(self.source, block.regions)


def _read_ahead(source: Source, regions: Sequence[Region]) -> Iterator[RowPiece]:
    """Read and decode the next region while the kernel works on the current one."""
    with ThreadPoolExecutor(1, "daskgmm-read") as reader:
        coming = reader.submit(source.read, regions[0])
        for region in regions[1:]:
            rows = coming.result()
            coming = reader.submit(source.read, region)
            yield rows
        yield coming.result()


def encode_pieces(pieces: Iterable[Rows], encoding: FeatureEncoding) -> Iterator[Rows]:
    """Encode rows as the columns of which φ is made, in strips, as the columns may be many."""
    if encoding.plain:
        yield from pieces
        return
    for x, weights in pieces:
        for at in spans(len(x), strip_rows(encoding.width(x.shape[1]))):
            yield encoding.encode(x[at]), None if weights is None else weights[at]


def split_annotations(annotations: Any) -> tuple[Array | None, npt.NDArray[Any] | None]:
    """Return the weights and the labels of rows, None where there are none."""
    return annotations if isinstance(annotations, tuple) else (annotations, None)


def drop_labelled(pieces: Iterable[RowPiece]) -> Iterator[Rows]:
    """Leave out the rows with a label, whose component is known."""
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
    """Build the error that a value is outside the family's domain."""
    return ValueError(f"Input X is {value:g} at {where}, but the mixture needs {encoding.needs}: encode values as such")
