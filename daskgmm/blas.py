"""BLAS on one thread, as what one or more of them compute differs in the last bits; and what it is made for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController

from daskgmm.shared import Shared


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
