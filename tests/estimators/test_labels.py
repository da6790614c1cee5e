"""Laws of rows whose component is known: naive Bayes, discriminant analysis, semi-supervised EM, no labels at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr
from distributed import Client, LocalCluster
from scipy.special import logsumexp
from scipy.stats import bernoulli, multivariate_normal, norm, poisson
from sklearn.datasets import make_moons
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, GaussianNB

import daskgmm
import daskgmm.data.blocks
from daskgmm import BayesianGaussianMixture, GaussianMixture, GaussianMixtureIC, open_samples
from daskgmm.em.estep import block_stats_of_models, completed, log_joint_of, moments_from_responsibilities
from daskgmm.em.labelled import Known, shifted
from daskgmm.em.stats import Stats
from daskgmm.families.bernoulli import Bernoulli
from daskgmm.families.covariance import MODELS
from daskgmm.families.encoding import PLAIN
from daskgmm.families.frame import Frame
from daskgmm.families.gaussian import Gaussian, GaussianParameters
from daskgmm.families.product import ProductParameters
from daskgmm.fitting.labels import labelled_stats
from daskgmm.passes.reader import drop_labelled

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]

CODED = {name: model for name, model in MODELS.items() if name == model.code}
FITTED = ("weights_", "means_", "lower_bounds_", "n_passes_", "n_samples_")

_rng = np.random.default_rng(0)
WEIGHTS = np.array([0.2, 0.3, 0.5])
MEANS = np.array([[0.0, 0.0, 0.0], [2.0, 1.0, -1.0], [-1.0, 2.0, 2.0]])
SPREADS = 0.8 * np.eye(3) + 0.5 * _rng.standard_normal((3, 3, 3))
CHANCES = _rng.uniform(0.1, 0.9, (3, 6))
FRAME = replace(Frame.identity(3), radius=10.0)


def gaussian_rows(n: int, seed: int = 0) -> tuple[Array, Labels]:
    """Rows of three overlapping groups, and their groups."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=WEIGHTS)
    return MEANS[y] + np.einsum("nij,nj->ni", SPREADS[y], rng.standard_normal((n, 3))), y


def discrete_rows(name: str, n: int, seed: int = 0) -> tuple[Array, Labels]:
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=WEIGHTS)
    if name == "Poisson":
        return rng.poisson(5 * CHANCES[y]).astype(float), y
    return rng.binomial(1 if name == "Bernoulli" else 2, CHANCES[y]).astype(float), y


def some(y: Labels, share: float = 0.1, seed: int = 5) -> Labels:
    """Labels of which but a share is known."""
    return np.where(np.random.default_rng(seed).random(len(y)) < share, y, -1)


GAUSSIANS = {name: partial(GaussianMixture, 3, covariance_type=name, random_state=0) for name in CODED}
DISCRETE = {
    name: partial(getattr(daskgmm, f"{name}Mixture"), 3, random_state=0)
    for name in ("Bernoulli", "Categorical", "Poisson")
}
MIXTURES: dict[str, Callable[..., Any]] = {**GAUSSIANS, **DISCRETE}
every_mixture = pytest.mark.parametrize("name", MIXTURES)


def rows_of(name: str, n: int, seed: int = 0) -> tuple[Array, Labels]:
    return discrete_rows(name, n, seed) if name in DISCRETE else gaussian_rows(n, seed)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daskgmm.data.blocks, "BLOCK_VALUES", 600)
    monkeypatch.setattr(daskgmm.data.blocks, "_REGION_VALUES", 300)


