"""One pass over the data on Dask: map over the blocks, then gather the results or add them up in a tree.

A task takes one block, walks through its regions and returns something small. The graph holds no state,
so Dask may run any task again, anywhere; the shape of the tree follows from the number of blocks alone, so
sums have the same bits wherever they were made.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.data.blocks import Block, Region, Samples, Source, whole
from daskgmm.em.estep import Rows, coded, compile_statistics, completed, sums
from daskgmm.em.labelled import others
from daskgmm.em.layout import Precision, Prepared, kind, prepare
from daskgmm.em.stats import Stats
from daskgmm.executing import compute, scheduler_for, threads, usable, worker_limits
from daskgmm.families.base import Components
from daskgmm.families.coding import Coding
from daskgmm.families.frame import Array
from daskgmm.process import freed_reused, single_blas
from daskgmm.submission import Graph

_FAN_IN = 8
# Of a worker's memory limit: what a bare worker holds once the kernel is loaded (measured: 62 MiB of Dask, with NumPy,
# SciPy, Zarr and Numba 201, with xarray 234), and the share above which Dask begins to spill and to pause.
_WORKER_BASE = 240 * 2**20
_WORKER_USABLE = 0.8
# While a region is decoded, storage holds its compressed bytes, its chunks and the joined result at once; the region
# before it is worked on.
_COPIES = 4
_WORKSPACE = 8 * 2**20  # a strip of rows in double precision, a tile's φ and responsibilities, and the sums

Kernel = Callable[..., Any]  # (block, pieces, …) -> a small result


def gather(samples: Samples, kernel: Kernel, own: Sequence[Any] | None = None) -> list[Any]:
    """Results of all blocks, in order.

    Parameters
    ----------
    samples : Samples
    kernel : callable
        ``kernel(block, pieces)``, or ``kernel(block, pieces, own[i])`` for block i; pieces yields (x, weights).
    own : sequence, optional
        One small argument a block.
    """
    if samples.recorded is not None:
        return samples.recorded(partial(gather, replace(samples, recorded=None), kernel, own))

    def build() -> Graph:
        graph, keys = tasks(samples, partial(_small, kernel), own)
        return Graph(graph, keys, keys)

    return list(compute(samples, build))


def total(samples: Samples, kernel: Kernel) -> Any:
    """Results of all blocks, tuples of summands, added up in a tree."""
    if samples.recorded is not None:
        return samples.recorded(partial(total, replace(samples, recorded=None), kernel))
    return _add(compute(samples, partial(_tree, samples, kernel)))


def _tree(samples: Samples, kernel: Kernel) -> Graph:
    graph, blocks = tasks(samples, partial(_small, kernel))
    keys = blocks
    token = uuid.uuid4().hex
    level = 0
    while len(keys) > 1 and not _few(samples):
        groups = [keys[i : i + _FAN_IN] for i in range(0, len(keys), _FAN_IN)]
        keys = [(f"daskgmm-sum-{token}", level, i) for i in range(len(groups))]
        graph.update({key: (_add, group) for key, group in zip(keys, groups, strict=True)})
        level += 1
    return Graph(graph, keys, blocks)


class EMPass:
    """E-step and moments over all samples: what `daskgmm.em.loop.EM.run` calls once an iteration."""

    def __init__(self, samples: Samples, n: int = 0) -> None:
        self.n = n  # passes made
        self._samples = samples
        self._compiled: set[Any] = set()
        self._scatter: dict[Any, Array] = {}  # of lean models: the same in each pass

    def __call__(self, models: Sequence[Components], dtypes: Sequence[Precision]) -> list[Stats]:
        kinds = [(*kind(model), dtype) for model, dtype in zip(models, dtypes, strict=True)]
        if not self._compiled.issuperset(kinds):
            compile_statistics(models, dtypes)
            self._compiled.update(kinds)
        self.n += 1
        lean = {kind for kind, model in zip(kinds, models, strict=True) if model.lean}
        pool = not lean.issubset(self._scatter)
        kernel = partial(_sums, prepared=prepare(models, dtypes, pool), coding=self._samples.coding)
        stats = total(self._samples, kernel)
        if pool:
            self._scatter |= {k: s.scatter for k, m, s in zip(kinds, models, stats, strict=True) if m.lean}
        return [completed(s, m, self._scatter.get(k)) for k, m, s in zip(kinds, models, stats, strict=True)]


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
    graph, keys = tasks(replace(samples, blocks=tuple(units)), partial(_box, kernel), None)
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


def worker_memory(samples: Samples, threads: int) -> float:
    """Bytes that a worker's memory limit must be, so that what it holds stays below the share that Dask lets it use."""
    return (_WORKER_BASE + threads * (_COPIES * samples.region_bytes + _WORKSPACE)) / _WORKER_USABLE


