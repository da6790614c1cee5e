"""Products of categorical distributions: T(x) is 1 in the place of its level and 0 elsewhere, η = log p, A = 0."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from daskgmm.families.frame import Array
from daskgmm.families.product import Product, log_floored

Levels = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Categorical(Product):
    """Latent class analysis: a mixture of categorical variables, independent within a component (class).

    A feature's levels are the ``flag_values`` of an xarray variable, the categories of a pandas column, or else 0, 1, …
    up to the largest that the fit has seen. ``means_`` are their probabilities, one feature after another. The prior of
    each feature's is Dirichlet(1 + alpha, …), the smoothing of scikit-learn's CategoricalNB.
    """

    values: Levels = ()  # of each feature's levels; none where they are yet to be seen

    leveled = True

    @property
    def needs(self) -> str:
        return "levels that the fit knows, see categories_" if self.levels else "levels: 0, 1, 2, …, or its flag_values"

    def outside(self, x: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        found = ((x < 0) | (x != np.floor(x))) & np.isfinite(x)
        for j, values in enumerate(self.values):
            if values:
                found[:, j] = np.isfinite(x[:, j]) & ~np.isin(x[:, j], values)
        return found

    def with_data(self, rows: Array, weights: Array, low: Array, high: Array, k: int) -> Self:
        given = self.values or ((),) * len(high)
        values = tuple(
            some or tuple(map(float, range(int(np.nan_to_num(top)) + 1))) for some, top in zip(given, high, strict=True)
        )
        return replace(self, values=values, levels=tuple(map(len, values)))

    def statistic(self, x: Array) -> Array:
        return (x[:, self.columns] == np.concatenate(self.values)).astype(np.float64)

    def natural(self, means: Array) -> tuple[Array, Array]:
        return log_floored(means), np.zeros((len(means), self.n_features))

    def clip_means(self, means: Array, within: Array) -> Array:
        means = np.maximum(means, within / 10)
        starts = np.cumsum((0, *self.levels[:-1]))
        return means / np.add.reduceat(means, starts, axis=1)[:, self.columns]

    def possible(self, means: Array) -> bool:
        starts = np.cumsum((0, *self.levels[:-1]))
        return super().possible(means) and np.allclose(np.add.reduceat(means, starts, axis=1), 1, rtol=0, atol=1e-6)

    def prior_counts_and_means(self) -> tuple[Array, Array]:
        levels = np.array(self.levels, dtype=np.float64)[self.columns]
        return self.alpha * levels, 1 / levels

    def n_parameters_per_component(self) -> int:
        return sum(self.levels) - len(self.levels)

    def draw(self, means: Array, n: int, rng: np.random.RandomState) -> Array:
        parts = np.split(means, np.cumsum(self.levels)[:-1])
        return np.column_stack([rng.choice(v, n, p=p / p.sum()) for v, p in zip(self.values, parts, strict=True)])
