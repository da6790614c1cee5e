"""Variational Bayes: a Gaussian mixture of which not the parameters but a posterior distribution of them is fitted.

Attias 2000, A Variational Bayesian Framework for Graphical Models, NIPS 12; the formulae are those of Bishop 2006,
Pattern Recognition and Machine Learning, §10.2. The posterior is Dirichlet for the weights, or that of the sticks of a
Dirichlet process (Blei & Jordan 2006, Variational Inference for Dirichlet Process Mixtures, Bayesian Analysis 1), and
normal-Wishart for each mean and precision. The E-step is that of a mixture with the expected log weights and
precisions, the M-step that of a conjugate prior.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy.special import digamma, gammaln, multigammaln

from daskgmm.families.covariance import CovarianceModel
from daskgmm.families.frame import Array, Frame
from daskgmm.families.gaussian import Gaussian, GaussianParameters
from daskgmm.families.gaussian_components import GaussianComponents
from daskgmm.families.prior import Conjugate, shaped, variances


@dataclass(frozen=True)
class VariationalParameters(GaussianParameters):
    """A posterior of Gaussian mixtures: what is expected of it, and how sure it is.

    Weights and means are expected ones; covariances are the inverse of the expected precisions, W⁻¹ / dof.
    """

    concentrations: Array  # (k,) of the Dirichlet distribution; (2, k) of the Beta distributions of the sticks
    mean_precisions: Array  # (k,) rows that each mean is known from, β
    dofs: Array  # (k,) degrees of freedom of each Wishart distribution, ν


@dataclass(frozen=True, eq=False)
class VariationalPrior:
    """What a user gives of the prior; names, but for ``_prior``, and defaults are those of scikit-learn.

    Parameters
    ----------
    weight_concentration : float, optional
        Of the Dirichlet distribution, or process; 1 / k. The smaller, the fewer components keep rows.
    process : bool, default=True
        Are the weights those of a Dirichlet process, of which no more than k components have rows?
    mean_precision : float, default=1
        Rows that the mean is worth.
    mean : array-like (n_features,), optional
        That of the rows.
    dof : float, optional
        Rows that the covariance is worth, ``degrees_of_freedom_prior``; n_features.
    covariance : float or array-like (n_features,) or (n_features, n_features), optional
        The inverse of the Wishart distribution's scale matrix: a number for spherical, variances for other diagonal
        models, else a matrix. That of the rows.
    """

    weight_concentration: float | None = None
    process: bool = True
    mean_precision: float | None = None
    mean: npt.ArrayLike | None = None
    dof: float | None = None
    covariance: npt.ArrayLike | None = None

    def with_data(self, model: CovarianceModel, rows: Array, weights: Array, k: int) -> NormalWishart:
        """What it comes to for k components of a model, given weighted rows (m, d) in the user's units.

        Raises
        ------
        ValueError
            A number is out of its range, or an array does not fit the features or the model.
        """
        if model.code not in (codes := ("VVV", "EEE", "VVI", "VII", "EEI", "EII")):
            raise ValueError(
                f"there is no variational posterior with covariance_type={model.name!r}: give 'full', 'tied', 'diag', "
                f"'spherical' or one of {', '.join(codes)}"
            )
        d = rows.shape[1]
        mean = np.average(rows, axis=0, weights=weights) if self.mean is None else shaped("mean", self.mean, [(d,)])
        covariance = _covariance(model, rows, weights)
        if self.covariance is not None:
            covariance = shaped("covariance", self.covariance, [covariance.shape])
            whole = _whole(covariance, d)
            if not (np.allclose(whole, whole.T) and np.linalg.eigvalsh(whole)[0] > 0):
                kind = "symmetric and positive definite" if covariance.ndim == 2 else "positive"
                raise ValueError(f"the prior's covariance is not {kind}: give such a one")
        concentration = _above(0, "weight_concentration", self.weight_concentration, 1 / k)
        mean_precision = _above(0, "mean_precision", self.mean_precision, 1.0)
        dof = _above(d - 1, "degrees_of_freedom", self.dof, float(d))
        return NormalWishart(concentration, self.process, mean_precision, mean, dof, covariance)


@dataclass(frozen=True)
class NormalWishart:
    """The prior of weights, and of the mean and precision of each component: Bishop 2006, eq. 10.39 and 10.40."""

    weight_concentration: float  # α₀
    process: bool
    mean_precision: float  # β₀
    mean: Array  # (d,) in the user's units
    dof: float  # ν₀
    covariance: Array  # W₀⁻¹: (), (d,) or (d, d)

    def concentrations(self, counts: Array) -> Array:
        """Of the posterior of the weights, given rows of each component: Bishop 2006, eq. 10.58.

        Or of a process, Blei & Jordan 2006, §3.2; but what the last stick leaves is for further components, as in
        scikit-learn, where they have the last component take it all.
        """
        if not self.process:
            return self.weight_concentration + counts
        later = np.append(np.cumsum(counts[:0:-1])[::-1], 0.0)
        return np.stack([1 + counts, self.weight_concentration + later])

    def squares(self, k: int) -> Array:
        """As those of a `Conjugate` prior."""
        return self.scatter

    @property
    def scatter(self) -> Array:
        """W₀⁻¹ as the models have it: (d,) or (d, d)."""
        return self.covariance if self.covariance.ndim == 2 else np.broadcast_to(self.covariance, self.mean.shape)


@dataclass(frozen=True)
class VariationalGaussian(Gaussian):
    """The Gaussian family as variational Bayes; implements `daskgmm.families.base.Family`.

    Iterates are those of scikit-learn, which has the digammas of a Wishart distribution also for diagonal and spherical
    models, and for a tied one n / k rows in each component. That is right if each component has a whole precision
    matrix with a Wishart prior of its own, and the model limits the posterior alone: to Wishart distributions with W⁻¹
    diagonal, or a multiple of the identity, or with the same W⁻¹ and ν for all. The best of these has the averages,
    over what must be equal, of the best without a limit, as what this leaves out is uncorrelated with log|Λ| and with
    what it keeps. So the steps are exact for every model: the total of the E-step and `log_prior` are a bound below the
    log evidence that never falls; but with ``reg_covar``, added as there to what is observed, it may, by as little.

    A component without rows is one too many, and stays empty.
    """

    prior: Any = VariationalPrior()  # or a NormalWishart, after `with_data`
    restarts_empty_components: ClassVar[bool] = False

    def with_data(self, rows: Array, weights: Array, low: Array, high: Array, k: int) -> Self:
        if isinstance(self.prior, NormalWishart):
            return self
        return replace(self, prior=self.prior.with_data(self.model, rows, weights, k))

    def components(self, parameters: Any, frame: Frame) -> GaussianComponents:
        """Those of the expected log-densities: Bishop 2006, eq. 10.64 to 10.66."""
        d = parameters.means.shape[1]
        log_weights = _sticks(_expected_logs(parameters.concentrations))
        constants = log_weights + (self._log_precisions(parameters) - d / parameters.mean_precisions) / 2
        expected = super().components(parameters, frame)
        return replace(expected, constants=constants - 0.5 * d * np.log(2 * np.pi))

    def maximize(self, components: GaussianComponents, moments: Array) -> VariationalParameters:
        """The best posterior, given moments (k, p) about the components' centres: Bishop 2006, eq. 10.58 to 10.63.

        Raises
        ------
        CollapsedComponentError
            An expected precision is not finite.
        """
        prior: NormalWishart = self.prior
        counts, k = components.averages(moments)[0], len(moments)
        # reg_covar is added to what a component observes: in proportion to its rows.
        regular = np.multiply.outer(counts, self.algebra.regularize(np.zeros_like(prior.scatter), self.reg_covar))
        rows = Conjugate(prior.mean, prior.mean_precision, prior.dof, 0.0, prior.scatter + regular, False, 1.0)
        found = Gaussian(self.model, prior=rows).maximize(components, moments)
        concentrations, dofs = prior.concentrations(counts), prior.dof + counts
        weights = np.exp(_sticks(np.log(concentrations / concentrations.sum(axis=0))))
        sure = concentrations, prior.mean_precision + counts, np.full(k, dofs.mean()) if self.model.pooled else dofs
        return VariationalParameters(weights / weights.sum(), found.means, found.covariances, found.factors, *sure)

    def log_prior(self, parameters: Any, frame: Frame) -> float:
        """−KL of the posterior, about the frame's shift, from the prior: Bishop 2006, eq. 10.73, 10.74, 10.76, 10.77.

        But for a constant, where the covariance of the rows is singular and so the prior is improper.
        """
        prior: NormalWishart = self.prior
        (k, d), dofs = parameters.means.shape, parameters.dofs
        after, before = parameters.concentrations, prior.concentrations(np.zeros(k))
        of_weights = (_log_beta(after) - _log_beta(before)).sum() - ((after - before) * _expected_logs(after)).sum()

        shrinkage = prior.mean_precision / parameters.mean_precisions
        of_means = d / 2 * (1 - shrinkage + np.log(shrinkage)).sum()
        gap = parameters.means - (prior.mean - frame.shift)
        squares = prior.scatter + prior.mean_precision * self.algebra.squares(gap)  # also those of the means

        log_det = _log_det(prior.covariance, d)
        of_precisions = _log_wishart(dofs, self._log_scales(parameters), d).sum()
        of_precisions -= k * _log_wishart(prior.dof, -log_det if np.isfinite(log_det) else 0.0, d)
        of_precisions -= ((dofs - prior.dof) * self._log_precisions(parameters)).sum() / 2
        of_precisions += (d * dofs.sum() - (squares * self.precisions(parameters.factors)).sum()) / 2
        return float(of_weights + of_means + of_precisions)

    def n_effective(self, parameters: VariationalParameters) -> int:
        """Components that are expected to hold at least one row."""
        return int((parameters.mean_precisions - self.prior.mean_precision >= 1).sum())

    def _log_scales(self, parameters: VariationalParameters) -> Array:
        """log|W|: (k,)."""
        d = parameters.means.shape[1]
        return 2 * self.algebra.log_det(parameters.factors) - d * np.log(parameters.dofs)

    def _log_precisions(self, parameters: VariationalParameters) -> Array:
        """E log|Λ|: (k,). Bishop 2006, eq. 10.65."""
        d = parameters.means.shape[1]
        digammas = digamma((parameters.dofs[:, None] - np.arange(d)) / 2).sum(axis=1)
        return digammas + d * np.log(2) + self._log_scales(parameters)


def _sticks(logs: Array) -> Array:
    """Logarithms of weights (k,): as they are, or where sticks (2, k) are broken, of what is taken and what is left."""
    return logs if logs.ndim == 1 else logs[0] + np.append(0.0, np.cumsum(logs[1, :-1]))


def _expected_logs(concentrations: Array) -> Array:
    """Of what Dirichlet distributions along the first axis are distributions of."""
    return digamma(concentrations) - digamma(concentrations.sum(axis=0))


def _log_beta(concentrations: Array) -> Array:
    """What normalizes Dirichlet distributions along the first axis: Bishop 2006, eq. B.23, but for the sign."""
    return gammaln(concentrations).sum(axis=0) - gammaln(concentrations.sum(axis=0))


def _log_wishart(dof: Any, log_scale: Any, d: int) -> Any:
    """log ∫ |Λ|^((ν − d − 1) / 2) exp(−½ tr W⁻¹Λ), given log|W|: Bishop 2006, eq. B.79, but for the sign."""
    return dof / 2 * (d * np.log(2) + log_scale) + multigammaln(dof / 2, d)


def _covariance(model: CovarianceModel, rows: Array, weights: Array) -> Array:
    """Unbiased, of weighted rows (m, d), where a weight of 2 is the row twice; (), (d,) or (d, d), as of the model."""
    if model.diagonal:
        found = variances(rows, weights)
        return np.asarray(found.mean()) if model.code[1] == "I" else found
    total = weights.sum()
    return np.atleast_2d(np.cov(rows, rowvar=False, aweights=weights, ddof=0)) * (total / max(total - 1, 1))


def _whole(covariance: Array, d: int) -> Array:
    """(), (d,) or (d, d) to (d, d)."""
    return covariance if covariance.ndim == 2 else covariance * np.eye(d)


def _log_det(covariance: Array, d: int) -> float:
    """Of (), (d,) or (d, d) as a matrix."""
    if covariance.ndim == 2:
        return float(np.linalg.slogdet(covariance)[1])
    with np.errstate(divide="ignore"):
        return float(np.log(np.broadcast_to(covariance, d)).sum())


def _above(least: float, name: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if not (np.isfinite(value) and value > least):
        raise ValueError(f"The parameter '{name}_prior' should be greater than {least}, but got {value:.3f}.")
    return float(value)
