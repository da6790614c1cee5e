"""Memory that a worker's C library keeps from one read to the next."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
# Bytes that stay at the end of a heap when they are freed, and from which on a buffer is mapped alone. Dask sets the
# first, which fixes the second at glibc's start. Ours: with 64 MiB reads were as fast, with 4 MiB a fifth slower.
_DASKS = {_M_TRIM_THRESHOLD: 2**16, _M_MMAP_THRESHOLD: 2**17}
_OURS = {_M_TRIM_THRESHOLD: 2**24, _M_MMAP_THRESHOLD: 2**25}
_LEAST = 2**29  # bytes of a worker's limit a thread: the demo's, of 384 MiB, held 25 more with ours, and were paused

_Mallopt = Callable[[int, int], int]


class _FreedReused:
    """Counts the tasks that want glibc to use what one read frees for the next, as it does outside of Dask's workers.

    Dask's nannies set ``MALLOC_TRIM_THRESHOLD_``, so that what a worker's tasks return goes back to the system when it
    is released. But so each buffer of more than 128 KiB is mapped anew, and the kernel clears its pages: to read from a
    store took twice the time (measured: zstd, chunks of 0.5 to 4 MiB). So this is for tasks that return little.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._mallopt: _Mallopt | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            before, self._users = self._users, self._users + change
            if (before == 0) == (self._users == 0):
                return
            self._mallopt = self._mallopt or _mallopt()
            if self._mallopt is not None:
                for what, limit in (_OURS if self._users else _DASKS).items():
                    self._mallopt(what, limit)


def _mallopt() -> _Mallopt | None:
    """glibc's, in a task of a worker with room that a nanny started with Dask's limits.

    The variable alone does not tell: a nanny sets it in its own process, too, whose glibc has started without.
    """
    limits = (os.environ.get(f"MALLOC_{what}_THRESHOLD_") for what in ("TRIM", "MMAP"))
    if tuple(limits) != (str(_DASKS[_M_TRIM_THRESHOLD]), None) or "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        worker = get_worker()
        memory = worker.memory_manager.memory_limit
        found: _Mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError, ValueError):  # no worker, another C library, another system
        return None
    roomy = not memory or memory >= _LEAST * worker.state.nthreads
    return found if worker.nanny and roomy else None


freed_reused = _FreedReused()
