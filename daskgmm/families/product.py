"""Families of independent features, each an exponential family in one statistic of its own: Bernoulli, Poisson, …

``log p(x | k) = Σ_j T(x_j)·η_kj − A(η_kj) + h(x_j)`` is linear in the columns T(x) and Σ h(x): of these, φ(z) = (1, z).
A value that is missing leaves out its term of the sum, which is exact: then z has T(x) and the places where there is a
value, and φ·θ counts A only there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from daskgmm.families.encoding import FeatureEncoding
from daskgmm.families.frame import Array, Frame

# What the logarithm of a probability of zero counts as: nothing beside any other, and finite, as zero times it must be.
_LOG_ZERO = -700.0
_COUNT_FLOOR = 10 * float(np.finfo(np.float64).eps)  # as in scikit-learn
_COARSE = 0.1  # nats of a row that single precision may lose, at most, before the last passes
_NONE = np.empty(0, np.intp)


def log_floored(p: Array) -> Array:
    """log p, but not minus infinity, also where rounding has left less than nothing."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(np.maximum(p, 0)), _LOG_ZERO)


@dataclass(frozen=True)
class ProductParameters:
    """A mixture of products."""

    weights: Array  # (k,)
    means: Array  # (k, q): of the statistics

    def moved(self, by: Array) -> ProductParameters:
        return self


