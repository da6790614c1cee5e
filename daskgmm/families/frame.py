"""The coordinates in which the passes do their arithmetic: ``z = W (x − shift)``.

Second moments about a far origin, or in units that differ by many powers of ten, lose every digit
that matters. A frame, taken from a sample of the rows, removes both before any product is formed.
It conditions the sums and nothing else: the fitted model does not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Rows = tuple[npt.NDArray[np.generic], Array | None]  # x (n, d), and weights (n,) where rows have some

_CLIP = 8.0  # robust deviations; one far row of the sample must not decide the directions
_RIDGE = 1e-6  # relative; bounds the frame's own condition number, whitening need not be exact
_NARROWER = 1e-2  # of the tolerance: components are narrower than the sample
TOLERANCE = 1e-6  # the share of a variance that may be lost to rounding


def lost(reach: Any) -> Any:
    """Share of a variance that sums about a centre ``reach`` standard deviations away lose to rounding."""
    return float(np.finfo(np.float64).eps) * reach * reach


@dataclass(frozen=True)
class Frame:
    """An affine map from the user's units to well-conditioned ones, and back.

    "User's units" of a model's parameters inside the package means ``u = x − shift``: the origin moves,
    the scale does not, so every covariance model and ``reg_covar`` keep their meaning.
    """

    shift: Array  # (d,)
    scale: Array  # (d,)
    directions: Array | None = None  # (d, d) steps in z, in scaled units, as columns; None: the identity
    radius: float = np.inf  # no row lies farther than this from the origin of z

    @staticmethod
    def identity(n_features: int) -> Frame:
        return Frame(np.zeros(n_features), np.ones(n_features))

    @staticmethod
    def of_sample(sample: Array, whiten: bool) -> Frame:
        """Fit a frame to ``sample`` (m, d): robust location and scale, and if asked the directions too."""
        low, shift, high = np.percentile(sample, [25, 50, 75], axis=0)  # at once, as this takes the most time
        deviation = sample - shift
        peak = np.abs(deviation).max(axis=0)
        unit = np.where(peak > 0, peak, 1.0)  # the mean square of 1e200 overflows, that of its ratio does not
        spread = unit * np.sqrt(np.mean((deviation / unit) ** 2, axis=0))
        iqr = (high - low) / 1.349  # of a normal distribution, in standard deviations
        scale = np.where(iqr > 0, iqr, np.where(spread > 0, spread, 1.0))
        if not whiten:
            return Frame(shift, scale)
        scaled = np.clip(deviation / scale, -_CLIP, _CLIP)
        covariance = np.atleast_2d(np.cov(scaled, rowvar=False, bias=True))
        variance = covariance.diagonal()
        covariance = covariance + np.diag(np.where(variance > 0, _RIDGE * variance, 1.0))
        return Frame(shift, scale, np.linalg.cholesky(covariance))

    def reaching(self, low: Array, high: Array) -> Frame:
        """Return the frame with a bound on ``|z|`` for rows inside the box ``low ≤ x ≤ high``.

        Where that is so far that sums about one common centre lose too much, each component is treated about its
        own mean, and whitening gains nothing. Instead the first axis points to the far corner of the box: squares of
        one far row, in however many features it is far, then stay out of the sums along the other axes.
        """
        above = high + low > 2 * self.shift
        far = np.where(above, high - self.shift, low - self.shift) / self.scale  # (d,)
        if self.directions is None:  # no matrix: there may be very many features
            return replace(self, radius=float(np.linalg.norm(far)))
        radius = float(np.linalg.norm(np.abs(self.whitening) @ np.abs(far)))
        if lost(radius) <= _NARROWER * TOLERANCE:
            return replace(self, radius=radius)
        return replace(self, directions=_reflection(far), radius=float(np.linalg.norm(far)))

    def upright(self) -> Frame:
        """Leave out the directions, which take time, where the features are not too correlated for that."""
        if self.directions is None:
            return self
        narrowest = float(np.linalg.norm(self.whitening, 2))  # 1 / the least deviation of the scaled sample
        radius = self.radius * float(np.linalg.norm(self.directions, 2))
        upright = replace(self, directions=None, radius=radius)
        return upright if lost(radius * narrowest) <= _NARROWER * TOLERANCE else self

    def apply(self, x: npt.NDArray[np.generic]) -> Array:
        """``z``, features first: (n, d) -> (d, n)."""
        z = x.T.astype(np.float64, order="C")  # features first in memory too: long, contiguous vectors
        z -= self.shift[:, None]
        if self.directions is not None:
            return self.matrix @ z
        z /= self.scale[:, None]
        return z

    def standardized(self, z: Array) -> Array:
        """Scaled but not whitened coordinates of z: (d, n)."""
        return z if self.directions is None else self.directions @ z

    def means_in(self, u: Array) -> Array:
        """User's units (k, d) to the frame."""
        y = u / self.scale
        return y if self.directions is None else y @ self.whitening.T

    def means_out(self, z: Array) -> Array:
        """The frame (k, d) to user's units."""
        return z * self.scale if self.directions is None else z @ self.unit.T

    def reach(self, u: Array) -> Array:
        """How far a step of no more than u (d,), in the user's units, may go along each axis of z: (d,)."""
        y = np.abs(u) / self.scale
        return y if self.directions is None else np.abs(self.whitening) @ y

    @cached_property
    def unit(self) -> Array:
        """``W⁻¹`` (d, d): a step in z, in the user's units."""
        return np.diag(self.scale) if self.directions is None else self.scale[:, None] * self.directions

    @cached_property
    def matrix(self) -> Array:
        """W (d, d)."""
        return self.whitening / self.scale

    @cached_property
    def whitening(self) -> Array:
        """W without the scale (d, d)."""
        if self.directions is None:
            return np.eye(len(self.scale))
        inverse: Array = np.linalg.inv(self.directions).astype(np.float64)
        return inverse


def _reflection(x: Array) -> Array:
    """The Householder matrix that maps the first axis to the line of x."""
    v = x / np.linalg.norm(x)
    v[0] += np.copysign(1, v[0])
    return np.eye(len(v)) - np.outer(v, v) * (2 / (v @ v))
