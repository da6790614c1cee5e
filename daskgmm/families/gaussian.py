"""The Gaussian family: parameters, M-step, sampling. What a pass needs of it stands in components.py."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

from daskgmm.families.covariance import CovarianceModel
from daskgmm.families.encoding import PLAIN, FeatureEncoding
from daskgmm.families.frame import Array, Frame
from daskgmm.families.gaussian_components import DenseComponents, DiagonalComponents, GaussianComponents
from daskgmm.families.prior import Conjugate, Prior

# Above this variance inflation factor a covariance is rounding. The frame tells what is left of rows, given other
# features, from nothing where it is more than a thousand roundings.
_EPS = float(np.finfo(np.float64).eps)
_SINGULAR = (1e3 * _EPS) ** -2
_UNCERTAIN = 1e-2  # the share of a variance that the rounding of a prior's covariance may come to
_ROUNDED = 1e-6  # relative, of a model that was written and read: what may be lost by rounding
_ROUNDING = 100 * _EPS  # of a covariance, in an M-step


class CollapsedComponentError(ValueError):
    """The covariance of a component is singular."""


@dataclass(frozen=True)
class GaussianParameters:
    """A Gaussian mixture, in the user's units about the frame's shift."""

    weights: Array  # (k,)
    means: Array  # (k, d)
    covariances: Array  # (k, d, d); (k, d) for a diagonal model
    factors: Array  # the same shape: F, upper triangular, Λ = F Fᵀ

    def moved(self, by: Array) -> Self:
        return replace(self, means=self.means + by)


@dataclass(frozen=True)
class Gaussian:
    """The Gaussian family under one covariance model; implements `daskgmm.families.base.Family`.

    Parameters
    ----------
    model : CovarianceModel
    reg_covar : float
        Added to the diagonal of every component's scatter before the model is fitted to it, in the squared units of
        the data. So what the model's covariances have in common, they have with it, and the M-step maximizes the
        likelihood less ½ reg_covar Σ n_k tr Σ_k⁻¹. Models that average scatters do not tell before from after.
    prior : Prior or Conjugate, optional
        The M-step maximizes the posterior density; a `Prior` needs `with_data` first.
    """

    model: CovarianceModel
    reg_covar: float = 0.0
    prior: Prior | Conjugate | None = None
    encoding: ClassVar[FeatureEncoding] = PLAIN
    restarts_empty_components: ClassVar[bool] = True

    @property
    def likelihood_is_bounded(self) -> bool:
        return self.prior is not None

    def with_data(self, rows: Array, weights: Array, low: Array, high: Array, k: int) -> Self:
        if not isinstance(self.prior, Prior):
            return self
        return replace(self, prior=self.prior.with_data(self.model, rows, weights, k))

    def check(self, rows: Array, low: Array, high: Array, k: int, names: Sequence[str]) -> None:
        """Refuse duplicates of too few rows, and constant features, with neither ``reg_covar`` nor prior."""
        decides = "the prior" if self.likelihood_is_bounded else f"reg_covar={self.reg_covar}"
        singular = self.reg_covar == 0 and not self.likelihood_is_bounded
        for size in (1000, len(rows)):  # duplicates are rare: a few rows mostly tell
            distinct = len(np.unique(rows[:size], axis=0))
            if distinct >= k:
                break
        else:
            fact = f"only {distinct} of {len(rows)} sampled rows are distinct, fewer than n_components={k}"
            if singular:
                raise ValueError(f"{fact}: lower n_components, set reg_covar above zero or prior='default'")
            warnings.warn(f"{fact}, and {decides} alone decides their density: lower n_components", stacklevel=2)
        constant = [name for name, equal in zip(names, low == high, strict=True) if equal]
        if constant:
            more = " …" if len(constant) > 5 else ""
            fact = f"feature {', '.join(constant[:5])}{more} is constant, so its variance is zero"
            if singular:
                raise ValueError(f"{fact}: drop it, or set reg_covar above zero")
            warnings.warn(f"{fact}, and {decides} alone decides its density: drop it", stacklevel=2)

    def frame(self, sample: Array, low: Array, high: Array) -> Frame:
        """Whitened where the whole scatter is needed; not turned at all where one scatter is, and scales will do."""
        frame = Frame.of_sample(sample, whiten=not self.model.diagonal).reaching(low, high)
        return frame.upright() if self.model.pooled else frame

    @property
    def algebra(self) -> type[DenseComponents] | type[DiagonalComponents]:
        return DiagonalComponents if self.model.diagonal else DenseComponents

    def components(self, parameters: GaussianParameters, frame: Frame) -> GaussianComponents:
        """The components as a pass over rows in ``frame`` needs them."""
        with np.errstate(divide="ignore"):  # a weight of zero is log weight −inf, and stays so
            constants = np.log(parameters.weights) + self.algebra.log_det(parameters.factors)
        d = parameters.means.shape[1]
        return self.algebra(
            constants - 0.5 * d * np.log(2 * np.pi),
            frame.means_in(parameters.means),
            self.algebra.factors_in(parameters.factors, frame),
            frame,
            self.model.pooled,
        )

    def maximize(self, components: GaussianComponents, moments: Array) -> GaussianParameters:
        """M-step: maximum likelihood, or posterior density, from moments (k, p) about the components' centres.

        Raises
        ------
        CollapsedComponentError
            A covariance is singular.
        """
        frame = components.frame
        held, delta, observed = components.averages(moments)  # in the frame
        weights, counts = held, held
        if isinstance(self.prior, Conjugate):
            weights = held + self.prior.weight_concentration - 1
            counts, delta, observed = self._with_prior(self.prior, components, held, delta, observed)
        if self.model.linear:  # the M-step is the same in the frame, where rounding does less harm
            observed = observed + self.reg_covar * frame.matrix @ frame.matrix.T
            there = self.model.estimate(counts, observed)
            inner = self.factorize(there, held)
            factors = self.algebra.triangular(frame.matrix.T @ inner)
            covariances = self.algebra.mapped_out(there, frame)
            rounding = _inflation(covariances, factors) / _SINGULAR
            if isinstance(self.prior, Conjugate):
                rounding = np.maximum(rounding, self.prior.rounding(frame, inner, counts) / _UNCERTAIN)
            if (rounding > 1).any():
                raise self._collapsed(int(rounding.argmax()), held, len(frame.scale))
        else:
            observed = self.algebra.regularize(self.algebra.mapped_out(observed, frame), self.reg_covar)
            before = (self.precisions(frame.matrix.T @ components.factors),) if self.model.climbs else ()
            covariances = self.model.estimate(counts, observed, *before)
            factors = self.factorize(covariances, held)
        means = frame.means_out(components.centres + delta)
        return GaussianParameters(weights / weights.sum(), means, covariances, factors)

    def _with_prior(
        self, prior: Conjugate, components: GaussianComponents, held: Array, delta: Array, observed: Array
    ) -> tuple[Array, Array, Array]:
        """Counts, means less the centres and covariances, with the prior's rows among the others: in the frame."""
        frame, k = components.frame, len(held)
        gap = components.centres + delta - frame.means_in(prior.mean[None] - frame.shift)
        drawn = prior.shrinkage / (held + prior.shrinkage)  # of the way to the prior's mean
        counts = held + prior.rows(k)
        sums = _times(held, observed) + _times(held * drawn, self.algebra.squares(gap))
        sums += self.algebra.mapped_in(prior.squares(k), frame)
        return counts, delta - _times(drawn, gap), _times(1 / counts, sums)

    def log_prior(self, parameters: GaussianParameters, frame: Frame) -> float:
        """The logarithm of the prior density of parameters about the frame's shift, but for a constant."""
        prior, k = self.prior, len(parameters.weights)
        if not isinstance(prior, Conjugate):
            return 0.0
        gap = parameters.means - (prior.mean - frame.shift)
        squares = prior.squares(k) + prior.shrinkage * self.algebra.squares(gap)
        traces = float((squares * self.precisions(parameters.factors)).sum())
        log_dets = float(self.algebra.log_det(parameters.factors).sum())
        log_weights = float(xlogy(prior.weight_concentration - 1, parameters.weights).sum())
        return prior.rows(k) * log_dets - traces / 2 + log_weights

    def factorize(self, covariances: Array, counts: Array) -> Array:
        with suppress(np.linalg.LinAlgError):
            return self.algebra.factorize(covariances)
        for k in range(len(covariances)):
            try:
                self.algebra.factorize(covariances[k : k + 1])
            except np.linalg.LinAlgError:
                break
        raise self._collapsed(k, counts, covariances.shape[-1])

    def _collapsed(self, k: int, counts: Array, d: int) -> CollapsedComponentError:
        also = ", set prior='default'" if self.prior is None else ", give the prior a larger covariance"
        return CollapsedComponentError(
            f"component {k} collapsed ({counts[k]:.1f} samples, {d} features): "
            f"raise reg_covar{also} or lower n_components"
        )

    def from_precisions(self, precisions: Array) -> tuple[Array, Array]:
        """Covariances and factors of given precisions, each (k, …)."""
        pairs = [self.algebra.invert(precision) for precision in precisions]
        return np.array([c for c, _ in pairs]), np.array([f for _, f in pairs])

    def consistent(self, covariances: Array, factors: Array) -> bool:
        """Are covariances Σ, each (k, …), positive definite, and F of theirs: upper triangular, FᵀΣF the identity?"""
        with np.errstate(over="ignore", invalid="ignore"):
            if self.model.diagonal:
                return bool((factors > 0).all() and (np.abs(factors**2 * covariances - 1) <= _ROUNDED).all())
            turned, deviations = factors.transpose(0, 2, 1), np.sqrt(np.einsum("kii->ki", covariances))
            products = turned @ covariances @ factors
            sizes = np.abs(turned) @ np.abs(covariances) @ np.abs(factors)
            scale = deviations[:, :, None] * deviations[:, None, :]
            symmetric = np.abs(covariances - covariances.transpose(0, 2, 1)) <= _ROUNDED * scale
            # More where one is all but singular: by its variance inflation, through a frame whose condition may be 1e6.
            inflation = np.sqrt(_inflation(covariances, factors))[:, None, None]
            rounded = _ROUNDED + 1e6 * _EPS * (sizes + inflation)
            near = np.isfinite(sizes) & (np.abs(products - np.eye(factors.shape[-1])) <= rounded)
        triangular = (np.triu(factors) == factors).all() and (np.einsum("kii->ki", factors) > 0).all()
        return bool(triangular and symmetric.all() and near.all())

    def precisions(self, factors: Array) -> Array:
        return factors**2 if self.model.diagonal else factors @ factors.transpose(0, 2, 1)

    def zero_components(self, k: int, frame: Frame) -> GaussianComponents:
        """Components that only say what moments mean: about the origin of ``frame``. For a start's M-step."""
        d = len(frame.shift)
        factors = np.zeros((k, d) if self.model.diagonal else (k, d, d))
        return self.algebra(np.zeros(k), np.zeros((k, d)), factors, replace(frame, radius=0.0))

    def clip_moments(self, moments: Array, image: Array) -> Array:
        return moments

    def max_decrease(self, before: GaussianParameters, after: GaussianParameters, counts: Array, frame: Frame) -> float:
        """What ``reg_covar`` takes, and rounding in the M-step.

        As the M-step maximizes Q − ½ r Σ n_k tr Λ_k, and the likelihood rises by no less than Q, it falls by no more
        than ½ r Σ n_k (tr Λ_k − tr Λ'_k), from precisions Λ to Λ'. With a prior, n_k counts the prior's rows too, and
        Q its logarithm; a variational bound has the expected precisions. Rounding of a covariance grows by its
        condition in the precision, and so in the likelihood; that of a prior's scatter, in the prior's.
        """
        prior, k = self.prior, len(counts)
        rows = counts + (prior.rows(k) if isinstance(prior, Conjugate) else 0)
        traces = [np.square(p.factors).reshape(k, -1).sum(axis=1) for p in (before, after)]
        taken = max(0.0, self.reg_covar / 2 * float(rows @ (traces[0] - traces[1])))
        lost = float(rows @ self._condition(after, frame))
        if prior is not None and not isinstance(prior, Prior):
            lost += float(np.abs(prior.squares(k) * self.precisions(after.factors)).sum())
        return taken + _ROUNDING * lost

    def _condition(self, parameters: GaussianParameters, frame: Frame) -> Array:
        """tr Σ tr Λ of each component, where its covariance is estimated: (k,)."""
        covariances, factors = parameters.covariances, parameters.factors
        if self.model.diagonal:  # each variance by itself
            return np.full(len(covariances), covariances.shape[1])
        if self.model.linear:
            covariances, factors = self.algebra.mapped_in(covariances, frame), self.algebra.factors_in(factors, frame)
        return self.algebra.variances(covariances).sum(axis=1) * np.square(factors).sum(axis=(1, 2))

    def reseed(self, alive: GaussianParameters, dead: Sequence[int], rows: Array) -> GaussianParameters:
        """Add to the components ``alive`` new ones at the indices ``dead``, each on one of ``rows``.

        A new component has an equal share of the weight, and the average covariance of the others.
        """
        k = len(alive.weights) + len(dead)
        kept = np.setdiff1d(np.arange(k), dead)
        covariance = np.tensordot(alive.weights, alive.covariances, axes=1)

        def merge(old: Array, new: Array) -> Array:
            merged = np.empty((k, *old.shape[1:]))
            merged[kept], merged[dead] = old, new
            return merged

        return GaussianParameters(
            merge(alive.weights * len(kept) / k, np.asarray(1 / k)),
            merge(alive.means, rows),
            merge(alive.covariances, covariance),
            merge(alive.factors, self.algebra.factorize(covariance[None])),
        )

    def n_parameters(self, k: int, d: int) -> int:
        """Free parameters of a mixture of k components in d dimensions."""
        return k - 1 + k * d + self.model.n_parameters(k, d)

    def sample(
        self, parameters: GaussianParameters, n: int, rng: np.random.RandomState
    ) -> tuple[Array, npt.NDArray[np.intp]]:
        """n rows (n, d), and the components they come from (n,), sorted by component."""
        counts = rng.multinomial(n, parameters.weights)
        d = parameters.means.shape[1]
        rows = [
            mean + self.algebra.draw(parameters.factors, k, rng.standard_normal((count, d)))
            for k, (mean, count) in enumerate(zip(parameters.means, counts, strict=True))
        ]
        return np.concatenate(rows), np.repeat(np.arange(len(counts)), counts)


def _inflation(covariances: Array, factors: Array) -> Array:
    """The largest variance inflation factor, Σ_jj Λ_jj, of each component: (k,)."""
    return np.asarray((np.einsum("kii->ki", covariances) * np.square(factors).sum(axis=2)).max(axis=1))


def _times(factors: Array, values: Array) -> Array:
    """Values (k, …), each component's by its factor."""
    return (values.T * factors).T
