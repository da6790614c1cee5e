"""Gaussian components in the coordinates of a frame: what a pass over the rows needs of a model.

φ(z) = (1, z, zzᵀ) for whole covariances, (1, z, z²) for diagonal ones. With mean m and precision
Λ = F Fᵀ, ``log p(z) = log|F| − d/2 log 2π − ½‖Fᵀ(z − m)‖²``, and so
θ = (log w + log|F| − d/2 log 2π − ½ mᵀΛm, Λm, −½Λ).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dtrtri

from daskgmm.families.frame import TOLERANCE, Array, Frame, lost

_EPS = float(np.finfo(np.float64).eps)
# From so many features on, distances to the means take less time than products with φ (16 components: 860 ns a
# row with 32 features, 2100 to 2450 with 64, measured; 1200 and 4700 for φ, summed up from its parts).
_DIRECT_FEATURES = 32
_COARSE = 0.1  # of a squared deviation, for the farthest row in the worst direction: most lose a thousandth of that
_STRICT = 1e-8  # share of a variance that a moved mean may cost; another look is one pass, and rare
_COUNT_FLOOR = 10 * _EPS  # as in scikit-learn, so that iterates agree: an empty component still has a mean


@cache
def _triangle(d: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    return np.triu_indices(d)


@dataclass(frozen=True)
class GaussianComponents(ABC):
    """Gaussian components in the coordinates of a frame; densities stay per unit of the user's volume."""

    constants: Array  # (k,) log weight + log p(mean | k)
    means: Array  # (k, d)
    factors: Array  # as in GaussianParameters, of z
    frame: Frame
    pooled: bool = False  # do all have one covariance?
    about: Array | None = None  # (k, d) what the moments are to be about, where `ill_conditioned` does not decide

    @cached_property
    def ill_conditioned(self) -> npt.NDArray[np.bool_]:
        if self.about is not None:
            return np.ones(len(self.means), dtype=bool)
        # The own mean is held to what `recentred` would look at again, so that no pass is made twice for good.
        return ~((lost(self._reach) <= TOLERANCE) & (lost(self.centre_distance_in_sd) <= _STRICT))

    @property
    def _reach(self) -> Array:
        """As `own_reach`, of a row that sums of a component take: of distances to the means, only those it holds."""
        return self.centre_distance_in_sd if self._apart else self.frame.radius * self._narrowness

    @property
    def centre_distance_in_sd(self) -> Array:
        return np.linalg.norm(self.means, axis=1) * self._narrowness

    @property
    def _narrowness(self) -> Array:
        """Never below 1 / the narrowest standard deviation of each component: ‖F‖ (Frobenius), (k,)."""
        return np.linalg.norm(np.reshape(self.factors, (len(self.means), -1)), axis=1)

    @property
    def rounding_scale(self) -> Array:
        """Squares, of which distances are the differences; of what is treated about its own mean, deviations."""
        reach = self.frame.radius * self._narrowness
        return np.where(self.ill_conditioned | self._apart, reach, reach**2)

    @property
    def float32_suffices(self) -> bool:
        return bool((self._reach**2 * np.finfo(np.float32).eps <= _COARSE).all()) and not self.ill_conditioned.any()

    @property
    def linear(self) -> bool:
        return False

    @property
    def shares_quadratic(self) -> bool:
        return self.pooled and not self.ill_conditioned.any()

    @property
    @abstractmethod
    def products(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Which z_i z_j are in φ."""

    @property
    def _apart(self) -> bool:
        """Are distances to the means taken because it is faster?"""
        return False

    @property
    def uses_distances(self) -> npt.NDArray[np.bool_]:
        return self.ill_conditioned | (self._apart and not self.shares_quadratic)

    def take(self, ks: npt.NDArray[np.intp]) -> Self:
        """These of the components."""
        about = None if self.about is None else self.about[ks]
        return replace(self, constants=self.constants[ks], means=self.means[ks], factors=self.factors[ks], about=about)

    @cached_property
    def centres(self) -> Array:
        """What the moments of each component are about: (k, d)."""
        return np.where(self.ill_conditioned[:, None], self.means, 0.0) if self.about is None else self.about

    def averages(self, moments: Array) -> tuple[Array, Array, Array]:
        """Counts (k,), new means less the centres (k, d), and covariances about the new means, (k, d, d) or (k, d)."""
        d = self.means.shape[1]
        counts = moments[:, 0] + _COUNT_FLOOR
        mean_moments = moments / counts[:, None]
        delta = mean_moments[:, 1 : d + 1]
        return counts, delta, self._second(mean_moments[:, d + 1 :]) - self.squares(delta)

    def recentred(self, moments: Array) -> Self | None:
        """The components about the means that moments (k, p) give, if those lie too far from where they were summed.

        A mean may move by many of its component's new standard deviations in one step: as the component of a far
        row loses all others, or from the origin to where a start puts it.
        """
        _, delta, covariances = self.averages(moments)
        # Variances below _EPS of the sample's are compared as that: a component of equal rows is not looked at again.
        far = lost(delta) > _STRICT * (np.abs(self.variances(covariances)) + _EPS)
        return replace(self, about=self.centres + delta) if self.about is None and far.any() else None

    @cached_property
    def theta(self) -> Array:
        linear, quadratic = self._natural()
        constant = self.constants - 0.5 * np.einsum("ki,ki->k", linear, self.means)
        return np.column_stack([constant, linear, quadratic])

    @abstractmethod
    def _second(self, products: Array) -> Array:
        """Of all z_i z_j, given those in φ: (k, d, d) or (k, d)."""

    @staticmethod
    @abstractmethod
    def squares(deviations: Array) -> Array:
        """Of deviations (k, d): vvᵀ (k, d, d), or v² (k, d)."""

    @staticmethod
    @abstractmethod
    def variances(covariances: Array) -> Array:
        """The features' variances: (k, d)."""

    @abstractmethod
    def _natural(self) -> tuple[Array, Array]:
        """Λm (k, d) and the quadratic part of θ."""


class DenseComponents(GaussianComponents):
    """Whole covariances: factors (k, d, d)."""

    @staticmethod
    def factors_in(factors: Array, frame: Frame) -> Array:
        return frame.unit.T @ factors

    @staticmethod
    def log_det(factors: Array) -> Array:
        return np.log(np.einsum("kii->ki", factors)).sum(axis=1)

    @staticmethod
    def draw(factors: Array, k: int, normal: Array) -> Array:
        drawn: Array = solve_triangular(factors[k], normal.T, trans="T").T
        return drawn

    @staticmethod
    def mapped_out(covariances: Array, frame: Frame) -> Array:
        """Of u, in the user's units, given those of z in the frame."""
        mapped = frame.unit @ covariances @ frame.unit.T
        return (mapped + np.swapaxes(mapped, -1, -2)) / 2  # rounding may be all there is of a covariance

    @staticmethod
    def mapped_in(covariances: Array, frame: Frame) -> Array:
        """Of z, given those of u."""
        return frame.matrix @ covariances @ frame.matrix.T

    @staticmethod
    def triangular(factors: Array) -> Array:
        """Upper triangular F of the same F Fᵀ, with a positive diagonal: an RQ by the QR of what is turned round."""
        lower = np.asarray(np.linalg.qr(factors[:, ::-1].transpose(0, 2, 1), mode="r"))
        upper = lower.transpose(0, 2, 1)[:, ::-1, ::-1]
        return upper * np.sign(np.einsum("kii->ki", upper))[:, None, :]

    @staticmethod
    def regularize(covariances: Array, amount: float) -> Array:
        return covariances + amount * np.eye(covariances.shape[-1])

    @staticmethod
    def factorize(covariances: Array) -> Array:
        """Covariances (k, d, d) to F = L⁻ᵀ, Σ = L Lᵀ."""
        if not np.isfinite(covariances).all():  # LAPACK's does not always refuse these
            raise np.linalg.LinAlgError("a covariance is not finite")
        return np.array([dtrtri(lower, lower=1)[0].T for lower in np.linalg.cholesky(covariances)])

    @staticmethod
    def invert(precision: Array) -> tuple[Array, Array]:
        """One precision (d, d) to its covariance and F; reversing rows and columns makes F upper triangular."""
        factor = np.linalg.cholesky(precision[::-1, ::-1])[::-1, ::-1]
        inverse = solve_triangular(factor, np.eye(len(factor)))
        covariance: Array = inverse.T @ inverse
        return covariance, factor.astype(np.float64)

    @property
    def products(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        return _triangle(self.means.shape[1])

    @property
    def _apart(self) -> bool:
        return self.means.shape[1] >= _DIRECT_FEATURES and not self.pooled

    @staticmethod
    def variances(covariances: Array) -> Array:
        return np.einsum("kii->ki", covariances)

    def _second(self, products: Array) -> Array:
        k, d = self.means.shape
        rows, columns = self.products
        second = np.empty((k, d, d))
        second[:, rows, columns] = products
        second[:, columns, rows] = products
        return second

    @staticmethod
    def squares(deviations: Array) -> Array:
        return deviations[:, :, None] * deviations[:, None, :]

    def _natural(self) -> tuple[Array, Array]:
        precisions = self.factors @ self.factors.transpose(0, 2, 1)
        rows, columns = self.products
        quadratic = np.where(rows == columns, -0.5, -1.0) * precisions[:, rows, columns]
        return np.einsum("kij,kj->ki", precisions, self.means), quadratic


class DiagonalComponents(GaussianComponents):
    """Diagonal covariances: factors (k, d), the reciprocal standard deviations."""

    @staticmethod
    def factors_in(factors: Array, frame: Frame) -> Array:
        return frame.scale * factors

    @staticmethod
    def log_det(factors: Array) -> Array:
        return np.log(factors).sum(axis=1)

    @staticmethod
    def draw(factors: Array, k: int, normal: Array) -> Array:
        return normal / factors[k]

    @staticmethod
    def mapped_out(covariances: Array, frame: Frame) -> Array:
        return frame.scale**2 * covariances

    @staticmethod
    def mapped_in(covariances: Array, frame: Frame) -> Array:
        return covariances / frame.scale**2

    @staticmethod
    def triangular(factors: Array) -> Array:
        return factors

    @staticmethod
    def regularize(covariances: Array, amount: float) -> Array:
        return covariances + amount

    @staticmethod
    def factorize(covariances: Array) -> Array:
        if not np.all(covariances > 0):
            raise np.linalg.LinAlgError("a variance is not positive")
        return covariances**-0.5

    @staticmethod
    def invert(precision: Array) -> tuple[Array, Array]:
        if not np.all(precision > 0):
            raise np.linalg.LinAlgError("a precision is not positive")
        return 1 / precision, np.sqrt(precision)

    @property
    def products(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        each = np.arange(self.means.shape[1])
        return each, each

    @staticmethod
    def variances(covariances: Array) -> Array:
        return covariances

    def _second(self, products: Array) -> Array:
        return products

    @staticmethod
    def squares(deviations: Array) -> Array:
        return deviations**2

    def _natural(self) -> tuple[Array, Array]:
        precisions = self.factors**2
        return precisions * self.means, -0.5 * precisions
