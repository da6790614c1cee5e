"""The memory of a pass: how much a worker needs, and decoded rows kept in what is left.

Each pass over a store reads and decompresses it anew, which may take as long as the arithmetic. Kept rows are
ordinary results of Dask: rows that are lost with their worker are computed again.
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
from daskgmm.passes.execution import thread_count, worker_limits
from daskgmm.passes.graph import block_tasks
from daskgmm.passes.reader import Reader

# -----------------------------------------------------------------------------
# Decoded rows, kept where they are computed with
# -----------------------------------------------------------------------------

_SHARE = 0.5  # of workers' memory beyond a pass's need: Dask spills to disk from 60 % on, and spreads results unevenly
_SHARE_HERE = 0.25  # of the memory that this process may use, as it holds other things, too


def keep_rows(samples: Samples, persist: bool | Literal["auto"]) -> Reader:
    """Keep decoded rows in memory if ``persist`` is True, or if it is "auto" and they fit; else read the source."""
    reader = Reader(samples)
    row = samples.n_features * samples.dtype.itemsize + 8 * len(samples.source.annotation_names)
    if samples.in_memory or not persist or (persist == "auto" and samples.n * row > _spare_memory(samples)):
        return reader
    graph, keys = block_tasks(reader, _decoded)
    kept = dask.persist(*(Delayed(key, graph) for key in keys))
    return replace(reader, kept=tuple((key, delayed.dask[key]) for key, delayed in zip(keys, kept, strict=True)))


def _decoded(block: Block, pieces: Iterator[Rows]) -> list[Rows]:
    return [(np.ascontiguousarray(x), annotations) for x, annotations in pieces]


def _spare_memory(samples: Samples) -> float:
    """Return the bytes that kept rows may take; 0 on workers without a memory limit."""
    workers = worker_limits()
    if workers is None:
        return _SHARE_HERE * _process_limit()
    return _SHARE * sum(max(0, limit - worker_memory(samples, threads)) for limit, threads in workers)


# -----------------------------------------------------------------------------
# The need of a worker
# -----------------------------------------------------------------------------

# Bytes of a bare worker once the kernel is loaded (measured: 62 MiB of Dask; 201 with NumPy, SciPy, Zarr and Numba;
# 234 with xarray), and the share of its memory limit above which Dask begins to spill and to pause.
_WORKER_BASE = 240 * 2**20
_WORKER_USABLE = 0.8
# While a region is decoded, storage holds its compressed bytes, its chunks and the joined result at once, and the
# kernel works on the region before.
_COPIES = 4
_WORKSPACE = 8 * 2**20  # a strip of rows in double precision, φ and responsibilities of a tile, and the sums


def worker_memory(samples: Samples, threads: int) -> float:
    """Return the memory limit in bytes that a worker needs to stay below the share that Dask lets it use."""
    return (_WORKER_BASE + threads * (_COPIES * samples.region_bytes + _WORKSPACE)) / _WORKER_USABLE


def check_memory(samples: Samples, limit: float | None = None, threads: int = 1) -> None:
    """Refuse, before anything is read, blocks that do not fit in the workers' memory.

    Parameters
    ----------
    samples : Samples
    limit : float, optional
        Memory limit in bytes of a worker with ``threads`` threads; default: of the workers there are.
    threads : int

    Raises
    ------
    MemoryError
        A worker needs more than its limit; the message says how much, and how to need less.
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
    """Return memory limit in bytes and threads of the worker with the least memory per thread, or of this process."""
    workers = None if samples.in_memory else worker_limits()
    if workers is None:
        return _process_limit(), thread_count(Reader(samples))
    limited = [(limit, count) for limit, count in workers if limit]
    return min(limited, key=lambda worker: worker[0] / worker[1], default=(0.0, 1))


def _process_limit() -> float:
    from distributed.system import MEMORY_LIMIT

    return float(MEMORY_LIMIT)
