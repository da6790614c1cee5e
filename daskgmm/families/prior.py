"""Conjugate priors: rows that a component has beside those of the data, as one M-step sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daskgmm.families.covariance import CovarianceModel
from daskgmm.families.frame import Array, Frame


@dataclass(frozen=True, eq=False)
class Prior:
    """A conjugate prior for a Gaussian mixture; with it a fit maximizes the posterior density (MAP).

    ``μ_k | Σ_k ~ N(mean, Σ_k / shrinkage)``, and ``Σ_k`` inverse Wishart with ``dof`` degrees of freedom and the scale
    matrix ``scale``; where the model has them diagonal or spherical, variances are inverse gamma, with ``dof / 2`` and
    ``scale / 2``. Defaults and M-steps are those of Fraley & Raftery 2007, Bayesian Regularization for Normal Mixture
    Estimation and Model-Based Clustering, J. Classification 24, as in mclust's ``priorControl()``. In the models that
    they do not treat, and mclust does (VEI, EVI, EEV, VEV), the prior is worth as many rows as there; in VEE and VVE as
    in VVV; in EVE and EVV it is to EVI what EEE's is to EEI. The weights are Dirichlet.

    Parameters
    ----------
    mean : array-like (n_features,), optional
        That of the rows.
    shrinkage : float, default=0.01
        Rows that the mean is worth.
    dof : float, optional
        n_features + 2.
    scale : float or array-like (n_features,) or (n_features, n_features), optional
        A multiple of the identity, a diagonal, or a whole matrix (not for diagonal models), in the squared units of the
        data. By default the covariance of the rows, or for diagonal models the mean variance, over
        ``n_components ** (2 / n_features)``. Rows are those of the fit's sample, where it has one.
    weight_concentration : float, default=1
        Of the Dirichlet prior; 1: all weights are equally likely.

    Raises
    ------
    ValueError
        A number is out of its range.
    """

    mean: npt.ArrayLike | None = None
    shrinkage: float = 0.01
    dof: float | None = None
    scale: npt.ArrayLike | None = None
    weight_concentration: float = 1.0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("shrinkage", self.shrinkage, 0),
            ("dof", 0 if self.dof is None else self.dof, 0),
            ("weight_concentration", self.weight_concentration, 1),  # below, weights of zero are infinitely likely
        ):
            if not (np.isfinite(value) and value >= least):
                raise ValueError(f"the prior's {name} is {value}: give a number not below {least}")

    def with_data(self, model: CovarianceModel, rows: Array, weights: Array, k: int) -> Conjugate:
        """What it comes to for k components of a model, given weighted rows (m, d) in the user's units.

        Raises
        ------
        ValueError
            Its mean or scale does not fit the features or the model.
        """
        d = rows.shape[1]
        mean = np.average(rows, axis=0, weights=weights) if self.mean is None else shaped("mean", self.mean, [(d,)])
        if self.scale is None:
            scale = np.full(d, variances(rows, weights).mean()) if model.diagonal else covariance(rows, weights)
            scale = scale / k ** (2 / d)
        else:
            scale = self._start_from_params(model, d)
        dof = d + 2 if self.dof is None else self.dof
        each, shared = _rows(dof, d)[model.code]
        scatter = scale / d if model.code[1] == "I" else scale
        return Conjugate(mean, self.shrinkage, each, shared, scatter, model.pooled, self.weight_concentration)

    def _start_from_params(self, model: CovarianceModel, d: int) -> Array:
        """The scale that the user gives: (d, d), or (d,) for a diagonal model."""
        shapes: list[tuple[int, ...]] = [(), (d,)] if model.diagonal else [(), (d,), (d, d)]
        scale = shaped("scale", self.scale, shapes)
        whole = scale if scale.ndim == 2 else scale * np.eye(d)
        if not (np.array_equal(whole, whole.T) and np.linalg.eigvalsh(whole)[0] > 0):
            raise ValueError("the prior's scale is not symmetric and positive definite: give such a one")
        return whole.diagonal().copy() if model.diagonal else whole


@dataclass(frozen=True)
class Conjugate:
    """A prior as sums over rows: log p = ½ Σ_k (rows log|Λ_k| − tr(scatter Λ_k) − shrinkage ‖μ_k − mean‖²_Λ) + …"""

    mean: Array  # (d,) in the user's units
    shrinkage: float
    each: float  # rows of each component
    shared: float  # rows of all together
    scatter: Array  # (d, d) or (d,), their sum of squares
    pooled: bool  # is it shared, too?
    weight_concentration: float

    def rows(self, k: int) -> float:
        """Of one of k components."""
        return self.each + self.shared / k

    def squares(self, k: int) -> Array:
        """The sum of squares of one of k components: (d, d) or (d,)."""
        return self.scatter / k if self.pooled else self.scatter

    def rounding(self, frame: Frame, factors: Array, counts: Array) -> Array:
        """The share of a variance along F (k, d, d), both in the frame, that rounding of the sum may come to: (k,)."""
        w, inverse = np.abs(frame.matrix), np.abs(factors)
        given = w @ np.abs(self.squares(len(counts))) @ w.T
        return np.asarray(np.finfo(np.float64).eps * (inverse * (given @ inverse)).sum(axis=1).max(axis=1) / counts)


def _rows(dof: float, d: int) -> dict[str, tuple[float, float]]:
    """By model, rows that each component has, and that all share: the covariance's prior's, and one of the mean's."""
    gamma, wishart = dof + 2, dof + d + 1
    return {
        "EII": (1, gamma / d),
        "VII": (1 + gamma / d, 0),
        "EEI": (1, gamma),
        "VEI": ((1 + gamma) / d, 0),
        "EVI": (1, gamma),
        "VVI": (1 + gamma, 0),
        "EEE": (1, wishart),
        "VEE": (1 + wishart, 0),
        "EVE": (1, wishart),
        "VVE": (1 + wishart, 0),
        "EEV": (0, wishart),
        "VEV": (0, 0),
        "EVV": (1, wishart),
        "VVV": (1 + wishart, 0),
    }


def variances(rows: Array, weights: Array) -> Array:
    """Unbiased, of weighted rows (m, d), where a weight of 2 is the row twice: (d,)."""
    total = weights.sum()
    squares = (rows - np.average(rows, axis=0, weights=weights)) ** 2
    return np.average(squares, axis=0, weights=weights) * (total / max(total - 1, 1))


def covariance(rows: Array, weights: Array) -> Array:
    """Compute the covariance of weighted rows (d, d), diagonal where the rows span no more."""
    if len(rows) <= rows.shape[1]:
        return np.diag(variances(rows, weights))
    total = weights.sum()
    return np.atleast_2d(np.cov(rows, rowvar=False, aweights=weights, ddof=0)) * (total / max(total - 1, 1))


def shaped(name: str, value: npt.ArrayLike | None, shapes: list[tuple[int, ...]]) -> Array:
    array = np.asarray(value, dtype=np.float64)
    if array.shape not in shapes or not np.isfinite(array).all():
        allowed = " or ".join(map(str, shapes))
        raise ValueError(f"the prior's {name} has shape {array.shape}: give finite values of shape {allowed}")
    return array
