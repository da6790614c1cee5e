"""Variational Bayes: against scikit-learn's steps, against SciPy's densities, and what each step and bound must be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import betaln, entr, multigammaln
from sklearn.mixture import BayesianGaussianMixture

from daskgmm.em.estep import block_stats_of_models, completed, moments_from_responsibilities
from daskgmm.families.covariance import MODELS
from daskgmm.families.frame import Frame
from daskgmm.families.gaussian import CollapsedComponentError
from daskgmm.families.variational import NormalWishart, VariationalGaussian, VariationalParameters, VariationalPrior

Array = npt.NDArray[np.float64]

NAMES = ["full", "tied", "diag", "spherical"]
pytestmark = pytest.mark.usefixtures("one_thread")
every_model = pytest.mark.parametrize("name", [*NAMES, "EII", "EEI"])
every_process = pytest.mark.parametrize("process", [True, False], ids=["process", "distribution"])
THEIR_TYPE = {True: "dirichlet_process", False: "dirichlet_distribution"}
D = 3
GIVEN: dict[str, Any] = {
    "weight_concentration": 0.7, "mean_precision": 2.5, "mean": [1.0, -2.0, 0.5], "dof": 4.5,
}  # fmt: skip
COVARIANCES = {"full": np.diag([1.0, 2, 3]) + 0.3, "tied": np.eye(D) + 0.2, "diag": [1.0, 2, 3], "spherical": 1.7}


def _rows(n: int = 400, d: int = D, seed: int = 0) -> Array:
    """Of four overlapping groups, in units that differ."""
    rng = np.random.default_rng(seed)
    groups = [
        rng.standard_normal((n // 4, d)) @ rng.standard_normal((d, d)) + 3 * rng.standard_normal(d) for _ in "abcd"
    ]
    return rng.permutation(np.concatenate(groups)) * np.linspace(0.5, 20, d) + np.linspace(40, -5, d)


def _partition(x: Array, k: int) -> Array:
    """Slices along the first feature, as responsibilities (n, k)."""
    rank = np.argsort(np.argsort(x[:, 0], kind="stable"))
    return np.eye(k)[rank * k // len(x)]


@dataclass(frozen=True)
class _Fit:
    """A family and where it does its sums."""

    family: VariationalGaussian
    frame: Frame

    @staticmethod
    def of(name: str, x: Array, k: int, prior: VariationalPrior, reg: float = 0.0, framed: bool = True) -> _Fit:
        family = VariationalGaussian(MODELS[name], reg, prior)
        low, high = x.min(axis=0), x.max(axis=0)
        family = family.with_data(x, np.ones(len(x)), low, high, k)
        return _Fit(family, family.frame(x, low, high) if framed else Frame.identity(x.shape[1]))

    def start(self, x: Array, resp: Array) -> VariationalParameters:
        """From responsibilities (n, k)."""
        blank = self.family.zero_components(resp.shape[1], self.frame)
        return self.family.maximize(blank, moments_from_responsibilities(self.frame.apply(x), resp.T, blank))

    def step(self, parameters: VariationalParameters, x: Array) -> tuple[VariationalParameters, float]:
        """The next parameters, and the bound of those there are."""
        components = self.family.components(parameters, self.frame)
        found = completed(*block_stats_of_models([(x, None)], [components]), components)
        bound = found.log_likelihood + self.family.log_prior(parameters, self.frame)
        return self.family.maximize(components, found.moments), bound

    def steps(self, n: int, x: Array, resp: Array) -> tuple[VariationalParameters, list[float]]:
        """Parameters about the frame's shift after n steps, and all bounds."""
        parameters, bounds = self.start(x, resp), []
        for _ in range(n):
            parameters, bound = self.step(parameters, x)
            bounds.append(bound)
        return parameters, bounds

    def expected(self, parameters: VariationalParameters, x: Array, resp: Array) -> float:
        """The bound of responsibilities (n, k) and parameters about the frame's shift."""
        moments = moments_from_responsibilities(
            self.frame.apply(x), resp.T, self.family.zero_components(resp.shape[1], self.frame)
        )
        theta = self.family.components(parameters, self.frame).theta
        return float((theta * moments).sum() + entr(resp).sum()) + self.family.log_prior(parameters, self.frame)


