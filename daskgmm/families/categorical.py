"""Products of categorical distributions: T(x) is 1 in the place of its level and 0 elsewhere, η = log p, A = 0."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from daskgmm.families.frame import Array
from daskgmm.families.product import Product, log_floored


@dataclass(frozen=True)
class Categorical(Product):
    """Latent class analysis: a mixture of categorical variables, independent within a component (class).

    A feature's levels are 0, 1, … up to the largest that the fit has seen. ``means_`` are their probabilities, one
    feature after another. The prior of each feature's is Dirichlet(1 + alpha, …), the smoothing of scikit-learn's
    CategoricalNB.
    """

    leveled = True

    @property
    def needs(self) -> str:
        if not self.levels:
            return "levels: 0, 1, 2, …"
        return (
            "levels that the fit has seen, "
            + ", ".join(f"0 to {n - 1}" for n in self.levels[:5])
            + (", …" if len(self.levels) > 5 else "")
        )

    def outside(self, x: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        limit = np.array(self.levels) if self.levels else np.inf
        return ((x < 0) | (x != np.floor(x)) | (x >= limit)) & np.isfinite(x)

    def informed(self, rows: Array, weights: Array, low: Array, high: Array, k: int) -> Self:
        levels = tuple(int(top) + 1 for top in high)
        return replace(super().informed(rows, weights, low, high, k), levels=levels)

    def statistic(self, x: Array) -> Array:
        level = np.concatenate([np.arange(n) for n in self.levels])
        return (x[:, self.columns] == level).astype(np.float64)

    def natural(self, means: Array) -> tuple[Array, Array]:
        return log_floored(means), np.zeros((len(means), self.n_features))

    def held(self, means: Array, within: Array) -> Array:
        means = np.maximum(means, within / 10)
        starts = np.cumsum((0, *self.levels[:-1]))
        return means / np.add.reduceat(means, starts, axis=1)[:, self.columns]

    def neutral(self) -> tuple[Array, Array]:
        levels = np.array(self.levels, dtype=np.float64)[self.columns]
        return self.alpha * levels, 1 / levels

    def free(self) -> int:
        return sum(self.levels) - len(self.levels)

    def draw(self, means: Array, n: int, rng: np.random.RandomState) -> Array:
        parts = np.split(means, np.cumsum(self.levels)[:-1])
        return np.column_stack([rng.choice(len(p), n, p=p / p.sum()) for p in parts]).astype(np.float64)