def _close(found: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def _same_bits(found: Any, expected: Any) -> None:
    for name in FITTED:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


# Sums


def _model(name: str, tight: bool) -> Any:
    """Components of a family in a frame; tight: so narrow that moments are about each one's own mean."""
    if name == "Bernoulli":
        return Bernoulli(levels=(1,) * 6).components(ProductParameters(WEIGHTS, CHANCES), Frame.identity(6))
    spreads = SPREADS * (1e-6 if tight else 1)
    scatter = spreads @ spreads.transpose(0, 2, 1)
    if MODELS[name].diagonal:
        scatter = np.einsum("kii->ki", scatter).copy()
    family = Gaussian(MODELS[name])
    covariances = family.model.estimate(WEIGHTS, scatter)
    factors = family.factorize(covariances, WEIGHTS)
    components = family.components(GaussianParameters(WEIGHTS, MEANS, covariances, factors), FRAME)
    assert components.ill_conditioned.all() == tight
    return components


def _known(x: Array, labels: Labels, model: Any, w: Array | None = None) -> Known:
    (stats,) = labelled_stats([(x, (w, labels))], PLAIN, model)
    return Known(stats.n, stats.moments, model, False)


def _stats(x: Array, labels: Labels, model: Any, w: Array | None = None) -> Stats:
    """Of rows, some of whose components are known."""
    (stats,) = block_stats_of_models(drop_labelled([(x, (w, labels))]), [model])
    return _known(x, labels, model, w).beside(completed(stats, model), model)


@pytest.mark.parametrize(("name", "tight"), [*product(CODED, (False, True)), ("Bernoulli", False)])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_label_is_a_responsibility_of_one(name: str, tight: bool, weighted: bool) -> None:
    """The moments that rows have, if γ is one-hot where it is known, and the joint likelihood, row by row."""
    x, y = rows_of(name, 700)
    if tight:
        x = MEANS[y] + 1e-6 * (x - MEANS[y])
    labels = some(y, 0.4)
    w = np.random.default_rng(0).uniform(0, 2, len(x)) if weighted else None
    model = _model(name, tight)
    log_joint = np.concatenate([tile for _, tile in log_joint_of(x, model)], axis=1)
    known = (np.arange(3)[:, None] == labels) | (labels < 0)
    totals = logsumexp(np.where(known, log_joint, -np.inf), axis=0)
    resp = np.where(known, np.exp(log_joint - totals), 0)
    weights = np.ones(len(x)) if w is None else w
    expected = moments_from_responsibilities(x.T, resp * weights, model)
    found = _stats(x, labels, model, w)
    if model.shares_quadratic:  # Σφ counts for all components together
        first = 1 + x.shape[1]
        _close(found.moments[:, first:].sum(axis=0), expected[:, first:].sum(axis=0), 1e-10)
        expected, moments = expected[:, :first], found.moments[:, :first]
    else:
        moments = found.moments
    _close(moments, expected, 1e-10)
    assert found.log_likelihood == pytest.approx(weights @ totals, rel=1e-9)
    assert found.n == len(x)


@pytest.mark.parametrize("name", [*CODED, "Bernoulli"])
def test_split_is_whole_and_a_weight_is_the_row_as_often(name: str) -> None:
    x, y = rows_of(name, 400)
    labels, model, times = some(y, 0.4), _model(name, False), np.arange(400) % 4
    whole = _stats(x, labels, model, times.astype(float))
    parts = [_stats(x[at], labels[at], model, times[at].astype(float)) for at in (slice(0, 150), slice(150, 400))]
    repeated = _stats(np.repeat(x, times, axis=0), np.repeat(labels, times), model)
    for other in (parts[0] + parts[1], repeated):
        _close(other.moments, whole.moments, 1e-12)
        assert other.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)


@pytest.mark.parametrize("name", CODED)
def test_moments_move_to_other_centres(name: str) -> None:
    x, y = gaussian_rows(300)
    model = _model(name, False)
    elsewhere = replace(model, about=MEANS + 1)
    here, there = _known(x, y, model).moments, _known(x, y, elsewhere).moments
    _close(shifted(here, model.centres - elsewhere.centres, model.products), there, 1e-12)
    _close(shifted(there, elsewhere.centres - model.centres, model.products), here, 1e-12)


# All are known: the closed form


