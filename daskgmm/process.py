"""Settings of the whole process, held while any of its threads needs them: BLAS threads, and the allocator."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController


class SharedContext:
    """A context that its first user enters and its last user leaves, in whichever threads they are."""

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
# Results of several BLAS threads differ in the last bits from those of one.


@contextmanager
def _single_blas() -> Iterator[None]:
    """Limit BLAS to one thread, from a thread of its own.

    Only the thread that changed threadpoolctl's limit may restore it, and the first and the last user may be different
    threads.
    """
    limited, unused = threading.Event(), threading.Event()

    def hold() -> None:
        with _libraries().limit(limits=1, user_api="blas"):
            limited.set()
            unused.wait()

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    limited.wait()
    yield
    unused.set()
    holder.join()


@cache  # to look for them takes 4 ms, as long as the passes of a small fit
def _libraries() -> ThreadpoolController:
    import scipy.linalg.cython_blas  # noqa: F401  compiled code calls this one, whenever it is loaded

    return ThreadpoolController()


@cache
def architectures() -> set[str]:
    """Return the libraries' own names for the kind of this processor."""
    return {library["architecture"] for library in _libraries().info() if "architecture" in library}


single_blas = SharedContext(_single_blas)


# -----------------------------------------------------------------------------
# Memory that the C library keeps from one read to the next
# -----------------------------------------------------------------------------

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
# Bytes that stay at the end of a heap when they are freed, and from which on a buffer gets a mapping of its own. Dask
# sets the first, which fixes the second at glibc's start. Ours: with 64 MiB reads were as fast, with 4 MiB a fifth
# slower.
_DASK_LIMITS = {_M_TRIM_THRESHOLD: 2**16, _M_MMAP_THRESHOLD: 2**17}
_OUR_LIMITS = {_M_TRIM_THRESHOLD: 2**24, _M_MMAP_THRESHOLD: 2**25}
# Bytes per thread of a worker's memory limit, from which on ours are set: the demo's workers, of 384 MiB, held 25 MiB
# more with ours, and were paused.
_MIN_PER_THREAD = 2**29


@contextmanager
def _reuse_freed_memory() -> Iterator[None]:
    """Have glibc use the memory that one read frees for the next, as it does outside of Dask's workers.

    Dask's nannies set ``MALLOC_TRIM_THRESHOLD_``, so that the memory of a worker's released results goes back to the
    system. But then each buffer of more than 128 KiB is mapped anew and the kernel clears its pages: reading from a
    store took twice the time (measured: zstd, chunks of 0.5 to 4 MiB). So this is for tasks that return little.
    """
    mallopt = _mallopt() or (lambda parameter, limit: 0)
    for parameter, limit in _OUR_LIMITS.items():
        mallopt(parameter, limit)
    yield
    for parameter, limit in _DASK_LIMITS.items():
        mallopt(parameter, limit)


def _mallopt() -> Callable[[int, int], int] | None:
    """Return glibc's ``mallopt`` in a task of a worker that has room and whose nanny set Dask's limits; else None.

    The environment variable is not enough: a nanny also sets it in its own process, after glibc has read it.
    """
    limits = (os.environ.get(f"MALLOC_{name}_THRESHOLD_") for name in ("TRIM", "MMAP"))
    if tuple(limits) != (str(_DASK_LIMITS[_M_TRIM_THRESHOLD]), None) or "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        worker = get_worker()
        memory = worker.memory_manager.memory_limit or sys.maxsize
        if not worker.nanny or memory < _MIN_PER_THREAD * worker.state.nthreads:
            return None
        return ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError, ValueError):  # no worker, another C library, another system
        return None


reuse_freed_memory = SharedContext(_reuse_freed_memory)
