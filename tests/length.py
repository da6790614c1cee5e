"""How long tests inject faults: at full length, or a share of it."""

from __future__ import annotations

import os


def at_length(n: int) -> int:
    """Return so many cases, times the share in ``DASKGMM_LENGTH``; at least one."""
    return max(1, round(n * float(os.environ.get("DASKGMM_LENGTH", "1"))))
