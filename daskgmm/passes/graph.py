"""One pass over the data on Dask: map a kernel over the blocks, then gather its results or combine them in a tree.

A task takes one block, walks through its regions and returns a small result. The graph holds no state, so Dask may
run any task again, anywhere; the shape of the tree follows from the number of blocks alone, so sums have the same bits
wherever they are made.
"""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
from dask.core import literal

from daskgmm.data.blocks import Block, Samples, region_size
from daskgmm.families.frame import Rows
from daskgmm.passes.execution import Graph, compute, is_usable, scheduler_for
from daskgmm.passes.reader import BlockReader, Kernel, Reader
from daskgmm.process import reuse_freed_memory

FAN_IN = 8  # results that one task of the tree adds up


def gather(reader: Reader, kernel: Kernel, args: Sequence[Any] | None = None) -> list[Any]:
    """Map a kernel over the blocks and return its results in the order of the blocks.

    Parameters
    ----------
    reader : Reader
    kernel : callable
        ``kernel(block, pieces)``, or ``kernel(block, pieces, args[i])`` for block i; pieces yields (x, weights).
    args : sequence, optional
        One small argument per block.
    """
    if reader.recorded is not None:
        return reader.recorded(partial(gather, replace(reader, recorded=None), kernel, args))

    def build() -> Graph:
        graph, keys = block_tasks(reader, partial(_reusing_memory, kernel), args)
        return Graph(graph, keys, keys)

    return list(compute(reader, build))


def total(reader: Reader, kernel: Kernel) -> Any:
    """Map a kernel over the blocks and combine its results, tuples of summands, with + in a tree."""
    if reader.recorded is not None:
        return reader.recorded(partial(total, replace(reader, recorded=None), kernel))
    return _add(compute(reader, partial(_tree, reader, kernel)))


def _tree(reader: Reader, kernel: Kernel) -> Graph:
    """Build the graph of a sum down to one task, or of the blocks alone where they are few."""
    graph, blocks = block_tasks(reader, partial(_reusing_memory, kernel))
    keys = blocks
    token = uuid.uuid4().hex
    level = 0
    while len(keys) > 1 and not _is_small(reader.samples):
        groups = [keys[i : i + FAN_IN] for i in range(0, len(keys), FAN_IN)]
        keys = [(f"daskgmm-sum-{token}", level, i) for i in range(len(groups))]
        graph.update({key: (_add, group) for key, group in zip(keys, groups, strict=True)})
        level += 1
    return Graph(graph, keys, blocks)


def map_rows(samples: Samples, kernel: Kernel, dtype: npt.DTypeLike, extra: tuple[int, ...] = ()) -> Any:
    """Map a kernel over the blocks to a dask array of one result per sample, of shape (*samples.shape, *extra).

    For samples in memory, return the ndarray itself. ``kernel(block, pieces)`` returns an array (n, *extra).
    """
    import dask.array as da

    units = list(samples.blocks)
    if samples.graph:  # chunks of dask that one task takes need not fill a box
        units = [
            replace(block, regions=(region,), keys=block.keys[i : i + 1])
            for block in units
            for i, region in enumerate(block.regions)
        ]
    graph, keys = block_tasks(Reader(replace(samples, blocks=tuple(units))), partial(_box, kernel))
    edges = [
        sorted({edge for s in axis for edge in (s.start, s.stop)})
        for axis in zip(*(unit.region for unit in units), strict=True)
    ]
    name = f"daskgmm-rows-{uuid.uuid4().hex}"
    for unit, key in zip(units, keys, strict=True):
        graph[(name, *map(bisect_left, edges, (s.start for s in unit.region)), *(0 for _ in extra))] = key
    chunks = tuple(tuple(np.diff(axis).tolist()) for axis in edges) + tuple((size,) for size in extra)
    lazy = da.Array(graph, name, chunks, dtype=np.dtype(dtype))
    return lazy.compute(scheduler=scheduler_for(samples)) if samples.in_memory else lazy


def _box(kernel: Kernel, block: Block, pieces: Iterator[Rows]) -> npt.NDArray[np.generic]:
    return assemble(block, np.asarray(kernel(block, pieces)))


def assemble(block: Block, result: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Arrange results (n, …) in the order of a block's rows to the shape of the block's box."""
    box = block.region
    shape = tuple(s.stop - s.start for s in box)
    if len(block.regions) == 1 or len(box) == 1:
        return result.reshape(shape + result.shape[1:])
    out = np.empty(shape + result.shape[1:], dtype=result.dtype)
    ends = np.cumsum([region_size(region) for region in block.regions])
    for region, part in zip(block.regions, np.split(result, ends[:-1]), strict=True):
        inside = tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(region, box, strict=True))
        out[inside] = part.reshape(out[inside].shape)
    return out


def block_tasks(reader: Reader, kernel: Kernel, args: Sequence[Any] | None = None) -> tuple[dict[Any, Any], list[Any]]:
    """Build a graph with one task per block, and return it with the tasks' keys in the order of the blocks."""
    name, samples = f"daskgmm-pass-{uuid.uuid4().hex}", reader.samples
    kept = [(key, rows) if is_usable(rows) else None for key, rows in reader.kept] or [None] * len(samples.blocks)
    graph: dict[Any, Any] = dict(entry for entry in kept if entry)
    if not all(kept):
        graph.update(samples.graph)
    shared: list[Any] = [(literal(BlockReader.of(reader)),), (literal(kernel),)]
    if not _is_small(samples):  # as nodes of the graph they travel to a worker once, and are sent again if it is lost
        nodes = [f"{name}-reader", f"{name}-kernel"]
        graph.update(zip(nodes, shared, strict=True))
        shared = nodes
    keys = [(name, i) for i in range(len(samples.blocks))]
    for i, (key, block, rows) in enumerate(zip(keys, samples.blocks, kept, strict=True)):
        graph[key] = (
            BlockReader.run,
            *shared,
            replace(block, keys=()),
            None if rows else [list(region_keys) for region_keys in block.keys] or None,
            rows and rows[0],
            *([] if args is None else [[args[i]]]),
        )
    return graph, keys


def _reusing_memory(kernel: Kernel, *args: Any) -> Any:
    """Apply a kernel whose result is small, so that the memory which its reads free may be reused at once."""
    with reuse_freed_memory():
        return kernel(*args)


def _is_small(samples: Samples) -> bool:
    """Whether the results are few enough to be added up here: a level of the tree takes 5 to 10 ms on a scheduler."""
    return len(samples.blocks) <= FAN_IN


def _add(summands: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(reduce(add, column) for column in zip(*summands, strict=True))