def check_memory(samples: Samples, limit: float | None = None, threads: int = 1) -> None:
    """Refuse, before anything is read, blocks that do not fit in the workers' memory.

    Parameters
    ----------
    samples : Samples
    limit : float, optional
        Bytes of a worker of so many threads; default: those of the workers there are.
    threads : int

    Raises
    ------
    MemoryError
        Says how much a worker would need, and how to need less.
    """
    if limit is None:
        limit, threads = _limits(samples)
    needed = worker_memory(samples, threads)
    if limit and needed > limit:
        raise MemoryError(
            f"a worker with {threads} thread{'s' if threads > 1 else ''} needs "
            f"{needed / 2**20:.0f} MiB for reads of {samples.region_bytes / 2**20:.1f} MiB "
            f"beside the {_WORKER_BASE / 2**20:.0f} MiB of its own, but its limit is {limit / 2**20:.0f} MiB: "
            "give workers more memory or fewer threads, or rechunk the data to smaller chunks"
        )


def _sums(block: Block, pieces: Iterator[Rows], prepared: Sequence[Prepared], coding: Coding) -> tuple[Stats, ...]:
    return sums(coded(pieces, coding), prepared)


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


def tasks(samples: Samples, kernel: Kernel, own: Sequence[Any] | None = None) -> tuple[dict[Any, Any], list[Any]]:
    """A graph with a task for each block, and their keys in order."""
    name = f"daskgmm-pass-{uuid.uuid4().hex}"
    kept = [(key, rows) if usable(rows) else None for key, rows in samples.kept] or [None] * len(samples.blocks)
    graph: dict[Any, Any] = dict(entry for entry in kept if entry)
    if not all(kept):
        graph.update(samples.graph)
    shared: list[Any] = [(_identity, [kernel]), (_identity, [samples.source if not samples.graph else None])]
    if not _few(samples):  # it travels to a worker once, and has a lineage
        nodes = [f"{name}-kernel", f"{name}-source"]
        graph.update(zip(nodes, shared, strict=True))
        shared = nodes
    keys = []
    for i, block in enumerate(samples.blocks):
        rows = kept[i]
        chunks = None if rows else [list(region_keys) for region_keys in block.keys] or None
        graph[key := (name, i)] = (
            _run,
            *shared,
            replace(block, keys=()),
            chunks,
            samples.source.beside,
            samples.unlabelled,
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


def _add(summands: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(reduce(add, column) for column in zip(*summands, strict=True))


def _limits(samples: Samples) -> tuple[float, int]:
    """Memory limit in bytes and threads of the smallest worker; of this process without a cluster."""
    workers = None if samples.in_memory else worker_limits()
    if workers is None:
        from distributed.system import MEMORY_LIMIT

        return float(MEMORY_LIMIT), threads(samples)
    limited = [(limit, count) for limit, count in workers if limit]
    return min(limited, key=lambda worker: worker[0] / worker[1], default=(0.0, 1))
