"""Settings of a whole process, held for as long as any of its threads wants them: BLAS threads, and the allocator."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController


class Shared:
    """A context that the first who wants it enters, and the last leaves, in whichever threads these are."""

    def __init__(self, context: Callable[[], AbstractContextManager[None]]) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._users = 0
        self._entered = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._users == 0:
                self._entered.enter_context(self._context())
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._entered.close()


# -----------------------------------------------------------------------------
# BLAS on one thread
# -----------------------------------------------------------------------------
#
# What several threads compute differs in the last bits from what one does.


@contextmanager
def _limited() -> Iterator[None]:
    """By a thread of our own: threadpoolctl lets one at a time change the limit, and the first and last may differ."""
    limited, unused = threading.Event(), threading.Event()
    holder = threading.Thread(target=_hold, args=(limited, unused), daemon=True)
    holder.start()
    limited.wait()
    yield
    unused.set()
    holder.join()


def _hold(limited: threading.Event, unused: threading.Event) -> None:
    with _libraries().limit(limits=1, user_api="blas"):
        limited.set()
        unused.wait()


@cache  # to look for them takes 4 ms, as long as the passes of a small fit
def _libraries() -> ThreadpoolController:
    import scipy.linalg.cython_blas  # noqa: F401  compiled code calls this one, whenever it is loaded

    return ThreadpoolController()


@cache
def architectures() -> set[str]:
    """The kinds of processors that the libraries take this one for, by their own names."""
    return {library["architecture"] for library in _libraries().info() if "architecture" in library}


single_blas = Shared(_limited)


# -----------------------------------------------------------------------------
# Memory that the C library keeps from one read to the next
# -----------------------------------------------------------------------------

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
# Bytes that stay at the end of a heap when they are freed, and from which on a buffer is mapped alone. Dask sets the
# first, which fixes the second at glibc's start. Ours: with 64 MiB reads were as fast, with 4 MiB a fifth slower.
_DASKS = {_M_TRIM_THRESHOLD: 2**16, _M_MMAP_THRESHOLD: 2**17}
_OURS = {_M_TRIM_THRESHOLD: 2**24, _M_MMAP_THRESHOLD: 2**25}
_LEAST = 2**29  # bytes of a worker's limit a thread: the demo's, of 384 MiB, held 25 more with ours, and were paused


@contextmanager
def _reusing() -> Iterator[None]:
    """Have glibc use what one read frees for the next, as it does outside of Dask's workers.

    Dask's nannies set ``MALLOC_TRIM_THRESHOLD_``, so that what a worker's tasks return goes back to the system when it
    is released. But so each buffer of more than 128 KiB is mapped anew, and the kernel clears its pages: to read from a
    store took twice the time (measured: zstd, chunks of 0.5 to 4 MiB). So this is for tasks that return little.
    """
    mallopt = _mallopt()
    _set(mallopt, _OURS)
    yield
    _set(mallopt, _DASKS)


def _set(mallopt: Callable[[int, int], int] | None, limits: dict[int, int]) -> None:
    if mallopt is not None:
        for what, limit in limits.items():
            mallopt(what, limit)


def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's, in a task of a worker with room that a nanny started with Dask's limits.

    The variable alone does not tell: a nanny sets it in its own process, too, whose glibc has started without.
    """
    limits = (os.environ.get(f"MALLOC_{what}_THRESHOLD_") for what in ("TRIM", "MMAP"))
    if tuple(limits) != (str(_DASKS[_M_TRIM_THRESHOLD]), None) or "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        worker = get_worker()
        memory = worker.memory_manager.memory_limit or sys.maxsize
        if not worker.nanny or memory < _LEAST * worker.state.nthreads:
            return None
        found: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError, ValueError):  # no worker, another C library, another system
        return None
    return found


freed_reused = Shared(_reusing)
