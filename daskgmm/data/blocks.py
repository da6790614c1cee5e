"""Samples of any container, as a sequence of blocks of whole storage units.

A *region* is a box of the sample dimensions that is read at once; a *block* is the box of regions that one task
processes. Both follow from the storage layout alone, so sums over them have the same bits on any number of workers.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, product
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.data.checks import NO_ANNOTATIONS, RowAnnotations, check_extent

Region = tuple[slice, ...]
Array = npt.NDArray[np.generic]

BLOCK_VALUES = 2**21  # 16 MiB as float64: 50 to 500 ms of work, where a task costs some 3 ms
_MEMORY_BLOCKS = 16  # of data in this process, where a task costs 0.4 ms: the cores share a fit on a sample, too
_MAX_BLOCKS = 4096  # of a large store: one scheduler hands out some 400 tasks a second
_REGION_VALUES = 2**19  # 4 MiB as float64
# A task that returns little reads up to four blocks, of which three are decoded while the one before is worked on; but
# the blocks of a store are joined only as far as so many tasks are left for the workers.
_JOINED_VALUES, _LEAST_JOINED = 2**23, 32
_MAX_COORDINATES = 2**14  # of a dimension: they travel to workers with each task


@dataclass(frozen=True)
class Samples:
    """A data set as the passes see it: its shape, its blocks, the arrays to read from, and the names of all these."""

    shape: tuple[int, ...]  # of the sample dimensions
    n_features: int
    dtype: np.dtype[Any]
    blocks: tuple[Block, ...]
    source: Source
    in_memory: bool = False  # whether the arrays are in this process, so that its threads do the work
    names: tuple[str, ...] | None = None  # of the features
    units: tuple[str, ...] = ()  # of the features, "" for one without; or ()
    feature_dim: str | None = None  # the dimension that holds the features, where it has a name
    categories: tuple[tuple[float, ...], ...] = ()  # of each feature, the values that its flag_values list; or ()
    dims: tuple[str, ...] | None = None  # of the samples, where they have names
    coords: Mapping[Any, Any] | None = None  # of the samples, where they come from xarray
    grid_mapping: tuple[str, str] | None = None  # "attrs" or "encoding", where xarray has it; and its value
    region_bytes: int = 0  # of the largest region, decoded
    graph: Mapping[Any, Any] = field(default_factory=dict)  # of dask arrays, in place of the source

    @property
    def n(self) -> int:
        return math.prod(self.shape)

    def locate(self, position: int, feature: int | None = None) -> str:
        """Describe in words where the row at a position in the order of the blocks stands."""
        block = max((b for b in self.blocks if b.start <= position), key=lambda b: b.index)
        return self.locator(block, position - block.start, feature)

    @cached_property
    def locator(self) -> RowLocator:
        coords = self.coords or {}
        return RowLocator(self.names, self.dims, tuple(_coordinate(coords.get(dim)) for dim in self.dims or ()))


@dataclass(frozen=True)
class Block:
    """The rows of one task."""

    index: int
    start: int  # position of its first row in the order of blocks and regions
    regions: tuple[Region, ...]
    keys: tuple[tuple[Any, ...], ...] = ()  # of dask's chunks for each region: the features', then the annotations'

    @property
    def n(self) -> int:
        return sum(map(region_size, self.regions))

    @property
    def region(self) -> Region:
        """The box that all of its regions fill."""
        return tuple(
            slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*self.regions, strict=True)
        )


@dataclass(frozen=True)
class Source:
    """The arrays to read from: one with the features last, or one per feature; and weights and labels, if given."""

    arrays: tuple[Any, ...]  # each read by `array[region]`
    weight: Any | None = None  # of the shape of the sample dimensions
    labels: Any | None = None  # of the same shape: the component of each row, -1 where it is not known
    store_root: Any | None = None  # the StoreRoot of arrays in a store

    @property
    def annotation_names(self) -> tuple[str, ...]:
        """The annotations that are given, of "weight" and "labels"."""
        return tuple(name for name in ("weight", "labels") if getattr(self, name) is not None)

    def __dask_tokenize__(self) -> str:
        """Return a new token each time: to hash a lazy variable, Dask would read all of it into this process."""
        return uuid.uuid4().hex

    def stamp(self) -> str | None:
        """Return a fingerprint of the stored arrays that changes when they are written to; None if there is none."""
        if self.store_root is None or not all(hasattr(getattr(self, name), "origin") for name in self.annotation_names):
            return None
        return self.store_root.stamp()

    @staticmethod
    def of(arrays: Sequence[Any], annotation_names: Sequence[str]) -> Source:
        """Build a source from the features' arrays, followed by those of the annotations."""
        n = len(arrays) - len(annotation_names)
        return Source(tuple(arrays[:n]), **dict(zip(annotation_names, arrays[n:], strict=True)))

    def read(self, region: Region) -> tuple[Array, Any]:
        """Return the rows x (n, d) of a region with their weights (n,) or None, or with the pair (weights, labels)."""
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
class RowLocator:
    """The names and coordinates by which a message says where a value stands."""

    names: tuple[str, ...] | None
    dims: tuple[str, ...] | None
    coordinates: tuple[Array | None, ...] = ()  # of each of the dims, one value per index

    def __call__(self, block: Block, row: int, feature: int | None) -> str:
        """Describe where a row of a block stands, counted within the block, and a feature of it if one is given."""
        for region in block.regions:
            if row < region_size(region):
                break
            row -= region_size(region)
        extent = [s.stop - s.start for s in region]
        index = [s.start + int(i) for s, i in zip(region, np.unravel_index(row, extent), strict=True)]
        if self.dims is None:
            where = f"row {index[0] if len(index) == 1 else tuple(index)}"
        else:
            values = [i if c is None else _formatted(c[i]) for c, i in zip(self.coordinates, index, strict=True)]
            where = ", ".join(f"{dim}={value}" for dim, value in zip(self.dims, values, strict=True))
            if any(c is not None for c in self.coordinates):
                where += f" (position {', '.join(map(str, index))})"
        if feature is None:
            return where
        if self.names is not None:
            return f"variable {self.names[feature]!r} at {where}"
        return f"{where}, feature {feature}"


