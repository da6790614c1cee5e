"""Samples: whatever holds them, as a sequence of blocks of whole storage units.

A *region* is a box of the sample dimensions that is read in one go; a *block* is the box of regions that
one task walks through. Both follow from how the data are stored and from nothing else, so that the sums
over them have the same bits on any number of workers.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.data.checks import NO_ANNOTATIONS, RowAnnotations, check_extent

Region = tuple[slice, ...]

BLOCK_VALUES = 2**21  # 16 MiB as float64: 50 to 500 ms of work, beside some 3 ms that a task costs
_MEMORY_BLOCKS = 16  # in this process, where a task costs 0.4 ms; a sample too should be shared among the cores
_MAX_BLOCKS = 4096  # of a large store: one scheduler hands out some 400 tasks a second
_REGION_VALUES = 2**19  # 4 MiB as float64
# Of a task that returns little: with four reads, of which three are decoded while others are worked on, as much of a
# store as leaves so many tasks for the workers.
_JOINED_VALUES, _LEAST_JOINED = 2**23, 32


@dataclass(frozen=True)
class Source:
    """Arrays to read from: one with the features last, or one a feature; and perhaps weights and labels."""

    arrays: tuple[Any, ...]  # each read by `array[region]`
    weight: Any | None = None  # the shape of the sample dimensions
    labels: Any | None = None  # the same: the component of each row, where it is known
    home: Any | None = None  # of arrays in a store; its `check` raises where that cannot be seen

    @property
    def beside(self) -> tuple[str, ...]:
        """Which arrays there are beside those of the features."""
        return tuple(name for name in ("weight", "labels") if getattr(self, name) is not None)

    def __dask_tokenize__(self) -> str:
        """Its own each time: Dask would read all of a lazy variable for it, here in this process."""
        return uuid.uuid4().hex

    def stamp(self) -> str | None:
        """The same as long as nothing is written to the arrays; None where that is not known."""
        beside = [array for array in (self.weight, self.labels) if array is not None]
        if self.home is None or not all(hasattr(array, "origin") for array in beside):
            return None
        found: str | None = self.home.stamp()
        return found

    @staticmethod
    def of(arrays: Sequence[Any], beside: Sequence[str]) -> Source:
        """Of the features' arrays, and then those beside them."""
        n = len(arrays) - len(beside)
        return Source(tuple(arrays[:n]), **dict(zip(beside, arrays[n:], strict=True)))

    def read(self, region: Region) -> tuple[npt.NDArray[np.generic], Any]:
        """The rows of a region, x (n, d), and their weights (n,); where there are labels, with these as a pair."""
        parts = [np.asarray(array[region]) for array in self.arrays]
        if parts[0].ndim > len(region):
            x = parts[0].reshape(-1, parts[0].shape[-1])
        else:
            x = np.stack([part.reshape(-1) for part in parts], axis=1)
        weight, labels = (
            None if array is None else np.asarray(array[region]).reshape(-1) for array in (self.weight, self.labels)
        )
        return x, weight if labels is None else (weight, labels)


@dataclass(frozen=True)
class Block:
    """What one task walks through."""

    index: int
    start: int  # position of its first row in the order of blocks and regions
    regions: tuple[Region, ...]
    keys: tuple[tuple[Any, ...], ...] = ()  # of dask arrays: those of each region, its weights' and labels' last

    @property
    def n(self) -> int:
        return sum(region_size(region) for region in self.regions)

    @property
    def region(self) -> Region:
        """The box that all of its regions fill."""
        return tuple(
            slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*self.regions, strict=True)
        )


@dataclass(frozen=True)
class Samples:
    """A data set as the passes see it."""

    shape: tuple[int, ...]  # of the sample dimensions
    n_features: int
    dtype: np.dtype[Any]
    blocks: tuple[Block, ...]
    source: Source
    in_memory: bool = False  # in this process, so that its threads do the work
    names: tuple[str, ...] | None = None  # of the features
    units: tuple[str, ...] = ()  # of the features, "" of one that does not say; or ()
    feature_dim: str | None = None  # the dimension that holds the features, where it has a name
    categories: tuple[tuple[float, ...], ...] = ()  # of the features, those that say which values they take; or ()
    dims: tuple[str, ...] | None = None  # of the samples, where they have names
    coords: Mapping[Any, Any] | None = None  # of the samples, where they come from xarray
    grid_mapping: tuple[str, str] | None = None  # in "attrs" or "encoding" of xarray's; and what it is
    region_bytes: int = 0  # at most, of one read; decoded
    graph: Mapping[Any, Any] = field(default_factory=dict)  # of dask arrays, in place of the source

    @property
    def n(self) -> int:
        return math.prod(self.shape)

    def locate(self, position: int, feature: int | None = None) -> str:
        """Where the row at a position in the order of the blocks stands, in words."""
        block = max((b for b in self.blocks if b.start <= position), key=lambda b: b.index)
        return self.place(block, position - block.start, feature)

    @cached_property
    def place(self) -> RowLocator:
        return RowLocator(self.names, self.dims, axes(self.coords, self.dims))