@pytest.mark.parametrize(
    ("covariance_type", "reference"),
    [
        ("diag", GaussianNB(var_smoothing=0)),
        ("full", QuadraticDiscriminantAnalysis(store_covariance=True)),  # with the likeliest covariances from 1.9 on
        ("tied", LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
@pytest.mark.parametrize("accelerate", [False, True])
def test_known_gaussians_are_discriminant_analysis(covariance_type: str, reference: Any, accelerate: bool) -> None:
    x, y = gaussian_rows(500)
    model = GaussianMixture(3, covariance_type=covariance_type, reg_covar=0, accelerate=accelerate).fit(x, labels=y)
    reference.fit(x, y)
    covariances = reference.var_ if covariance_type == "diag" else np.array(reference.covariance_)
    priors = reference.class_prior_ if covariance_type == "diag" else reference.priors_
    means = reference.theta_ if covariance_type == "diag" else reference.means_
    _close(model.weights_, priors, 1e-13)
    _close(model.means_, means, 1e-13)
    _close(model.covariances_, covariances, 1e-12)
    _close(model.predict_proba(x), reference.predict_proba(x), 1e-11)
    assert model.converged_
    assert model.n_passes_ == 1  # the survey, whose sample is all there is


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("name", "reference"), [("Bernoulli", BernoulliNB), ("Categorical", CategoricalNB)])
def test_known_discrete_rows_are_naive_bayes(name: str, reference: Any, alpha: float) -> None:
    x, y = discrete_rows(name, 400)
    model = MIXTURES[name](alpha=alpha).fit(x, labels=y)
    bayes = reference(alpha=alpha).fit(x, y)
    logs = bayes.feature_log_prob_
    _close(np.log(model.means_), np.hstack(logs) if isinstance(logs, list) else logs, 1e-12)
    _close(model.weights_, np.exp(bayes.class_log_prior_), 1e-12)
    _close(model.predict_proba(x), bayes.predict_proba(x), 1e-11)


@every_mixture
def test_known_rows_are_read_twice_at_most(name: str) -> None:
    """For the survey and for the sums, as soon as they are more than its sample."""
    x, y = rows_of(name, 800)
    lazy = da.from_array(x, chunks=(300, -1))
    model = MIXTURES[name](subsample=200, persist=False).fit(lazy, labels=da.from_array(y, chunks=170))
    assert model.converged_
    assert model.n_passes_ == 2
    expected = MIXTURES[name]().fit(x, labels=y)
    _close(model.means_, expected.means_, 1e-10)
    joint = np.log(model.predict_proba(x)[np.arange(800), y]) + model.score_samples(x)
    assert model.lower_bound_ == pytest.approx(joint.mean(), rel=1e-5)  # before the last step


# Some are: EM


@every_mixture
@pytest.mark.parametrize("accelerate", [False, True])
def test_the_joint_likelihood_never_falls(name: str, accelerate: bool) -> None:
    x, y = rows_of(name, 700)
    labels = some(y)
    model = MIXTURES[name](tol=0, max_iter=40, accelerate=accelerate)
    with pytest.warns(match="did not converge"):
        model.fit(x, labels=labels)
    bounds = np.array(model.lower_bounds_)
    assert bounds[-1] > bounds[0] + 1e-3
    assert (np.diff(bounds) >= -1e-8).all()  # as without labels: what products lose for the narrowest component
    joint = np.where(
        labels < 0,
        model.score_samples(x),
        np.log(model.predict_proba(x)[np.arange(700), labels]) + model.score_samples(x),
    )
    assert joint.mean() >= bounds[-1] - 1e-8


def _log_densities(name: str, x: Array, parameters: Any) -> Array:
    """log p(x | k) by SciPy: (n, k)."""
    if name == "Bernoulli":
        return np.column_stack([bernoulli.logpmf(x, p).sum(axis=1) for p in parameters[0]])
    if name == "Poisson":
        return np.column_stack([poisson.logpmf(x, p).sum(axis=1) for p in parameters[0]])
    if name == "diag":
        return np.column_stack([norm.logpdf(x, m, np.sqrt(v)).sum(axis=1) for m, v in zip(*parameters, strict=True)])
    return np.column_stack([multivariate_normal.logpdf(x, m, s) for m, s in zip(*parameters, strict=True)])


def _maximized(name: str, x: Array, resp: Array) -> tuple[Array, ...]:
    counts = resp.sum(axis=0)
    means = resp.T @ x / counts[:, None]
    if name in DISCRETE:
        return (means,)
    if name == "diag":
        return means, resp.T @ x**2 / counts[:, None] - means**2
    return means, np.array([np.cov(x.T, aweights=r, bias=True) for r in resp.T])


@pytest.mark.parametrize("name", ["full", "diag", "Bernoulli", "Poisson"])
@pytest.mark.parametrize("weighted", [False, True])
def test_iterates_are_those_of_em_written_out(name: str, weighted: bool) -> None:
    """Fifteen steps by dense arrays and SciPy's densities."""
    x, y = rows_of(name, 500)
    labels = some(y)
    w = np.random.default_rng(3).integers(0, 4, 500).astype(float) if weighted else np.ones(500)
    hot = np.eye(3)[np.argsort(np.argsort(x[:, 0])) * 3 // 500]  # some start: slices along the first feature
    weights, parameters = hot.mean(axis=0), _maximized(name, x, 0.8 * hot + 0.1)
    start: dict[str, Any] = {"weights_init": weights, "means_init": parameters[0]}
    if name == "full":
        start["precisions_init"] = np.linalg.inv(parameters[1])
    if name == "diag":
        start["precisions_init"] = 1 / parameters[1]
    if name not in DISCRETE:
        start |= {"covariance_type": name, "reg_covar": 0}
    build = DISCRETE.get(name, partial(GaussianMixture, 3))
    model = build(**start, max_iter=15, tol=0, accelerate=False)
    with pytest.warns(match="did not converge"):
        model.fit(x, sample_weight=w if weighted else None, labels=labels)
    known = labels >= 0
    bounds = []
    for _ in range(15):
        log_joint = np.log(weights) + _log_densities(name, x, parameters)
        totals = np.where(known, log_joint[np.arange(500), labels], logsumexp(log_joint, axis=1))
        bounds.append(np.average(totals, weights=w))
        resp = np.where(known[:, None], np.eye(3)[labels], np.exp(log_joint - totals[:, None])) * w[:, None]
        weights, parameters = resp.sum(axis=0) / w.sum(), _maximized(name, x, resp)
    _close(model.lower_bounds_, bounds, 1e-12)
    _close(model.weights_, weights, 1e-9)
    _close(model.means_, parameters[0], 1e-9)
    if name not in DISCRETE:
        _close(model.covariances_, parameters[1], 1e-9)


@pytest.mark.parametrize("name", DISCRETE)
def test_a_weight_is_the_row_as_often(name: str) -> None:
    """Also in the start, where no frame is that of the rows without their weights."""
    x, y = rows_of(name, 400)
    labels, times = some(y, 0.3), np.arange(400) % 3
    options = {"tol": 1e-4}
    weighted = MIXTURES[name](**options).fit(x, sample_weight=times, labels=labels)
    repeated = MIXTURES[name](**options).fit(np.repeat(x, times, axis=0), labels=np.repeat(labels, times))
    _close(weighted.means_, repeated.means_, 1e-8)
    _close(weighted.weights_, repeated.weights_, 1e-8)


@pytest.mark.parametrize("name", ["EII", "EEE", "VVV", *DISCRETE])
@pytest.mark.parametrize(("subsample", "lazy"), [(None, True), (100, True), (100_000, False)])
def test_no_label_known_is_no_labels(name: str, subsample: int | None, lazy: bool) -> None:
    x, _ = rows_of(name, 400)
    data = da.from_array(x, chunks=(150, -1)) if lazy else x
    options = {"subsample": subsample, "tol": 1e-2}
    _same_bits(MIXTURES[name](**options).fit(data, labels=np.full(400, -1)), MIXTURES[name](**options).fit(data))


@pytest.mark.parametrize("name", ["full", *DISCRETE])
def test_rows_with_gaps(name: str) -> None:
    """Dropped: as if they were not there. Skipped: as naive Bayes from what is there."""
    x, y = rows_of(name, 500)
    labels = some(y, 0.3)
    gappy = np.where(np.random.default_rng(1).random(x.shape) < 0.05, np.nan, x)
    whole = np.isfinite(gappy).all(axis=1)
    build = DISCRETE.get(name, partial(GaussianMixture, 3, random_state=0))
    dropped = build(missing="drop").fit(gappy, labels=labels)
    expected = build().fit(x[whole], labels=labels[whole])
    assert dropped.n_samples_ == whole.sum()
    _close(dropped.means_, expected.means_, 1e-9)
    if name not in DISCRETE:
        return
    skipped = build(missing="skip").fit(gappy, labels=y)
    for k in range(3):
        if name != "Categorical":
            _close(skipped.means_[k], np.nanmean(gappy[y == k], axis=0), 1e-12)
    assert skipped.n_samples_ == np.isfinite(gappy).any(axis=1).sum()
    partly = build(missing="skip").fit(gappy, labels=labels)
    assert (np.diff(partly.lower_bounds_) >= -1e-10).all()


# What labels are for


@pytest.mark.parametrize("name", ["full", *DISCRETE])
def test_a_few_labels_say_which_component_is_which(name: str) -> None:
    """One row in a hundred: the components are the classes, in their order."""
    x, y = rows_of(name, 6000)
    build = DISCRETE.get(name, partial(GaussianMixture, 3, covariance_type=name, random_state=0))
    best = (build().fit(x, labels=y).predict(x) == y).mean()
    order = np.array([2, 0, 1])
    for classes in (y, order[y]):
        model = build(tol=1e-5, max_iter=500).fit(x, labels=some(classes, 0.01))
        assert (model.predict(x) == classes).mean() > best - 0.03


@pytest.mark.parametrize("seed", range(4))
def test_labels_tell_crossing_bars_apart(seed: int) -> None:
    """One row in a hundred; both have their centre in the same place, so that a nearest one says nothing."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 4000)
    x = rng.standard_normal((4000, 2)) * np.where(y[:, None] == 0, [3.0, 0.4], [0.4, 3.0])
    model = GaussianMixture(2).fit(x, labels=some(y, 0.01, seed))
    assert (model.predict(x) == y).mean() > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_labels_lead_to_moons(seed: int) -> None:
    """And not to the likeliest mixture, which is across them: that has three rows in four right."""
    x, y = make_moons(4000, noise=0.1, random_state=0)
    model = GaussianMixture(2, tol=1e-6, max_iter=500, random_state=seed)
    unlabelled = (model.fit(x).predict(x) == y).mean()
    assert max(unlabelled, 1 - unlabelled) < 0.75
    assert (model.fit(x, labels=some(y, 0.01, seed)).predict(x) == y).mean() > 0.84


def test_one_label_a_class_is_enough_for_blobs(blobs: Array) -> None:
    y = np.array([2, 0, 1])[np.arange(600) // 200]
    labels = np.full(600, -1)
    labels[[5, 250, 599]] = y[[5, 250, 599]]
    for model in (GaussianMixture(3), BayesianGaussianMixture(3), GaussianMixture(3, covariance_type="EVE")):
        assert (model.fit(blobs, labels=labels).predict(blobs) == y).all()


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random_from_data", "random"])
def test_components_without_labels_find_what_is_left(init_params: str, blobs: Array) -> None:
    """Of the three blobs, only the last is known, and is component 0."""
    labels = np.where((np.arange(600) >= 400) & (np.arange(600) % 10 == 0), 0, -1)
    model = GaussianMixture(3, init_params=init_params, max_iter=300, random_state=0).fit(blobs, labels=labels)
    _close(model.means_[0], blobs[400:].mean(axis=0), 0.05)
    found = model.predict(blobs).reshape(3, 200)
    assert (found[2] == 0).mean() > 0.95
    if init_params in ("kmeans", "k-means++"):
        assert {int(np.bincount(part).argmax()) for part in found[:2]} == {1, 2}


def test_the_user_s_start_counts(blobs: Array) -> None:
    x, y = gaussian_rows(300)
    labels = some(y)
    means = MEANS + 0.25
    model = GaussianMixture(3, means_init=means, max_iter=0).fit(x, labels=labels)
    _close(model.means_, means, 1e-14)
    model = GaussianMixture(3, warm_start=True, max_iter=3, tol=1e-9)
    with pytest.warns(match="did not converge"):
        before = model.fit(x, labels=labels).lower_bound_
    assert model.fit(x, labels=labels).lower_bounds_[0] >= before
    weighted = GaussianMixture(3, weights_init=[0.1, 0.1, 0.8], max_iter=0).fit(x, labels=y)
    _close(weighted.weights_, [0.1, 0.1, 0.8], 1e-14)


# Variational Bayes


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("prior", ["dirichlet_process", "dirichlet_distribution"])
@pytest.mark.parametrize("accelerate", [False, True])
def test_the_bound_never_falls(covariance_type: str, prior: str, accelerate: bool) -> None:
    """Of six components, three are known and keep their numbers; the others need not have rows."""
    x, y = gaussian_rows(800)
    options = {"weight_concentration_prior_type": prior, "weight_concentration_prior": 1e-3, "random_state": 0}
    model = BayesianGaussianMixture(
        6, covariance_type=covariance_type, reg_covar=0, tol=1e-7, max_iter=500, accelerate=accelerate, **options
    ).fit(x, labels=some(y + 1))
    assert (np.diff(model.lower_bounds_) >= -1e-8).all()
    assert (model.predict(x) == y + 1).mean() > (0.9 if covariance_type == "full" else 0.5)


def test_a_posterior_of_known_rows_is_bishop_s() -> None:
    """Eq. 10.58 and 10.60 to 10.63, in one step; a component that is no row's is as the prior is."""
    x, y = gaussian_rows(400)
    model = BayesianGaussianMixture(
        4, weight_concentration_prior_type="dirichlet_distribution", weight_concentration_prior=0.5, reg_covar=0
    ).fit(x, labels=y)
    counts = np.bincount(y, minlength=4)
    _close(model.weight_concentration_, 0.5 + counts, 1e-12)
    _close(model.mean_precision_, 1 + counts, 1e-12)
    _close(model.degrees_of_freedom_, 3 + counts, 1e-12)
    sums = np.array([x[y == k].sum(axis=0) for k in range(4)])
    _close(model.means_, (model.mean_prior_ + sums) / (1 + counts)[:, None], 1e-12)
    gap = x[y == 1].mean(axis=0) - model.mean_prior_
    scatter = np.cov(x[y == 1].T, bias=True) * counts[1] + np.outer(gap, gap) * counts[1] / (1 + counts[1])
    _close(model.covariances_[1], (model.covariance_prior_ + scatter) / (3 + counts[1]), 1e-12)
    assert model.n_passes_ == 1
    assert model.n_components_effective_ == 3


# What holds them


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("container", ["NumPy", "dask", "DataArray", "Dataset", "Dataset, dask", "Zarr"])
@pytest.mark.parametrize("form", ["ndarray", "list", "dask", "DataArray", "Zarr", "float"])
def test_labels_of_any_kind(container: str, form: str, weighted: bool, tmp_path: Path) -> None:
    x, y = gaussian_rows(600)
    labels = some(y, 0.2)
    cube, weight = labels.reshape(20, 30), np.arange(600).reshape(20, 30) % 3
    fields = xr.Dataset({name: (("t", "u"), x[:, i].reshape(20, 30)) for i, name in enumerate("abc")})
    data = {
        "NumPy": lambda: x.reshape(20, 30, 3),
        "dask": lambda: da.from_array(x.reshape(20, 30, 3), chunks=(7, 20, 2)),
        "DataArray": lambda: xr.DataArray(x.reshape(20, 30, 3), dims=("t", "u", "feature")),
        "Dataset": lambda: fields,
        "Dataset, dask": lambda: fields.chunk(t=6),
        "Zarr": lambda: zarr.create_array(str(tmp_path / "x.zarr"), data=x.reshape(20, 30, 3), chunks=(4, 30, 3)),
    }[container]()
    given: Any = {
        "ndarray": lambda: cube.astype(np.int8),
        "list": cube.tolist,
        "dask": lambda: da.from_array(cube, chunks=(3, 11)),
        "DataArray": lambda: xr.DataArray(cube, dims=("t", "u")),
        "Zarr": lambda: zarr.create_array(str(tmp_path / "l.zarr"), data=cube, chunks=(9, 9)),
        "float": lambda: cube.astype(np.float32),
    }[form]()
    if form == "DataArray" and container.startswith("Data"):
        given = given.transpose("u", "t").chunk(u=4)
    model, expected = GaussianMixture(3, tol=1e-2, random_state=0), _of_arrays(weighted)
    model.fit(open_samples(data, sample_weight=weight if weighted else None, labels=given))
    _close(model.means_, expected.means_, 1e-8)
    assert model.n_iter_ == expected.n_iter_


@cache
def _of_arrays(weighted: bool) -> GaussianMixture:
    """The same rows, weights and labels as arrays."""
    x, y = gaussian_rows(600)
    weight = np.arange(600) % 3 if weighted else None
    return GaussianMixture(3, tol=1e-2, random_state=0).fit(x, sample_weight=weight, labels=some(y, 0.2))


def test_labels_straight_to_fit(tmp_path: Path) -> None:
    x, y = gaussian_rows(400)
    labels = some(y)
    options = {"subsample": 100, "tol": 1e-2, "random_state": 0}
    expected = GaussianMixture(3, **options).fit(da.from_array(x, chunks=(80, 3)), labels=labels)
    store = zarr.create_array(str(tmp_path / "x.zarr"), data=x, chunks=(80, 3))
    for persist in (True, False):
        for data, given in ((store, labels), (str(tmp_path / "x.zarr"), da.from_array(labels, chunks=33))):
            model = GaussianMixture(3, persist=persist, **options).fit(data, labels=given)
            _close(model.means_, expected.means_, 1e-5)  # the first passes are in single precision
    assert model.n_passes_ == 3 + model.n_iter_  # survey, what is known, start, EM
    model.fit(store, labels=some(y, 0.5))
    assert model.n_passes_ == 2 + model.n_iter_  # what is known is enough to start from


def test_columns_with_names(blobs: Array) -> None:
    pd = pytest.importorskip("pandas")
    y = np.arange(600) // 200
    model = GaussianMixture(3).fit(pd.DataFrame(blobs, columns=list("abc")), labels=pd.Series(y, dtype="Int64"))
    _close(model.means_, blobs.reshape(3, 200, 3).mean(axis=1), 1e-12)


def test_columns_of_categories() -> None:
    pd = pytest.importorskip("pandas")
    x, y = discrete_rows("Categorical", 300)
    frame = pd.DataFrame({f"c{i}": pd.Categorical.from_codes(x[:, i].astype(int), list("abc")) for i in range(6)})
    model, expected = (MIXTURES["Categorical"]().fit(data, labels=some(y)) for data in (frame, x))
    _same_bits(model, expected)


@pytest.mark.usefixtures("small_blocks")
def test_same_bits_on_a_cluster(tmp_path: Path) -> None:
    x, y = gaussian_rows(2400)
    store = zarr.create_array(str(tmp_path / "x.zarr"), data=x, chunks=(50, 3), shards=(100, 3))
    labels = da.from_array(some(y), chunks=500)
    options = {"subsample": 1000, "tol": 1e-4, "random_state": 0}
    cluster = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "host": "127.0.0.1"}
    with LocalCluster(**cluster) as workers, Client(workers) as client:
        found = [GaussianMixture(3, **options).fit(data, labels=labels) for data in (store, da.from_zarr(store))]
        with client.as_current(), dask.config.set(scheduler="threads"):
            here = [GaussianMixture(3, **options).fit(data, labels=labels) for data in (store, da.from_zarr(store))]
    for model, expected in zip(found, here, strict=True):
        _same_bits(model, expected)


def test_only_rows_that_are_not_known_are_looked_at(blobs: Array) -> None:
    """In the passes of EM: with labels it takes less time, not more."""
    y = np.arange(600) // 200
    labels = some(y, 0.5)
    seen = []

    def watched(pieces: Any, prepared: Any) -> Any:
        pieces = list(pieces)
        seen.append(sum(len(x) for x, _ in pieces))
        return real(pieces, prepared)

    real = daskgmm.fitting.em_pass.block_stats
    with mock.patch("daskgmm.fitting.em_pass.block_stats", watched):
        model = GaussianMixture(3).fit(blobs, labels=labels)
    assert set(seen) == {int((labels < 0).sum())}
    assert model.history_[-1].n_samples == 600


# What goes wrong


@pytest.mark.parametrize("value", [3, 7, -2, 0.5, np.nan, np.inf])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_label_of_no_component_is_named(value: float, lazy: bool) -> None:
    x, y = gaussian_rows(100)
    labels = y.astype(float) if value != round(np.nan_to_num(value)) or not np.isfinite(value) else y.copy()
    labels[41] = value
    data = da.from_array(x, chunks=(30, 3)) if lazy else x
    model = GaussianMixture(3)
    with pytest.raises(ValueError, match=rf"labels is {value:g} at row 41, but with n_components=3 a label .* 0 to 2"):
        model.fit(data, labels=labels)
    assert not hasattr(model, "means_")


def test_labels_that_do_not_fit_the_rows() -> None:
    x, y = gaussian_rows(60)
    with pytest.raises(ValueError, match=r"labels.shape == \(59,\), expected \(60,\): give one label a sample"):
        GaussianMixture(3).fit(x, labels=y[:-1])
    with pytest.raises(ValueError, match=r"labels.shape == \(60, 1\)"):
        GaussianMixture(3).fit(da.from_array(x), labels=y[:, None])
    with pytest.raises(ValueError, match="labels has dtype"):
        GaussianMixture(3).fit(x, labels=["a"] * 60)
    with pytest.raises(ValueError, match="labels comes beside samples that are open: give it to open_samples"):
        GaussianMixture(3).fit(open_samples(x), labels=y)
    ds = xr.Dataset({"a": ("t", x[:, 0])}, coords={"t": np.arange(60)})
    with pytest.raises(ValueError, match="labels has other coordinates than the samples"):
        GaussianMixture(3).fit(ds, labels=xr.DataArray(y, dims="t", coords={"t": np.arange(60) + 1}))
    with pytest.raises(ValueError, match=r"labels has dimensions \('u',\), expected"):
        GaussianMixture(3).fit(ds, labels=xr.DataArray(y, dims="u"))


def test_components_for_which_no_row_is_left() -> None:
    x, y = gaussian_rows(60)
    with pytest.raises(ValueError, match="no row is labelled 3, and 0 rows without a label are left for 1 such"):
        GaussianMixture(4).fit(x, labels=y)


def test_a_selection_takes_no_labels() -> None:
    x, y = gaussian_rows(60)
    with pytest.raises(TypeError, match="labels"):
        GaussianMixtureIC().fit(x, labels=y)
    with pytest.raises(ValueError, match="labels are numbers of components, of which each candidate has its own"):
        GaussianMixtureIC().fit(open_samples(x, labels=y))
