"""The options of a fit, and the mixtures to be fitted with them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from daskgmm.families.base import Family
from daskgmm.fitting.starts import Start


@dataclass(frozen=True)
class Options:
    """What a user asks of a fit; names and meanings are the estimator's."""

    n_components: int
    tol: float
    max_iter: int
    n_init: int
    init_params: str
    accelerate: bool
    subsample: int | None
    missing: str
    persist: bool | Literal["auto"]


OPTIONS = tuple(field.name for field in fields(Options))


@dataclass(frozen=True)
class Candidate:
    """A mixture to be fitted."""

    family: Family
    options: Options
    start: Start
