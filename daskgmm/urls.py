"""URLs without the secrets that they may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_SECRETS = (
    # The user of a URL, or of the path that is left of one, up to the last @; a user without a scheme has a colon.
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
    """Return a URL or a text without its URLs' users, passwords and queries, which may be secret.

    Everything that is logged, printed, raised or written passes through here.
    """
    shown = str(text)
    for pattern, stars in _SECRETS:
        shown = pattern.sub(stars, shown)
    return shown


@dataclass(frozen=True)
class Hidden:
    """A URL whose secrets are hidden wherever it is printed, as when a worker logs a task's arguments."""

    url: str

    def __repr__(self) -> str:
        return repr(presentable(self.url))
