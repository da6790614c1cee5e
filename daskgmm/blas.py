"""BLAS on one thread: what one or more of them compute differs in the last bits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController


class _SingleBlas:
    """Counts who wants BLAS on one thread: the limit is the process's, tasks come and go on its threads.

    threadpoolctl lets one thread at a time change the limit. A thread of our own holds it from the first who
    wants it to the last, whichever threads these are.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._unused = threading.Event()
        self._holder = threading.Thread()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._users == 0:
                self._unused, limited = threading.Event(), threading.Event()
                self._holder = threading.Thread(target=_hold, args=(limited, self._unused), daemon=True)
                self._holder.start()
                limited.wait()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._unused.set()
                    self._holder.join()


def _hold(limited: threading.Event, unused: threading.Event) -> None:
    with _libraries().limit(limits=1, user_api="blas"):
        limited.set()
        unused.wait()


@cache  # to look for them takes 4 ms, as long as the passes of a small fit
def _libraries() -> ThreadpoolController:
    import scipy.linalg.cython_blas  # noqa: F401  compiled code calls this one, whenever it is loaded

    return ThreadpoolController()


single_blas = _SingleBlas()
