"""Mixture models fitted by EM, on data larger than memory, on Dask.

Names are loaded when they are first used: a worker imports the kernel alone, and the command line
starts without scikit-learn.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskgmm.data.open import open_samples
    from daskgmm.em.loop import Info
    from daskgmm.estimators.gaussian import GaussianMixture, load
    from daskgmm.estimators.selection import GaussianMixtureIC
    from daskgmm.families.prior import Prior

__all__ = ["GaussianMixture", "GaussianMixtureIC", "Info", "Prior", "load", "open_samples"]

_HOMES = {
    "GaussianMixture": "daskgmm.estimators.gaussian",
    "GaussianMixtureIC": "daskgmm.estimators.selection",
    "load": "daskgmm.estimators.gaussian",
    "Info": "daskgmm.em.loop",
    "Prior": "daskgmm.families.prior",
    "open_samples": "daskgmm.data.open",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
