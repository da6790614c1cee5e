"""Mixture models fitted by EM, on data larger than memory, on Dask.

Names are loaded when they are first used: a worker imports the kernel alone, and the command line
starts without scikit-learn.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from daskgmm.families import PRODUCTS

if TYPE_CHECKING:
    from daskgmm.data.open import open_samples
    from daskgmm.em.info import Info
    from daskgmm.estimators.bayesian import BayesianGaussianMixture
    from daskgmm.estimators.gaussian import GaussianMixture
    from daskgmm.estimators.mixture import load
    from daskgmm.estimators.selection import GaussianMixtureIC
    from daskgmm.families.prior import Prior

_PRODUCTS = {f"{family}Mixture": module for module, family in PRODUCTS.items()}
MIXTURES = ("GaussianMixture", "BayesianGaussianMixture", *_PRODUCTS)

__all__ = [
    *_PRODUCTS,
    "BayesianGaussianMixture",
    "GaussianMixture",
    "GaussianMixtureIC",
    "Info",
    "Prior",
    "load",
    "open_samples",
]

_HOMES = {
    "BayesianGaussianMixture": "daskgmm.estimators.bayesian",
    "GaussianMixture": "daskgmm.estimators.gaussian",
    "GaussianMixtureIC": "daskgmm.estimators.selection",
    "load": "daskgmm.estimators.mixture",
    "Info": "daskgmm.em.info",
    "Prior": "daskgmm.families.prior",
    "open_samples": "daskgmm.data.open",
}


def __getattr__(name: str) -> Any:
    if name in _PRODUCTS:
        return importlib.import_module("daskgmm.estimators.product").mixture_of(_PRODUCTS[name])
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
