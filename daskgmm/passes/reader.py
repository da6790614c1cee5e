"""How a pass reads samples: which rows, from where, as which columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.data.blocks import Block, Region, Source, whole
from daskgmm.em.estep import _STRIP_VALUES, Rows, _spans
from daskgmm.em.layout import LARGEST_TILE
from daskgmm.families.encoding import Coding
from daskgmm.families.frame import Array
from daskgmm.process import single_blas

Kernel = Callable[..., Any]  # (block, pieces, …) -> a small result


def _run(
    kernel: Kernel,
    source: Source | None,
    block: Block,
    chunks: Any,
    beside: tuple[str, ...],
    unlabelled: bool,
    kept: Sequence[Rows] | None,
    own: Sequence[Any] = (),
) -> Any:
    pieces = _pieces(source, block, chunks, beside) if kept is None else iter(kept)
    with single_blas():
        return kernel(block, others(pieces) if unlabelled else pieces, *own)


def _pieces(source: Source | None, block: Block, chunks: Any, beside: tuple[str, ...]) -> Iterator[Rows]:
    if source is None:
        for region, arrays in zip(block.regions, chunks, strict=True):
            yield Source.of(arrays, beside).read(whole(len(region)))
    elif source.home is None:
        yield from map(source.read, block.regions)
    else:
        source.home.check()
        yield from _read_ahead(source, block.regions)


def _read_ahead(source: Source, regions: Sequence[Region]) -> Iterator[Rows]:
    """What is in each region; the next one is read and decoded while this one is worked on."""
    with ThreadPoolExecutor(1, "daskgmm-read") as reader:
        coming = reader.submit(source.read, regions[0])
        for region in regions[1:]:
            here = coming.result()
            coming = reader.submit(source.read, region)
            yield here
        yield coming.result()


def coded(pieces: Iterable[Rows], coding: Coding) -> Iterable[Rows]:
    """The rows as the columns of which φ is made, where these are others: some at a time, as they may be many more."""
    return pieces if coding.plain else _coded(pieces, coding)


def _coded(pieces: Iterable[Rows], coding: Coding) -> Iterator[Rows]:
    for x, weights in pieces:
        for at in _spans(len(x), max(LARGEST_TILE, _STRIP_VALUES // coding.width(x.shape[1]))):
            yield coding.encoded(x[at]), None if weights is None else weights[at]


Labelled = tuple[npt.NDArray[np.generic], Any]  # x (n, d) and weights (n,) or None, or a pair: these, and labels (n,)


def split(beside: Any) -> tuple[Array | None, npt.NDArray[Any] | None]:
    """Weights and labels, if there are any."""
    return beside if isinstance(beside, tuple) else (beside, None)


def others(pieces: Iterable[Labelled]) -> Iterator[Rows]:
    """The rows without a label: all of those that are not known."""
    for x, (weights, labels) in pieces:
        free = labels < 0
        if free.all():
            yield x, weights
        elif free.any():
            yield x[free], None if weights is None else weights[free]


def refusal(where: str, value: float, remedy: str) -> ValueError:
    """The error that a value is not finite."""
    kind = "NaN" if np.isnan(value) else "infinity"
    return ValueError(f"Input X contains {kind}: {where} is {value}; {remedy}, or fill them in first")


def outsider(where: str, value: float, coding: Coding) -> ValueError:
    """The error that a value is not one that the family takes."""
    return ValueError(f"Input X is {value:g} at {where}, but the mixture needs {coding.needs}: encode values as such")
