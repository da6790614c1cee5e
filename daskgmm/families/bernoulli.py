"""Products of Bernoullis: T(x) = x, η = log p / (1 − p), A = −log(1 − p)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.families.frame import Array
from daskgmm.families.product import Product, log_floored


@dataclass(frozen=True)
class Bernoulli(Product):
    """Mixture of multivariate Bernoullis: zeros and ones, independent within a component.

    ``means_`` are the probabilities of a one. The prior of each is Beta(1 + alpha, 1 + alpha), the smoothing of
    scikit-learn's BernoulliNB.
    """

    needs = "zeros and ones"

    def outside(self, x: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        return (x != 0) & (x != 1) & np.isfinite(x)

    def natural(self, means: Array) -> tuple[Array, Array]:
        log_zero = log_floored(1 - means)
        return log_floored(means) - log_zero, -log_zero

    def clip_means(self, means: Array, within: Array) -> Array:
        return np.clip(means, within / 10, 1 - (1 - within) / 10)

    def possible(self, means: Array) -> bool:
        return bool(((means >= 0) & (means <= 1 + 1e-9)).all())

    def prior_counts_and_means(self) -> tuple[Array, Array]:
        return np.full(self.n_features, 2 * self.alpha), np.full(self.n_features, 0.5)

    def n_parameters_per_component(self) -> int:
        return self.n_features

    def draw(self, means: Array, n: int, rng: np.random.RandomState) -> Array:
        return (rng.random_sample((n, len(means))) < means).astype(np.float64)