def _coordinate(variable: Any) -> Array | None:
    """Return the coordinate of a dimension, or None if it has none, very many values, or values not in memory."""
    if variable is None or variable.ndim != 1 or variable.size > _MAX_COORDINATES or not variable._in_memory:
        return None
    # A worker may lack the class of times in a model's calendar.
    return np.asarray(variable.values, dtype=str if variable.dtype.kind == "O" else None)


def _formatted(value: Any) -> str:
    """Format a coordinate: 2001-02-01, -59.25."""
    if isinstance(value, np.datetime64):
        return str(np.datetime_as_string(value, unit="auto"))
    return f"{value:.8g}" if isinstance(value, np.floating) else str(value)


# -----------------------------------------------------------------------------
# Cutting an array into blocks
# -----------------------------------------------------------------------------


def regular_blocks(
    shape: Sequence[int],
    n_features: int,
    chunks: Sequence[int],
    shards: Sequence[int] | None = None,
    values: int | None = None,
) -> tuple[Block, ...]:
    """Cut the sample dimensions of a regular grid into blocks of whole shards, in regions of whole shards or chunks.

    Parameters
    ----------
    shape : sequence of int
        Of the sample dimensions.
    n_features : int
    chunks, shards : sequence of int
        Extents that storage decodes, and that it writes, at a time; of the sample dimensions.
    values : int, optional
        Values of a block; by default so many that their work outweighs the cost of a task.
    """
    shards = shards or chunks
    target = max(values or BLOCK_VALUES, math.prod(shape) * n_features // _MAX_BLOCKS)
    outer = _coarsened(shape, shards, target // n_features)
    # Whole shards take a quarter less time to read than the same chunks one by one (measured).
    unit = shards if math.prod(shards) * n_features <= BLOCK_VALUES else chunks
    inner = _coarsened(outer, unit, _REGION_VALUES // n_features)
    boxes = _tiles(tuple(slice(0, size) for size in shape), outer)
    return numbered((_tiles(box, inner), ()) for box in boxes)


def _coarsened(shape: Sequence[int], unit: Sequence[int], rows: int) -> tuple[int, ...]:
    """Return extents of up to ``rows`` rows: the unit, repeated along the first axis, then along the next ones."""
    extent = [max(1, min(u, s)) for u, s in zip(unit, shape, strict=True)]
    for axis, size in enumerate(shape):
        extent[axis] = max(1, min(extent[axis] * max(1, rows // math.prod(extent)), size))
        if extent[axis] < size:
            break
    return tuple(extent)


def _tiles(box: Region, step: Sequence[int]) -> Iterable[Region]:
    """Cut a box into boxes of the extents ``step``, in C order."""
    return product(
        *([slice(i, min(i + t, s.stop)) for i in range(s.start, s.stop, t)] for s, t in zip(box, step, strict=True))
    )


def numbered(contents: Iterable[tuple[Iterable[Region], Iterable[Any]]]) -> tuple[Block, ...]:
    """Build consecutive blocks from the regions and the keys of each."""
    blocks: list[Block] = []
    for regions, keys in contents:
        start = blocks[-1].start + blocks[-1].n if blocks else 0
        blocks.append(Block(len(blocks), start, tuple(regions), tuple(keys)))
    return tuple(blocks)


def joined(samples: Samples) -> Samples:
    """Join the blocks of a store to fewer, longer ones where there are many, for a pass whose tasks return little."""
    if samples.in_memory or samples.graph:
        return samples
    values = samples.blocks[0].n * samples.n_features
    many = max(1, min(_JOINED_VALUES // values, len(samples.blocks) // _LEAST_JOINED))
    groups = (samples.blocks[i : i + many] for i in range(0, len(samples.blocks), many))
    return replace(
        samples, blocks=numbered((chain.from_iterable(block.regions for block in group), ()) for group in groups)
    )


def region_size(region: Region) -> int:
    """Return the number of rows of a region."""
    return math.prod(s.stop - s.start for s in region)


# -----------------------------------------------------------------------------
# Rows in memory
# -----------------------------------------------------------------------------


def of_numpy(
    arrays: Sequence[Array], shape: tuple[int, ...], n_features: int, annotations: RowAnnotations = NO_ANNOTATIONS
) -> Samples:
    """Describe samples in this process's memory: one array with the features last, or one per feature."""
    check_extent(shape, n_features)
    values = max(_REGION_VALUES // 8, math.prod(shape) * n_features // _MEMORY_BLOCKS)
    return Samples(
        shape,
        n_features,
        np.result_type(*arrays),
        regular_blocks(shape, n_features, (1, *shape[1:]), values=min(BLOCK_VALUES, values)),
        Source(tuple(arrays), *(None if a is None else np.asarray(a) for a in annotations.checked(shape))),
        in_memory=True,
    )
