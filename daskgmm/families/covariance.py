"""Covariance models: functions from moments to covariances that never see data.

A model is named by three letters, for volume, shape and orientation: E equal, V varying over the
components, I the identity (Celeux & Govaert 1995, Pattern Recognition 28, table 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CovarianceModel:
    """One covariance model.

    A diagonal model sees and returns the variances (k, d), any other one whole matrices (k, d, d).
    """

    name: str  # scikit-learn's
    code: str  # volume, shape, orientation
    estimate: Callable[[Array, Array], Array]  # (counts (k,), per-component covariances) -> covariances
    compact: Callable[[Array], Array]  # (k, …) -> the shape under which the name's users know it
    expand: Callable[[Array, int, int], Array]  # that shape, k, d -> (k, …)
    shape: Callable[[int, int], tuple[int, ...]]  # k, d -> that shape

    @property
    def diagonal(self) -> bool:
        return self.code[2] == "I"

    @property
    def linear(self) -> bool:
        """Is a linear map of the features, with each covariance mapped, still of this model?"""
        return self.code[2] == self.code[1] != "I"

    @property
    def pooled(self) -> bool:
        """Do all components have one covariance?"""
        return "V" not in self.code

    def n_parameters(self, k: int, d: int) -> int:
        """Free parameters of the covariances: volume + shape + orientation."""
        times = {"E": 1, "V": k, "I": 0}
        volume, shape, orientation = (times[letter] for letter in self.code)
        return volume + shape * (d - 1) + orientation * d * (d - 1) // 2


def _full(counts: Array, scatter: Array) -> Array:
    return scatter


def _tied(counts: Array, scatter: Array) -> Array:
    pooled = np.tensordot(counts / counts.sum(), scatter, axes=1)
    return np.broadcast_to(pooled, scatter.shape).copy()


def _diag(counts: Array, variances: Array) -> Array:
    return variances


def _spherical(counts: Array, variances: Array) -> Array:
    return np.broadcast_to(variances.mean(axis=1, keepdims=True), variances.shape).copy()


MODELS = {
    model.name: model
    for model in (
        CovarianceModel("full", "VVV", _full, lambda c: c, lambda c, k, d: c, lambda k, d: (k, d, d)),
        CovarianceModel(
            "tied",
            "EEE",
            _tied,
            lambda c: c[0],
            lambda c, k, d: np.broadcast_to(c, (k, d, d)).copy(),
            lambda k, d: (d, d),
        ),
        CovarianceModel("diag", "VVI", _diag, lambda c: c, lambda c, k, d: c, lambda k, d: (k, d)),
        CovarianceModel(
            "spherical",
            "VII",
            _spherical,
            lambda c: c[:, 0],
            lambda c, k, d: np.repeat(c[:, None], d, axis=1),
            lambda k, d: (k,),
        ),
    )
}
