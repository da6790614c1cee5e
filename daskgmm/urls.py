"""URLs as people may see them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_HIDDEN = (
    # Of a URL, and of the path that is left of one: the user, and whatever has a colon, up to the last @.
    (re.compile(r"://(?:[^\s'\":]*:[^\s'\"]*|[^\s'\"/?@]*)@"), "://***@"),
    (re.compile(r"(?<![^\s'\"(<,/])[^\s'\"(<,/:@]+:(?!//)[^\s'\"]+@"), "***@"),
    (re.compile(r"\?[^\s'\"?]*=[^\s'\">)]*"), "?***"),  # a query
    (
        re.compile(  # options of a store, as arguments and as a dict
            r"(?i)\b((?:\w+_)?(?:token|secret|password|passwd|signature|sig|(?:access|secret|account|api)_?key)|key(?=['\"]))"
            r"(=|'\s*:\s*|\"\s*:\s*)(?:'[^']*'|\"[^\"]*\"|[^\s'\"&,;>)}]+)"
        ),
        r"\1\2***",
    ),
)


def presentable(text: Any) -> str:
    """A URL, or a text with some, without users, passwords and queries, which may hold secrets.

    For all that is logged, printed, raised or written.
    """
    shown = str(text)
    for pattern, stars in _HIDDEN:
        shown = pattern.sub(stars, shown)
    return shown


@dataclass(frozen=True)
class Hidden:
    """A URL that is shown without its secrets wherever it is printed: in what a worker logs of a task, say."""

    url: str

    def __repr__(self) -> str:
        return repr(presentable(self.url))
