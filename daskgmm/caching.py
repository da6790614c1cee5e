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
from daskgmm.em.estep import Rows
from daskgmm.executing import worker_limits
from daskgmm.passes import tasks, worker_memory

_SHARE = 0.5  # of what workers have beyond a pass's need: Dask writes to disk from 60 % on, and spreads unevenly
_SHARE_HERE = 0.25  # of the memory that this process may use, which has other things to hold


def cached(samples: Samples, persist: bool | Literal["auto"]) -> Samples:
    """The samples with their rows kept in memory, if that is asked for or, with "auto", if they fit there."""
    row = samples.n_features * samples.dtype.itemsize + 8 * len(samples.source.beside)
    if samples.in_memory or not persist or (persist == "auto" and samples.n * row > _room(samples)):
        return samples
    graph, keys = tasks(samples, _pieces)
    kept = dask.persist(*(Delayed(key, graph) for key in keys))
    return replace(samples, kept=tuple((key, delayed.dask[key]) for key, delayed in zip(keys, kept, strict=True)))


def _pieces(block: Block, pieces: Iterator[Rows]) -> list[Rows]:
    return [(np.ascontiguousarray(x), beside) for x, beside in pieces]


def _room(samples: Samples) -> float:
    """Bytes that may be kept: where workers have no memory limit, none."""
    workers = worker_limits()
    if workers is None:
        from distributed.system import MEMORY_LIMIT

        return _SHARE_HERE * MEMORY_LIMIT
    return _SHARE * sum(max(0, limit - worker_memory(samples, threads)) for limit, threads in workers)
