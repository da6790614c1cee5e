"""Products of Poisson distributions: T(x) = x, η = log λ, A = λ, h = −log x!."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from daskgmm.families.frame import Array
from daskgmm.families.product import Product, log_floored

_LOG_FACTORIALS = gammaln(np.arange(1, 2**12 + 1))  # to look one up takes a tenth of the time


@dataclass(frozen=True)
class Poisson(Product):
    """Mixture of products of Poisson distributions: counts, independent within a component.

    ``means_`` are the rates. The prior of each is a gamma distribution that is worth alpha rows of the mean of all.
    """

    overall: tuple[float, ...] = ()  # the mean of all rows

    needs = "counts: 0, 1, 2, …"

    def outside(self, x: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        return ((x < 0) | (x != np.floor(x))) & np.isfinite(x)

    def with_data(self, rows: Array, weights: Array, low: Array, high: Array, k: int) -> Self:
        there = np.isfinite(rows)
        sums = weights @ np.where(there, rows, 0)
        overall = sums / np.maximum(weights @ there, np.finfo(np.float64).tiny)
        return replace(super().with_data(rows, weights, low, high, k), overall=tuple(overall.tolist()))

    def base(self, x: Array) -> Array:
        small = x < len(_LOG_FACTORIALS)
        found = _LOG_FACTORIALS[np.where(small, x, 0).astype(np.intp)]
        if not small.all():
            found[~small] = gammaln(x[~small] + 1)
        return -found.sum(axis=1)

    def natural(self, means: Array) -> tuple[Array, Array]:
        return log_floored(means), means

    def clip_means(self, means: Array, within: Array) -> Array:
        return np.maximum(means, within / 10)

    def prior_counts_and_means(self) -> tuple[Array, Array]:
        return np.full(self.n_features, self.alpha), np.array(self.overall or np.zeros(self.n_features))

    def n_parameters_per_component(self) -> int:
        return self.n_features

    def draw(self, means: Array, n: int, rng: np.random.RandomState) -> Array:
        return rng.poisson(means, (n, len(means))).astype(np.float64)