@dataclass(frozen=True)
class RowLocator:
    """Puts where a value stands into words."""

    names: tuple[str, ...] | None
    dims: tuple[str, ...] | None
    axes: tuple[Axis | None, ...] = ()  # coordinates of these, where there are some

    def __call__(self, block: Block, row: int, feature: int | None) -> str:
        """``row`` counts within the block."""
        for region in block.regions:
            if row < region_size(region):
                break
            row -= region_size(region)
        extent = [s.stop - s.start for s in region]
        index = [s.start + int(i) for s, i in zip(region, np.unravel_index(row, extent), strict=True)]
        if self.dims is not None:
            axes = self.axes or (None,) * len(index)
            at = [str(i) if axis is None else shown(axis[i]) for axis, i in zip(axes, index, strict=True)]
            where = ", ".join(f"{dim}={value}" for dim, value in zip(self.dims, at, strict=True))
            if any(axis is not None for axis in axes):
                where += f" (position {', '.join(map(str, index))})"
        else:
            where = f"row {index[0] if len(index) == 1 else tuple(index)}"
        if feature is None:
            return where
        if self.names is not None:
            return f"variable {self.names[feature]!r} at {where}"
        return f"{where}, feature {feature}"


def region_size(region: Region) -> int:
    return math.prod(s.stop - s.start for s in region)


def whole(ndim: int) -> Region:
    return (slice(None),) * ndim


def regular_blocks(
    shape: Sequence[int],
    n_features: int,
    chunks: Sequence[int],
    shards: Sequence[int] | None = None,
    values: int | None = None,
) -> tuple[Block, ...]:
    """Blocks of whole shards over the sample dimensions of a regular grid, in regions of whole shards or chunks.

    Parameters
    ----------
    shape : sequence of int
        Of the sample dimensions.
    n_features : int
    chunks, shards : sequence of int
        What storage decodes, and what it writes, at a time; in the sample dimensions.
    values : int, optional
        Of a block; by default what is much work beside that of sending a task to a worker.
    """
    shards = shards or chunks
    target = max(values or BLOCK_VALUES, math.prod(shape) * n_features // _MAX_BLOCKS)
    outer = _coarsened(shape, shards, target // n_features)
    # Whole shards take a quarter less time to read than the same chunks one by one (measured).
    unit = shards if math.prod(shards) * n_features <= BLOCK_VALUES else chunks
    inner = _coarsened(outer, unit, _REGION_VALUES // n_features)
    blocks: list[Block] = []
    start = 0
    for corner in _corners(shape, outer):
        extent = [min(o, s - c) for o, s, c in zip(outer, shape, corner, strict=True)]
        regions = tuple(
            tuple(slice(c + i, c + min(i + step, e)) for c, i, step, e in zip(corner, at, inner, extent, strict=True))
            for at in _corners(extent, inner)
        )
        block = Block(len(blocks), start, regions)
        if block.n:
            blocks.append(block)
            start += block.n
    return tuple(blocks)


def _coarsened(shape: Sequence[int], unit: Sequence[int], rows: int) -> tuple[int, ...]:
    """Extents of up to ``rows`` rows: the unit, repeated along the first axis, and once that is full along the next."""
    extent = [max(1, min(u, s)) for u, s in zip(unit, shape, strict=True)]
    for axis, size in enumerate(shape):
        extent[axis] = max(1, min(extent[axis] * max(1, rows // math.prod(extent)), size))
        if extent[axis] < size:
            break
    return tuple(extent)


def _corners(shape: Sequence[int], step: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return product(*(range(0, s, t) for s, t in zip(shape, step, strict=True)))


def joined(samples: Samples) -> Samples:
    """The same rows of a store in fewer, longer blocks, where there are many: for work that returns little."""
    if samples.in_memory or samples.graph:
        return samples
    values = samples.blocks[0].n * samples.n_features
    many = max(1, min(_JOINED_VALUES // values, len(samples.blocks) // _LEAST_JOINED))
    blocks = [samples.blocks[i : i + many] for i in range(0, len(samples.blocks), many)]
    return replace(
        samples,
        blocks=tuple(
            Block(i, some[0].start, tuple(region for block in some for region in block.regions))
            for i, some in enumerate(blocks)
        ),
    )


def of_numpy(
    arrays: Sequence[npt.NDArray[np.generic]],
    shape: tuple[int, ...],
    n_features: int,
    beside: RowAnnotations = NO_ANNOTATIONS,
) -> Samples:
    """Samples in this process's memory."""
    check_extent(shape, n_features)
    values = max(_REGION_VALUES // 8, math.prod(shape) * n_features // _MEMORY_BLOCKS)
    return Samples(
        shape,
        n_features,
        np.result_type(*arrays),
        regular_blocks(shape, n_features, (1, *shape[1:]), values=min(BLOCK_VALUES, values)),
        Source(tuple(arrays), *(None if array is None else np.asarray(array) for array in beside.checked(shape))),
        in_memory=True,
    )


Axis = npt.NDArray[np.generic]

_LONGEST = 2**14  # values: they go to workers with each task


def axes(coords: Mapping[Any, Any] | None, dims: Sequence[str] | None) -> tuple[Axis | None, ...]:
    """The coordinates of dimensions, None where one has none, has very many, or would first have to be read."""
    return tuple(_axis((coords or {}).get(dim)) for dim in dims or ())


def _axis(variable: Any) -> Axis | None:
    if variable is None or variable.ndim != 1 or variable.size > _LONGEST or not variable._in_memory:
        return None
    # A worker may not know the class of a time in a model's calendar.
    texts = variable.dtype.kind == "O"
    return np.array([str(value) for value in variable.values]) if texts else np.asarray(variable.values)


def shown(value: Any) -> str:
    """2001-02-01, -59.25 and such."""
    if isinstance(value, np.datetime64):
        return str(np.datetime_as_string(value, unit="auto"))
    return f"{value:.8g}" if isinstance(value, np.floating) else str(value)
