"""One pass over the data on Dask: map over the blocks, then gather the results or add them up in a tree.

A task takes one block, walks through its regions and returns something small. The graph holds no state,
so Dask may run any task again, anywhere; the shape of the tree follows from the number of blocks alone, so
sums have the same bits wherever they were made.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.data.blocks import Block, Samples
from daskgmm.families.frame import Rows
from daskgmm.passes.execution import Graph, compute, scheduler_for, usable
from daskgmm.passes.reader import BlockReader, Kernel, Reader
from daskgmm.process import freed_reused

_FAN_IN = 8


def gather(reader: Reader, kernel: Kernel, own: Sequence[Any] | None = None) -> list[Any]:
    """Results of all blocks, in order.

    Parameters
    ----------
    reader : Reader
    kernel : callable
        ``kernel(block, pieces)``, or ``kernel(block, pieces, own[i])`` for block i; pieces yields (x, weights).
    own : sequence, optional
        One small argument a block.
    """
    if reader.recorded is not None:
        return reader.recorded(partial(gather, replace(reader, recorded=None), kernel, own))

    def build() -> Graph:
        graph, keys = tasks(reader, partial(_small, kernel), own)
        return Graph(graph, keys, keys)

    return list(compute(reader, build))


def total(reader: Reader, kernel: Kernel) -> Any:
    """Results of all blocks, tuples of summands, added up in a tree."""
    if reader.recorded is not None:
        return reader.recorded(partial(total, replace(reader, recorded=None), kernel))
    return _add(compute(reader, partial(_tree, reader, kernel)))


def _tree(reader: Reader, kernel: Kernel) -> Graph:
    graph, blocks = tasks(reader, partial(_small, kernel))
    keys = blocks
    token = uuid.uuid4().hex
    level = 0
    while len(keys) > 1 and not _few(reader.samples):
        groups = [keys[i : i + _FAN_IN] for i in range(0, len(keys), _FAN_IN)]
        keys = [(f"daskgmm-sum-{token}", level, i) for i in range(len(groups))]
        graph.update({key: (_add, group) for key, group in zip(keys, groups, strict=True)})
        level += 1
    return Graph(graph, keys, blocks)


def rows(samples: Samples, kernel: Kernel, dtype: npt.DTypeLike, extra: tuple[int, ...] = ()) -> Any:
    """One result a sample: a lazy dask array of the samples' shape, and ``extra`` dimensions after it.

    For samples in memory, the ndarray itself. ``kernel(block, pieces)`` returns an array (n, *extra).
    """
    import dask.array as da

    units = (
        [
            replace(block, regions=(region,), keys=block.keys[i : i + 1], start=block.start)
            for block in samples.blocks
            for i, region in enumerate(block.regions)
        ]
        if samples.graph
        else list(samples.blocks)
    )
    graph, keys = tasks(Reader(replace(samples, blocks=tuple(units))), partial(_box, kernel))
    edges = [
        sorted({s.start for s in axis} | {s.stop for s in axis})
        for axis in zip(*(unit.region for unit in units), strict=True)
    ]
    name = f"daskgmm-rows-{uuid.uuid4().hex}"
    at = [{edge: i for i, edge in enumerate(axis)} for axis in edges]
    for unit, key in zip(units, keys, strict=True):
        index = [lookup[s.start] for lookup, s in zip(at, unit.region, strict=True)]
        graph[(name, *index, *(0 for _ in extra))] = key
    chunks = tuple(tuple(np.diff(axis).tolist()) for axis in edges) + tuple((size,) for size in extra)
    lazy = da.Array(graph, name, chunks, dtype=np.dtype(dtype))
    return lazy.compute(scheduler=scheduler_for(samples)) if samples.in_memory else lazy


def _box(kernel: Kernel, block: Block, pieces: Iterator[Rows]) -> npt.NDArray[np.generic]:
    """Per-row results of a block's regions, put together to the block's box."""
    result = np.asarray(kernel(block, pieces))
    return assemble(block, result)


def assemble(block: Block, result: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Results in the order of a block's rows (n, …), as its box."""
    box = block.region
    shape = tuple(s.stop - s.start for s in box)
    if len(block.regions) == 1 or len(box) == 1:
        return result.reshape(shape + result.shape[1:])
    out = np.empty(shape + result.shape[1:], dtype=result.dtype)
    start = 0
    for region in block.regions:
        extent = tuple(s.stop - s.start for s in region)
        stop = start + int(np.prod(extent))
        inside = tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(region, box, strict=True))
        out[inside] = result[start:stop].reshape(extent + result.shape[1:])
        start = stop
    return out


def tasks(reader: Reader, kernel: Kernel, own: Sequence[Any] | None = None) -> tuple[dict[Any, Any], list[Any]]:
    """A graph with a task for each block, and their keys in order."""
    name, samples = f"daskgmm-pass-{uuid.uuid4().hex}", reader.samples
    kept = [(key, rows) if usable(rows) else None for key, rows in reader.kept] or [None] * len(samples.blocks)
    graph: dict[Any, Any] = dict(entry for entry in kept if entry)
    if not all(kept):
        graph.update(samples.graph)
    shared: list[Any] = [(_identity, [BlockReader.of(reader)]), (_identity, [kernel])]
    if not _few(reader.samples):  # it travels to a worker once, and has a lineage
        nodes = [f"{name}-reader", f"{name}-kernel"]
        graph.update(zip(nodes, shared, strict=True))
        shared = nodes
    keys = []
    for i, block in enumerate(samples.blocks):
        rows = kept[i]
        chunks = None if rows else [list(region_keys) for region_keys in block.keys] or None
        graph[key := (name, i)] = (
            BlockReader.run,
            *shared,
            replace(block, keys=()),
            chunks,
            rows and rows[0],
            *([] if own is None else [[own[i]]]),
        )
        keys.append(key)
    return graph, keys


def _small(kernel: Kernel, *arguments: Any) -> Any:
    """A result after which nothing large is left."""
    with freed_reused():
        return kernel(*arguments)


def _few(samples: Samples) -> bool:
    """Blocks of one sum, which is then made here: each turn of a scheduler takes 5 to 10 ms, half of a small pass."""
    return len(samples.blocks) <= _FAN_IN


def _identity(boxed: list[Any]) -> Any:
    return boxed[0]


def _add(summands: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(reduce(add, column) for column in zip(*summands, strict=True))
