"""What a store does not do at once: it is asked again; and what it does not do at all, in one sentence."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from daskgmm.urls import presentable

T = TypeVar("T")

_PAUSES = (0.1, 0.4, 1.5)  # seconds, between tries; half as long to half as long again, lest all workers come at once
_PATIENCE = 30.0  # seconds after which nothing is tried again: clients of object stores try for long by themselves
# What is raised where there is nothing, or nothing that can be opened, as it will be in a second.
PERMANENT = (
    *(ValueError, LookupError, TypeError, AttributeError, ImportError, RecursionError),
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError),
)
_KINDS = (  # how codecs say that a chunk is not what was written
    ("fails its checksum", re.compile("checksum|crc check", re.I)),
    ("is truncated", re.compile("truncated|incomplete|bytes of|ended before|cannot reshape|must be a divisor", re.I)),
)
_ASIDE = re.compile(r" Debug source: .*|\| context: .*?(?=\|->|$)")  # what obstore and icechunk say to developers


def retried(action: Callable[[], T], final: tuple[type[Exception], ...] = ()) -> T:
    """The result of an action that may be done again, whatever it raises but for a lack of memory and what is final."""
    final = (MemoryError, *final)
    end = time.monotonic() + _PATIENCE
    for pause in _PAUSES:
        try:
            return action()
        except final:
            raise
        except Exception:  # each store and codec raises its own: a transfer cut short looks like a chunk that is wrong
            if time.monotonic() > end:
                raise
            time.sleep(pause * random.uniform(0.5, 1.5))
    return action()


def reason(error: BaseException) -> str:
    """What an error says, in a line."""
    text = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return presentable(_ASIDE.sub("", text)).rstrip(".:") or type(error).__name__


def cause(error: BaseException) -> BaseException | None:
    """What an error may be raised from: it, unless it or what it came from holds what is not for all eyes."""
    seen: BaseException | None = error
    while seen is not None:
        if presentable(seen) != str(seen):
            return None
        seen = seen.__cause__ or seen.__context__
    return error


def what_is_wrong(error: BaseException) -> str:
    """What is the matter with a chunk that raised it when it was read."""
    kind = next((kind for kind, says in _KINDS if says.search(str(error))), "cannot be read")
    return f"{kind} ({reason(error)})"


def unread(what: str, error: BaseException) -> OSError:
    """The error that a store does not give something, after all tries."""
    return OSError(
        f"cannot read {what} ({reason(error)}): see to the store, its limits and the permissions, and run the same "
        "again"
    )


def unwritten(what: str, error: BaseException) -> OSError:
    """The error that something cannot be written."""
    return OSError(
        f"cannot write {what} ({reason(error)}): make space, or see to the permissions, and run the same again; "
        "what is written stays"
    )


def flush_to_disk(path: str | os.PathLike[str]) -> None:
    """Have a file or a directory on the disk before anything that relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