@dataclass(frozen=True)
class LinearComponents:
    """Components with φ(z) = (1, z); implements `daskgmm.families.base.Components`."""

    theta: Array  # (k, 1 + q)
    frame: Frame
    linear: ClassVar[bool] = True
    shares_quadratic: ClassVar[bool] = False

    @property
    def constants(self) -> Array:
        return self.theta[:, 0]

    @cached_property
    def means(self) -> Array:
        return np.zeros((len(self.theta), self.theta.shape[1] - 1))

    @property
    def centres(self) -> Array:
        return self.means

    @property
    def factors(self) -> Array:
        """None: no distance to a mean is taken."""
        return np.zeros((len(self.theta), 0))

    @property
    def products(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        return _NONE, _NONE

    @property
    def ill_conditioned(self) -> npt.NDArray[np.bool_]:
        return np.zeros(len(self.theta), np.bool_)

    @property
    def uses_distances(self) -> npt.NDArray[np.bool_]:
        return self.ill_conditioned

    @property
    def centre_distance_in_sd(self) -> Array:
        return np.zeros(len(self.theta))

    @property
    def float32_suffices(self) -> bool:
        """Large counts, say, have log densities that differ by little of what they are."""
        return bool(self.rounding_scale.max() * np.finfo(np.float32).eps <= _COARSE)

    @property
    def rounding_scale(self) -> Array:
        return np.abs(self.theta[:, 1:]).sum(axis=1) * self.frame.radius

    def take(self, ks: npt.NDArray[np.intp]) -> LinearComponents:
        return replace(self, theta=self.theta[ks])

    def recentred(self, moments: Array) -> None:
        return None


@dataclass(frozen=True)
class Product(FeatureEncoding, ABC):
    """A family of independent features; implements `daskgmm.families.base.Family`. One subclass a distribution.

    Parameters
    ----------
    alpha : float
        Strength of the conjugate prior, in rows; 0: none. The M-step maximizes the posterior density.
    partial : bool
        Are missing values left out of their rows, rather than rows that have some?
    levels : tuple of int
        Columns of T that each feature has; known after `with_data`.
    """

    alpha: float = 0.0
    partial: bool = False
    levels: tuple[int, ...] = ()
    leveled: ClassVar[bool] = False  # may a feature have more than one column?

    @abstractmethod
    def natural(self, means: Array) -> tuple[Array, Array]:
        """η (k, q), and A of each feature (k, d), of the distributions with these expectations of T (k, q)."""

    @abstractmethod
    def clip_means(self, means: Array, within: Array) -> Array:
        """Expectations of T (k, q), no nearer to the edge of what is possible than a tenth of the way of others are."""

    @abstractmethod
    def prior_counts_and_means(self) -> tuple[Array, Array]:
        """The prior's rows: how many each column has (q,), and the mean of T there (q,)."""

    @abstractmethod
    def n_parameters_per_component(self) -> int:
        """Free parameters of a component."""

    @abstractmethod
    def draw(self, means: Array, n: int, rng: np.random.RandomState) -> Array:
        """n rows (n, d) of a component with these expectations (q,)."""

    def statistic(self, x: Array) -> Array:
        """T(x) of values that are not missing (n, d): (n, q)."""
        return x

    def base(self, x: Array) -> Array | None:
        """Σ_j h(x_j) of each row (n, d); None: zero."""
        return None

    def possible(self, means: Array) -> bool:
        """May these be expectations of T (k, q)?"""
        return bool((means >= 0).all())

    @property
    def n_features(self) -> int:
        return len(self.levels)

    @property
    def columns(self) -> npt.NDArray[np.intp]:
        """The feature that each column of T belongs to: (q,)."""
        return np.repeat(np.arange(len(self.levels)), self.levels)

    # What it is to a fit

    likelihood_is_bounded = True
    restarts_empty_components = True

    @property
    def encoding(self) -> Self:
        return self

    def with_data(self, rows: Array, weights: Array, low: Array, high: Array, k: int) -> Self:
        return replace(self, levels=(1,) * rows.shape[1])

    def check(self, rows: Array, low: Array, high: Array, k: int, names: Sequence[str]) -> None:
        """Refuse a feature without a value; no likelihood is without bounds."""
        for name, top in zip(names, high, strict=True):
            if not np.isfinite(top):
                raise ValueError(f"feature {name} has no value in any row: drop it")

    def frame(self, sample: Array, low: Array, high: Array) -> Frame:
        return replace(Frame.identity(sample.shape[1]), radius=float(np.abs(sample).max()))

    def n_parameters(self, k: int, d: int) -> int:
        return k - 1 + k * self.n_parameters_per_component()

    # Rows as columns

    @property
    def plain(self) -> bool:
        """Zeros and ones, say, are read as they are stored."""
        own = type(self)
        return not self.partial and own.statistic is Product.statistic and own.base is Product.base

    @property
    def skips(self) -> bool:
        return self.partial

    def width(self, d: int) -> int:
        return self.encode(np.zeros((1, d))).shape[1]

    def encode(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.plain:
            return x
        there = np.isfinite(x)
        whole = np.where(there, x, 0).astype(np.float64)
        parts = [self.statistic(whole)]
        if self.partial:
            parts = [parts[0] * there[:, self.columns], there]
        base = self.base(whole)
        out = np.column_stack(parts if base is None else [*parts, base])
        out[~self.usable(there)] = np.nan
        return out

    # EM

    def components(self, parameters: ProductParameters, frame: Frame) -> LinearComponents:
        shape = len(parameters.weights), len(self.columns)
        if parameters.means.shape != shape:  # of a start, before the levels of the features were known
            raise ValueError(
                f"The parameter 'means' should have the shape of {shape}, but got {parameters.means.shape}: "
                "give one for each level that the data have"
            )
        with np.errstate(divide="ignore"):  # a weight of zero is log weight −inf, and stays so
            log_weights = np.log(parameters.weights)
        natural, normalizers = self.natural(parameters.means)
        if self.partial:
            theta = np.column_stack([log_weights, natural, -normalizers])
        else:
            theta = np.column_stack([log_weights - normalizers.sum(axis=1), natural])
        base = np.ones((len(theta), 1 + len(frame.shift) - theta.shape[1]))
        return LinearComponents(np.hstack([theta, base]), frame)

    def zero_components(self, k: int, frame: Frame) -> LinearComponents:
        return LinearComponents(np.zeros((k, 1 + len(frame.shift))), frame)

    def maximize(self, components: LinearComponents, moments: Array) -> ProductParameters:
        """M-step: the means of T over a component's rows, and those of the prior."""
        q = len(self.columns)
        more, there = self.prior_counts_and_means()
        rows, sums = self._rows(moments) + more, moments[:, 1 : 1 + q] + more * there
        seen = rows > 0  # a component that has seen no value of a feature is there as all others together
        of_all = sums.sum(axis=0) / np.maximum(rows.sum(axis=0), _COUNT_FLOOR)
        means = np.where(seen, sums, of_all) / np.where(seen, rows, 1)
        counts = moments[:, 0] + _COUNT_FLOOR
        return ProductParameters(counts / counts.sum(), means)

    def clip_moments(self, moments: Array, image: Array) -> Array:
        """A mean on its edge would stay there, as no row is possible then that would move it."""
        rows, q = self._rows(moments), len(self.columns)
        if not (rows > 0).all():
            return moments
        of_image = image[:, 1 : 1 + q] / np.maximum(self._rows(image), _COUNT_FLOOR)
        found = moments.copy()
        found[:, 1 : 1 + q] = rows * self.clip_means(moments[:, 1 : 1 + q] / rows, of_image)
        return found

    def max_decrease(self, before: ProductParameters, after: ProductParameters, counts: Array, frame: Frame) -> float:
        return 0.0

    def _rows(self, moments: Array) -> Array:
        """How many rows each component has seen each column's feature of: (k, q) or (k, 1)."""
        q = len(self.columns)
        return moments[:, 1 + q : 1 + q + self.n_features][:, self.columns] if self.partial else moments[:, :1]

    def log_prior(self, parameters: ProductParameters, frame: Frame) -> float:
        if self.alpha == 0:
            return 0.0
        natural, normalizers = self.natural(parameters.means)
        rows, means = self.prior_counts_and_means()
        of_feature = rows[np.unique(self.columns, return_index=True)[1]]
        return float((rows * means * natural).sum() - (of_feature * normalizers).sum())

    def reseed(self, alive: ProductParameters, dead: Sequence[int], rows: Array) -> ProductParameters:
        """Halfway between a row and all others: on a row alone, a component would be for its like only."""
        k = len(alive.weights) + len(dead)
        kept = np.setdiff1d(np.arange(k), dead)
        q = len(self.columns)
        of_all = alive.weights @ alive.means
        seen = rows[:, q : q + self.n_features][:, self.columns] if self.partial else 1
        weights, means = np.full(k, 1 / k), np.empty((k, q))
        weights[kept] = alive.weights * len(kept) / k
        means[kept], means[dead] = alive.means, of_all + (rows[:, :q] - of_all) * seen / 2
        return ProductParameters(weights, means)

    def sample(
        self, parameters: ProductParameters, n: int, rng: np.random.RandomState
    ) -> tuple[Array, npt.NDArray[np.intp]]:
        """n rows (n, d), and the components they come from (n,), sorted by component."""
        counts = rng.multinomial(n, parameters.weights)
        rows = [self.draw(mean, count, rng) for mean, count in zip(parameters.means, counts, strict=True)]
        return np.concatenate(rows), np.repeat(np.arange(len(counts)), counts)
