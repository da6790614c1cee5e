"""Where a page is written to: whole or not at all, and nobody else's file is replaced."""

from __future__ import annotations

from dataclasses import replace

from daskgmm.data.retry import retried
from daskgmm.reporting.page import GENERATOR
from daskgmm.storage.groups import Target

_MARK = f'<meta name="generator" content="{GENERATOR}">'.encode()
_HEAD = 1000  # bytes within which it stands


def check_free(path: str, overwrite: bool) -> None:
    """Refuse a path before a pass over the data, if the page could not be written there.

    Raises
    ------
    FileExistsError
        There is something already, and ``overwrite`` is False or it is no report.
    """
    folder, name = _place(path)
    if not retried(lambda: folder.fs.exists(f"{folder.root}/{name}")):
        return
    if folder.fs.isdir(f"{folder.root}/{name}") or _MARK not in folder.read(name)[:_HEAD]:
        raise FileExistsError(f"{folder.shown!r} exists and is no report of daskgmm's: choose another path")
    if not overwrite:
        raise FileExistsError(f"{folder.shown!r} exists: choose another path, or overwrite it (--overwrite)")


def write(path: str, text: str) -> None:
    """Write a page; a reader sees all of it or what was there before.

    Raises
    ------
    OSError
        It cannot be written.
    """
    folder, name = _place(path)
    folder.write(name, text.encode("utf-8", "replace"))


def _place(path: str) -> tuple[Target, str]:
    """The folder of a file, and the file's name in it; shown is the whole path."""
    target = Target.at(path)
    root, _, name = target.root.rpartition("/")
    return replace(target, root=root), name