# scikit-learn


def _theirs(name: str, k: int, prior: VariationalPrior, x: Array, resp: Array, reg: float) -> Any:
    found = BayesianGaussianMixture(
        n_components=k, covariance_type=name, reg_covar=reg,
        weight_concentration_prior_type=THEIR_TYPE[prior.process],
        weight_concentration_prior=prior.weight_concentration,
        mean_precision_prior=prior.mean_precision, mean_prior=prior.mean, degrees_of_freedom_prior=prior.dof,
        covariance_prior=prior.covariance,
    )  # fmt: skip
    found._check_parameters(x)
    found._initialize(x, resp)
    return found


def _differ(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("name", NAMES)
@every_process
@pytest.mark.parametrize("known", [False, True], ids=["default", "given"])
@pytest.mark.parametrize("framed", [False, True], ids=["as-is", "framed"])
def test_steps_are_those_of_scikit_learn(name: str, process: bool, known: bool, framed: bool) -> None:
    """Also those that leave components without rows."""
    x, k, reg = _rows(), 6, 1e-3
    resp = _partition(x, k)
    prior = VariationalPrior(process=process)
    if known:
        prior = replace(prior, **GIVEN, covariance=COVARIANCES[name])
    theirs, fit = _theirs(name, k, prior, x, resp, reg), _Fit.of(name, x, k, prior, reg, framed)
    parameters, compact = fit.start(x, resp), MODELS[name].compact
    for step in range(1, 31):
        theirs._m_step(x, theirs._e_step(x)[1])
        parameters, _ = fit.step(parameters, x)
        if step in (1, 5, 30):
            theirs._set_parameters(theirs._get_parameters())
            ours = parameters.moved(fit.frame.shift)
            for mine, other in (
                (ours.weights, theirs.weights_),
                (ours.means, theirs.means_),
                (compact(ours.covariances), theirs.covariances_),
                (compact(ours.factors), theirs.precisions_cholesky_),
                (parameters.mean_precisions, theirs.mean_precision_),
                (parameters.dofs, np.broadcast_to(theirs.degrees_of_freedom_, k)),
                (parameters.concentrations, theirs.weight_concentration_),
            ):
                assert _differ(mine, other) <= 1e-8, step


@pytest.mark.parametrize("name", NAMES)
@every_process
def test_the_bound_is_that_of_scikit_learn_but_for_a_constant(name: str, process: bool) -> None:
    x, k = _rows(), 5
    prior = VariationalPrior(process=process, **GIVEN, covariance=COVARIANCES[name])
    resp = _partition(x, k)
    theirs, fit = _theirs(name, k, prior, x, resp, 0.0), _Fit.of(name, x, k, prior)
    parameters, differences = fit.start(x, resp), []
    for _ in range(15):
        log_norm, log_resp = theirs._e_step(x)
        theirs._m_step(x, log_resp)
        parameters, _ = fit.step(parameters, x)
        ours = fit.expected(parameters, x, np.exp(log_resp))
        differences.append(ours - np.sum(theirs._compute_lower_bound(log_resp, log_norm)))  # an array for tied
    assert differences == pytest.approx([differences[0]] * 15, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_priors_are_those_of_scikit_learn(name: str) -> None:
    x, k = _rows(), 4
    theirs = _theirs(name, k, VariationalPrior(), x, _partition(x, k), 0.0)
    ours = VariationalPrior().with_data(MODELS[name], x, np.ones(len(x)), k)
    assert ours.process
    assert ours.weight_concentration == theirs.weight_concentration_prior_
    assert ours.mean_precision == theirs.mean_precision_prior_
    assert ours.mean == pytest.approx(theirs.mean_prior_, rel=1e-12)
    assert ours.dof == theirs.degrees_of_freedom_prior_
    assert ours.covariance == pytest.approx(theirs.covariance_prior_, rel=1e-12)


@every_model
def test_weights_of_rows_inform_the_prior(name: str) -> None:
    """A weight of two is the row twice."""
    x = _rows(40)
    times = 1 + np.arange(40) % 2
    weighted = VariationalPrior().with_data(MODELS[name], x, times.astype(float), 3)
    repeated = VariationalPrior().with_data(MODELS[name], np.repeat(x, times, axis=0), np.ones(times.sum()), 3)
    assert weighted.mean == pytest.approx(repeated.mean, rel=1e-12)
    assert weighted.covariance == pytest.approx(repeated.covariance, rel=1e-12)


# The bound


@every_model
@every_process
@settings(max_examples=10, deadline=None)
@given(k=st.integers(1, 6), d=st.integers(1, 4), seed=st.integers(0, 99), strong=st.booleans())
def test_the_bound_never_falls(name: str, process: bool, k: int, d: int, seed: int, strong: bool) -> None:
    x = _rows(100, d, seed)
    prior = VariationalPrior(5.0, process, 30.0, dof=d + 20.0) if strong else VariationalPrior(process=process)
    _, bounds = _Fit.of(name, x, k, prior).steps(30, x, _partition(x, k))
    assert np.diff(bounds).min() >= -1e-11 * np.abs(bounds).max()


@every_model
@every_process
@settings(max_examples=10, deadline=None)
@given(k=st.integers(1, 4), d=st.integers(1, 4), seed=st.integers(0, 99), log_size=st.floats(-4, -0.5))
def test_the_m_step_is_a_maximum(name: str, process: bool, k: int, d: int, seed: int, log_size: float) -> None:
    """Of the bound: no posterior of the model that comes from other rows, or another prior, has more."""
    rng = np.random.default_rng(seed)
    x = _rows(60, d, seed)
    resp = rng.dirichlet(np.full(k, 0.5), len(x))
    fit = _Fit.of(name, x, k, VariationalPrior(0.4, process))
    best = fit.expected(fit.start(x, resp), x, resp)
    size = 10.0**log_size
    elsewhere = x + size * x.std(axis=0) * rng.standard_normal(x.shape)
    towards = (1 - size) * resp + size * rng.dirichlet(np.full(k, 0.5), len(x))
    prior = replace(fit.family.prior, mean_precision=1 + size, dof=d + size, weight_concentration=0.4 + size)
    other = replace(fit, family=replace(fit.family, prior=prior)).start(elsewhere, towards)
    assert fit.expected(other, x, resp) <= best + 1e-9 * abs(best)


@every_model
@every_process
def test_steps_and_bounds_do_not_depend_on_the_frame(name: str, process: bool) -> None:
    x, prior = _rows(), VariationalPrior(process=process)
    parameters, bounds = _Fit.of(name, x, 4, prior).steps(5, x, _partition(x, 4))
    plain, as_is = _Fit.of(name, x, 4, prior, framed=False).steps(5, x, _partition(x, 4))
    assert bounds == pytest.approx(as_is, rel=1e-9)
    assert _differ(parameters.covariances, plain.covariances) <= 1e-9


@every_model
@every_process
def test_the_divergence_from_the_prior_is_that_of_scipys_densities(name: str, process: bool) -> None:
    """By draws from the posterior of few rows."""
    x, k, n = _rows(12), 2, 2000
    fit = _Fit.of(name, x, k, VariationalPrior(1.5, process, 2.0, dof=D + 6.0), framed=False)
    found, prior = fit.start(x, _partition(x, k)), fit.family.prior
    assert isinstance(prior, NormalWishart)
    rng = np.random.default_rng(0)
    ratios = np.zeros(n)
    if process:
        for a, b in found.concentrations.T:
            sticks = rng.beta(a, b, n)
            ratios += stats.beta.logpdf(sticks, 1, prior.weight_concentration) - stats.beta.logpdf(sticks, a, b)
    else:
        weights = rng.dirichlet(found.concentrations, n).T
        ratios += stats.dirichlet.logpdf(weights, np.full(k, prior.weight_concentration))
        ratios -= stats.dirichlet.logpdf(weights, found.concentrations)
    scale = np.linalg.inv(prior.covariance * np.eye(D) if prior.covariance.ndim < 2 else prior.covariance)
    for mean, factor, beta, dof in zip(found.means, found.factors, found.mean_precisions, found.dofs, strict=True):
        posterior = stats.wishart(dof, (factor @ factor.T if factor.ndim == 2 else np.diag(factor**2)) / dof)
        drawn = posterior.rvs(n, rng)
        roots = np.linalg.cholesky(drawn)
        deviations = np.linalg.solve(roots.transpose(0, 2, 1), rng.standard_normal((n, D, 1)))[:, :, 0] / np.sqrt(beta)
        whole = np.moveaxis(drawn, 0, -1)
        ratios += stats.wishart.logpdf(whole, prior.dof, scale) - posterior.logpdf(whole)
        gap = mean + deviations - prior.mean
        ratios += D / 2 * np.log(prior.mean_precision / beta)
        ratios += beta / 2 * np.einsum("ni,nij,nj->n", deviations, drawn, deviations)
        ratios -= prior.mean_precision / 2 * np.einsum("ni,nij,nj->n", gap, drawn, gap)
    ours = fit.family.log_prior(found, fit.frame)
    assert abs(ratios.mean() - ours) < 4 * ratios.std() / np.sqrt(n)
    assert ratios.std() / np.sqrt(n) < 0.02 * abs(ours)


def _log_evidence(x: Array, prior: NormalWishart) -> float:
    """Of rows of one component: Murphy 2007, Conjugate Bayesian Analysis of the Gaussian Distribution, eq. 266."""
    n, d = x.shape
    scale = prior.covariance * np.eye(d) if prior.covariance.ndim < 2 else prior.covariance
    gap = x.mean(axis=0) - prior.mean
    drawn = n * prior.mean_precision / (n + prior.mean_precision)
    after = scale + n * np.atleast_2d(np.cov(x.T, bias=True)) + drawn * np.outer(gap, gap)
    return float(
        -n * d / 2 * np.log(np.pi)
        + multigammaln((prior.dof + n) / 2, d)
        - multigammaln(prior.dof / 2, d)
        + prior.dof / 2 * np.linalg.slogdet(scale)[1]
        - (prior.dof + n) / 2 * np.linalg.slogdet(after)[1]
        + d / 2 * np.log(prior.mean_precision / (prior.mean_precision + n))
    )


@every_model
@every_process
@pytest.mark.parametrize("d", [1, D])
def test_the_bound_of_one_component_is_the_evidence(name: str, process: bool, d: int) -> None:
    """Where the posterior may be what it must; else it is less."""
    x = _rows(40, d)
    fit = _Fit.of(name, x, 1, VariationalPrior(0.6, process))
    _, bounds = fit.steps(3, x, np.ones((40, 1)))
    evidence = _log_evidence(x, fit.family.prior)
    if process:  # all rows have the first piece of the stick
        evidence += float(betaln(1 + len(x), 0.6) - betaln(1, 0.6))
    assert bounds == pytest.approx([bounds[0]] * 3, rel=1e-12)
    if d == 1 or name in ("full", "tied"):
        assert bounds[-1] == pytest.approx(evidence, rel=1e-11)
    else:
        assert bounds[-1] < evidence


# What the prior decides


@pytest.mark.parametrize("name", NAMES)
@every_process
def test_superfluous_components_become_empty(name: str, process: bool, blobs: Array) -> None:
    fit = _Fit.of(name, blobs, 10, VariationalPrior(1e-3, process), 1e-6)
    found, _ = fit.steps(400, blobs, np.random.default_rng(0).dirichlet(np.ones(10), len(blobs)))
    assert fit.family.n_effective(found) == 3
    assert np.sort(found.mean_precisions) - 1 == pytest.approx([0.0] * 7 + [200.0] * 3, abs=0.1)
    assert not fit.family.restarts_empty_components


@every_model
def test_components_without_rows_are_what_the_prior_says(name: str) -> None:
    x = _rows(40)
    fit = _Fit.of(name, x, 3, VariationalPrior(0.5, False))
    found = fit.start(x, np.eye(3)[np.zeros(40, dtype=int)])
    prior = fit.family.prior
    assert fit.family.n_effective(found) == 1
    assert found.concentrations == pytest.approx([40.5, 0.5, 0.5])
    assert (found.means + fit.frame.shift)[1:] == pytest.approx(np.tile(prior.mean, (2, 1)))
    if not MODELS[name].pooled:
        assert found.covariances[1:] == pytest.approx(
            np.broadcast_to(prior.scatter / prior.dof, found.covariances[1:].shape)
        )
        assert found.dofs == pytest.approx([prior.dof + 40, prior.dof, prior.dof])


def test_an_improper_prior_has_a_finite_bound() -> None:
    """As that of a constant feature."""
    x = np.column_stack([_rows(40, 2), np.ones(40)])
    for name in ("full", "diag"):
        _, bounds = _Fit.of(name, x, 2, VariationalPrior(), 1e-3, framed=False).steps(3, x, _partition(x, 2))
        assert np.isfinite(bounds).all()


def test_a_collapse_says_what_to_do() -> None:
    x = np.column_stack([_rows(40, 2), np.ones(40)])
    with pytest.raises(
        CollapsedComponentError, match="raise reg_covar, give the prior a larger covariance or lower n_components"
    ):
        _Fit.of("diag", x, 2, VariationalPrior()).steps(1, x, _partition(x, 2))


# Users


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("full", {"weight_concentration": 0}, "'weight_concentration_prior' should be greater than 0, but got 0.000"),
        ("full", {"mean_precision": -1.0}, "'mean_precision_prior' should be greater than 0, but got -1.000"),
        ("full", {"dof": 2.0}, "'degrees_of_freedom_prior' should be greater than 2, but got 2.000"),
        ("full", {"dof": np.nan}, "'degrees_of_freedom_prior' should be greater than 2, but got nan"),
        ("full", {"mean": [0.0, 1.0]}, r"mean has shape \(2,\): give finite values of shape \(3,\)"),
        ("full", {"mean": [0.0, 1.0, np.inf]}, "give finite values"),
        ("full", {"covariance": 1.0}, r"covariance has shape \(\): give finite values of shape \(3, 3\)"),
        ("tied", {"covariance": [1.0, 2, 3]}, r"give finite values of shape \(3, 3\)"),
        ("diag", {"covariance": np.eye(3)}, r"give finite values of shape \(3,\)"),
        ("spherical", {"covariance": [1.0, 2, 3]}, r"give finite values of shape \(\)"),
        ("full", {"covariance": -np.eye(3)}, "covariance is not symmetric and positive definite: give such a one"),
        ("full", {"covariance": np.triu(np.ones((3, 3)))}, "symmetric"),
        ("diag", {"covariance": [1.0, 0, 1]}, "covariance is not positive"),
        ("spherical", {"covariance": 0.0}, "covariance is not positive"),
        ("VEV", {}, "no variational posterior with covariance_type='VEV': give 'full', 'tied'"),
    ],
)  # fmt: skip
def test_a_prior_that_cannot_be_is_refused(name: str, options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VariationalPrior(**options).with_data(MODELS[name], _rows(), np.ones(400), 3)


def test_a_family_is_informed_once() -> None:
    x = _rows()
    family = _Fit.of("full", x, 3, VariationalPrior()).family
    assert family.with_data(x[:9], np.ones(9), x[0], x[0], 2) is family
    assert family.likelihood_is_bounded
