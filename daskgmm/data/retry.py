"""Retry failed reads and writes of a store, and report a lasting failure in one sentence."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from daskgmm.urls import presentable

T = TypeVar("T")

# Seconds between tries, each times a random factor of 0.5 to 1.5: workers that fail together retry at different times.
_PAUSES = (0.1, 0.4, 1.5)
_PATIENCE = 30.0  # seconds after which nothing is retried: clients of object stores retry for long by themselves
# Errors that say that there is nothing, or nothing that can be opened. A second later they would be raised again.
PERMANENT = (
    *(ValueError, LookupError, TypeError, AttributeError, ImportError, RecursionError),
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError),
)
_CHUNK_FAULTS = (  # how codecs say that a chunk differs from the one that was written
    ("fails its checksum", re.compile("checksum|crc check", re.I)),
    ("is truncated", re.compile("truncated|incomplete|bytes of|ended before|cannot reshape|must be a divisor", re.I)),
)
_DEBUG_DETAILS = re.compile(r" Debug source: .*|\| context: .*?(?=\|->|$)")  # of obstore and icechunk


class StoreUnavailable(OSError):
    """A store cannot be read after all tries, which says nothing of its contents."""


def retried(action: Callable[[], T], final: tuple[type[Exception], ...] = ()) -> T:
    """Return the result of an action, which is tried up to four times.

    Parameters
    ----------
    action : callable
        May be run again after an error.
    final : tuple of exception types
        Errors that end the tries at once, as do a lack of memory and `StoreUnavailable`, which an inner call raises.
    """
    final = (MemoryError, StoreUnavailable, *final)
    end = time.monotonic() + _PATIENCE
    for pause in _PAUSES:
        try:
            return action()
        except final:
            raise
        except Exception:  # each store and codec raises its own: an interrupted transfer looks like a wrong chunk
            if time.monotonic() > end:
                raise
            time.sleep(pause * random.uniform(0.5, 1.5))
    return action()


@contextmanager
def raise_as(
    failure: Callable[[Any, Exception], Exception], what: Any, passed: tuple[type[Exception], ...] = (MemoryError,)
) -> Iterator[None]:
    """Raise ``failure(what, error)`` in place of any error but those of the types ``passed``."""
    try:
        yield
    except passed:
        raise
    except Exception as error:
        raise failure(what, error) from cause(error)


def cause(error: BaseException) -> BaseException | None:
    """Return the error as a cause to raise from, or None if it or an error that it came from shows secrets."""
    link: BaseException | None = error
    while link is not None:
        if presentable(link) != str(link):
            return None
        link = link.__cause__ or link.__context__
    return error


def reason(error: BaseException) -> str:
    """Return the message of an error in one line, without secrets."""
    text = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return presentable(_DEBUG_DETAILS.sub("", text)).rstrip(".:") or type(error).__name__


def chunk_fault(error: BaseException) -> str:
    """Describe the fault of a chunk by the error that reading it raised."""
    kind = next((kind for kind, says in _CHUNK_FAULTS if says.search(str(error))), "cannot be read")
    return f"{kind} ({reason(error)})"


def read_error(what: str, error: BaseException) -> StoreUnavailable:
    """Build the error that something cannot be read after all tries."""
    return StoreUnavailable(
        f"cannot read {what} ({reason(error)}): see to the store, its limits and the permissions, and run the same "
        "again"
    )


def write_error(what: str, error: BaseException) -> OSError:
    """Build the error that something cannot be written after all tries."""
    return OSError(
        f"cannot write {what} ({reason(error)}): make space, or see to the permissions, and run the same again; "
        "what is written stays"
    )


def flush_to_disk(path: str | os.PathLike[str]) -> None:
    """Flush a file or a directory to the disk, before anything is written that relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
