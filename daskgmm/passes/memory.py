"""Decoded rows, kept in memory where they are computed with.

Each pass over a store reads and decompresses it anew, which may take as long as the arithmetic. What is kept are
results of Dask's like any other: those that a lost worker held are made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import dask
import numpy as np
from dask.delayed import Delayed

from daskgmm.data.blocks import Block, Samples
from daskgmm.families.frame import Rows
from daskgmm.passes.execution import threads, worker_limits
from daskgmm.passes.graph import tasks
from daskgmm.passes.reader import Reader

_SHARE = 0.5  # of what workers have beyond a pass's need: Dask writes to disk from 60 % on, and spreads unevenly
_SHARE_HERE = 0.25  # of the memory that this process may use, which has other things to hold


def keep_rows(samples: Samples, persist: bool | Literal["auto"]) -> Reader:
    """Read samples from memory, if that is asked for or, with "auto", if they fit there; else from where they are."""
    reader = Reader(samples)
    row = samples.n_features * samples.dtype.itemsize + 8 * len(samples.source.beside)
    if samples.in_memory or not persist or (persist == "auto" and samples.n * row > _room(samples)):
        return reader
    graph, keys = tasks(reader, _pieces)
    kept = dask.persist(*(Delayed(key, graph) for key in keys))
    return replace(reader, kept=tuple((key, delayed.dask[key]) for key, delayed in zip(keys, kept, strict=True)))


def _pieces(block: Block, pieces: Iterator[Rows]) -> list[Rows]:
    return [(np.ascontiguousarray(x), beside) for x, beside in pieces]


def _room(samples: Samples) -> float:
    """Bytes that may be kept: where workers have no memory limit, none."""
    workers = worker_limits()
    if workers is None:
        from distributed.system import MEMORY_LIMIT

        return _SHARE_HERE * MEMORY_LIMIT
    return _SHARE * sum(max(0, limit - worker_memory(samples, threads)) for limit, threads in workers)


# Of a worker's memory limit: what a bare worker holds once the kernel is loaded (measured: 62 MiB of Dask, with NumPy,
# SciPy, Zarr and Numba 201, with xarray 234), and the share above which Dask begins to spill and to pause.
_WORKER_BASE = 240 * 2**20

_WORKER_USABLE = 0.8

# While a region is decoded, storage holds its compressed bytes, its chunks and the joined result at once; the region
# before it is worked on.
_COPIES = 4

_WORKSPACE = 8 * 2**20  # a strip of rows in double precision, a tile's φ and responsibilities, and the sums


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


def _limits(samples: Samples) -> tuple[float, int]:
    """Memory limit in bytes and threads of the smallest worker; of this process without a cluster."""
    workers = None if samples.in_memory else worker_limits()
    if workers is None:
        from distributed.system import MEMORY_LIMIT

        return float(MEMORY_LIMIT), threads(Reader(samples))
    limited = [(limit, count) for limit, count in workers if limit]
    return min(limited, key=lambda worker: worker[0] / worker[1], default=(0.0, 1))
