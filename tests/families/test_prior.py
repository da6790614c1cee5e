"""Conjugate priors: against mclust, against SciPy's densities, and what each M-step and fit with one must be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import daskgmm
from daskgmm import GaussianMixture, GaussianMixtureIC, Prior
from daskgmm.cli import main
from daskgmm.em.estep import moments_from_responsibilities
from daskgmm.families.covariance import MODELS, CovarianceModel
from daskgmm.families.frame import Frame
from daskgmm.families.gaussian import Gaussian, GaussianParameters

Array = npt.NDArray[np.float64]

CODED = {name: model for name, model in MODELS.items() if name == model.code}
every_model = pytest.mark.parametrize("model", CODED.values(), ids=list(CODED))
REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "mclust.json").read_text())
DATA_SETS = ["faithful", "trees", "iris", "quakes"]


def _m_step(code: str, x: Array, resp: Array, prior: Prior | None, frame: Frame | None = None) -> GaussianParameters:
    """From responsibilities (k, n), about the origin."""
    frame = Frame.of_sample(x, whiten=not MODELS[code].diagonal) if frame is None else frame
    family = _family(code, x, len(resp), prior)
    blank = family.zero_components(len(resp), frame)
    return family.maximize(blank, moments_from_responsibilities(frame.apply(x), resp, blank)).moved(frame.shift)


def _family(code: str, x: Array, k: int, prior: Prior | None) -> Gaussian:
    model = MODELS[code]
    return Gaussian(model, prior=None if prior is None else prior.with_data(model, x, np.ones(len(x)), k))


def _posterior(code: str, x: Array, resp: Array, prior: Prior, found: GaussianParameters) -> float:
    """What an M-step from these responsibilities maximizes."""
    family, frame = _family(code, x, len(resp), prior), Frame.identity(x.shape[1])
    components = family.components(found, frame)
    blank = family.zero_components(len(resp), frame)
    expected = float((components.theta * moments_from_responsibilities(x.T, resp, blank)).sum())
    return expected + family.log_prior(found, frame)


def _soft(n: int, k: int, seed: int = 0) -> Array:
    """Responsibilities (k, n)."""
    return np.random.default_rng(seed).dirichlet(np.full(k, 0.5), n).T


# mclust


def _theirs(name: str, code: str) -> tuple[Array, Array, Array, dict[str, Any]]:
    """Rows, one-hot responsibilities, covariances and what else is known."""
    data = REFERENCE[name]
    found = data["with_prior"][code]
    x = np.array(data["rows"])
    resp = np.eye(max(data["partition"]) + 1)[:, data["partition"]]
    return x, resp, np.reshape(found["covariances"], (len(resp), x.shape[1], x.shape[1])), found


# Its EII leaves out the scale, its EEV what the gap between the means adds to the scatter; EEI and EEV do not draw the
# means to the prior's. EII also counts the gap (n + shrinkage) / n times.
AS_THERE = {"EII": Prior(scale=1e-9), "EEV": Prior(shrinkage=0)}


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("code", list(REFERENCE["iris"]["with_prior"]))
def test_one_m_step_is_that_of_mclust(code: str, name: str) -> None:
    x, resp, theirs, found = _theirs(name, code)
    ours = _m_step(code, x, resp, AS_THERE.get(code, Prior()))
    differ = np.abs(MODELS[code].compact(ours.covariances) - theirs).max() / np.abs(theirs).max()
    assert differ <= (1e-5 if code == "EII" else 1e-12)
    if code not in ("EEI", "EEV"):
        assert ours.means == pytest.approx(np.array(found["means"]), rel=1e-12)


# Where its EM does not end in an error. EII, EEI and EEV are not maxima there (above), and EM has another EVI.
ENDS = [
    (name, code)
    for name in DATA_SETS
    for code, found in REFERENCE[name]["with_prior"].items()
    if code not in ("EII", "EEI", "EVI", "EEV") and found["log_likelihood"] is not None
]


@pytest.mark.parametrize(("name", "code"), ENDS)
def test_em_ends_where_that_of_mclust_does(name: str, code: str) -> None:
    """Its log-likelihood is without the prior, and 2e-6 from the end of EM where EM is slow."""
    x, resp, theirs, found = _theirs(name, code)
    start = _m_step(code, x, resp, Prior())
    gm = GaussianMixture(
        len(resp), covariance_type=code, prior="default", reg_covar=0, accelerate=False, tol=1e-11, max_iter=3000,
        weights_init=start.weights, means_init=start.means, precisions_init=np.linalg.inv(theirs),
    ).fit(x)  # fmt: skip
    assert np.diff(gm.lower_bounds_).min() > -1e-12
    assert -1e-6 < gm.score(x) - found["log_likelihood"] / len(x) < 3e-6


# The density


def _drawn(model: CovarianceModel, d: int, k: int, seed: int) -> GaussianParameters:
    """Some parameters of the model."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((k, d, 3 * d))
    scatter = mixing @ mixing.transpose(0, 2, 1)
    covariances = model.estimate(np.ones(k), np.einsum("kii->ki", scatter).copy() if model.diagonal else scatter)
    factors = Gaussian(model).factorize(covariances, np.ones(k))
    return GaussianParameters(rng.dirichlet(np.full(k, 5.0)), rng.standard_normal((k, d)), covariances, factors)


def _scipys(code: str, prior: Prior, found: GaussianParameters) -> float:
    """The log-density of weights, means and covariances, by SciPy."""
    k = len(found.means)
    concentration = np.full(k, prior.weight_concentration)
    value = stats.dirichlet.logpdf(found.weights, concentration)
    whole = found.covariances if found.covariances.ndim == 3 else np.array([np.diag(v) for v in found.covariances])
    for mean, covariance in zip(found.means, whole, strict=True):
        value += stats.multivariate_normal.logpdf(mean, prior.mean, covariance / prior.shrinkage)
    apart = whole if "V" in code else whole[:1]
    assert prior.dof is not None
    for covariance in apart:
        if code[2] != "I":
            value += stats.invwishart.logpdf(covariance, prior.dof, prior.scale)
        else:
            variances = covariance.diagonal() if code[1] != "I" else covariance[:1, 0]
            value += stats.invgamma.logpdf(variances, prior.dof / 2, scale=np.asarray(prior.scale) / 2).sum()
    return float(value)


@pytest.mark.parametrize("code", ["EII", "VII", "EEI", "VVI", "EEE", "VVV"])
@pytest.mark.parametrize("d", [1, 3])
def test_the_log_density_is_that_of_scipy_but_for_a_constant(code: str, d: int) -> None:
    rng = np.random.default_rng(d)
    square = rng.standard_normal((d, d + 2))
    scale = 1.7 if code[2] == "I" else square @ square.T
    prior = Prior(rng.standard_normal(d), shrinkage=0.3, dof=d + 2.5, scale=scale, weight_concentration=1.8)
    family = Gaussian(MODELS[code], prior=prior.with_data(MODELS[code], np.zeros((5, d)), np.ones(5), 3))
    frame = Frame(rng.standard_normal(d), np.ones(d))
    differences = []
    for seed in range(5):
        found = _drawn(MODELS[code], d, 3, seed)
        ours = family.log_prior(found.moved(-frame.shift), frame)
        differences.append(ours - _scipys(code, prior, found))
    assert differences == pytest.approx([differences[0]] * 5, abs=1e-9)


# M-steps


PRIORS = [Prior(), Prior(shrinkage=5, dof=20, scale=3.0, weight_concentration=4)]


@every_model
@settings(max_examples=10, deadline=None)
@given(
    k=st.integers(1, 4), d=st.integers(1, 4), seed=st.integers(0, 99), log_size=st.floats(-4, -0.5), which=st.booleans()
)
def test_the_m_step_is_a_maximum(
    model: CovarianceModel, k: int, d: int, seed: int, log_size: float, which: bool
) -> None:
    """Of the expected log-posterior: no parameters of the model that M-steps for other rows give have more."""
    rng, prior = np.random.default_rng(seed), PRIORS[which]
    x = rng.standard_normal((40, d)) @ rng.standard_normal((d, d)) + 3
    resp, frame = _soft(40, k, seed), Frame.identity(d)
    found = _m_step(model.code, x, resp, prior)
    elsewhere = x + 10.0**log_size * rng.standard_normal((40, d))
    towards = (1 - 10.0**log_size) * resp + 10.0**log_size * _soft(40, k, seed + 1)
    other = _m_step(model.code, elsewhere, towards, prior, frame)
    best = _posterior(model.code, x, resp, prior, found)
    assert _posterior(model.code, x, resp, prior, other) <= best + 1e-8 * abs(best)


@every_model
def test_the_m_step_does_not_depend_on_the_frame(model: CovarianceModel) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3)) * [1, 10, 0.1] + [5, -100, 0]
    frames = [
        Frame.identity(3),
        Frame.of_sample(x, whiten=not model.diagonal),
        Frame(np.ones(3), np.array([9.0, 2, 3])),
    ]
    steps = [_m_step(model.code, x, _soft(60, 3), PRIORS[1], frame) for frame in frames]
    for found in steps[1:]:
        for name in ("weights", "means", "covariances"):
            expected = getattr(steps[0], name)
            assert np.abs(getattr(found, name) - expected).max() <= 1e-9 * np.abs(expected).max()


@every_model
def test_a_prior_that_is_worth_nothing_changes_nothing(model: CovarianceModel) -> None:
    """And one that is worth more than the rows is what comes of it."""
    rng = np.random.default_rng(1)
    x, resp = rng.standard_normal((50, 3)), _soft(50, 2)
    plain = _m_step(model.code, x, resp, None)
    weak = Prior(shrinkage=1e-12, scale=1e-12)
    family = _family(model.code, x, 2, weak)
    assert family.prior is not None
    nothing = replace(family, prior=replace(family.prior, each=0.0, shared=0.0))
    blank = family.zero_components(2, Frame.identity(3))
    found = nothing.maximize(blank, moments_from_responsibilities(x.T, resp, blank))
    assert found.covariances == pytest.approx(plain.covariances, rel=1e-9)
    assert found.means == pytest.approx(plain.means, abs=1e-9)
    strong = _m_step(model.code, x, resp, Prior(mean=np.full(3, 7.0), shrinkage=1e9, weight_concentration=1e9))
    assert strong.means == pytest.approx(np.full((2, 3), 7.0), abs=1e-5)
    assert strong.weights == pytest.approx(np.full(2, 0.5), abs=1e-6)


# Fits


@pytest.mark.filterwarnings("ignore::UserWarning")  # not converged
@every_model
@pytest.mark.parametrize("accelerate", [False, True])
def test_the_log_posterior_never_falls(model: CovarianceModel, accelerate: bool, blobs: Array) -> None:
    gm = GaussianMixture(
        5, covariance_type=model.code, prior=PRIORS[1], reg_covar=0, tol=1e-9, max_iter=40, accelerate=accelerate,
        init_params="random_from_data", subsample=None, random_state=0,
    )  # fmt: skip
    gm.fit(blobs[:300])
    assert np.diff(gm.lower_bounds_).min() >= -1e-11 * abs(gm.lower_bound_)
    assert gm.lower_bounds_[-1] > gm.lower_bounds_[0]


def test_the_lower_bound_is_the_log_posterior(blobs: Array) -> None:
    gm = GaussianMixture(3, prior="default", reg_covar=0, tol=1e-10, max_iter=500, random_state=0).fit(blobs)
    family = _family("VVV", blobs, 3, Prior())
    log_prior = family.log_prior(gm._parameters(), Frame.identity(blobs.shape[1]))
    assert gm.lower_bound_ == pytest.approx(gm.score(blobs) + log_prior / len(blobs), abs=1e-8)


@pytest.mark.parametrize("code", ["VII", "VVI", "VVV", "VVE", "EEV"])
@pytest.mark.filterwarnings("ignore:component")
def test_what_collapses_without_a_prior_does_not_with_one(code: str) -> None:
    """More components than distinct rows, and features that depend on each other; the error says what to do."""
    rows = np.repeat(np.random.default_rng(0).standard_normal((6, 3)), 4, axis=0)
    options: dict[str, Any] = {
        "covariance_type": code,
        "reg_covar": 0,
        "random_state": 0,
        "init_params": "random_from_data",
    }
    with pytest.raises(ValueError, match="prior='default'"):
        GaussianMixture(8, **options).fit(rows)
    with pytest.warns(UserWarning, match="the prior alone decides their density"):
        gm = GaussianMixture(8, prior="default", **options).fit(rows)
    assert np.isfinite(gm.score(rows))
    rows = np.random.default_rng(0).standard_normal((12, 3))
    for seed in range(3):  # collapses on four rows or fewer
        gm = GaussianMixture(6, prior="default", **options | {"random_state": seed}).fit(rows)
        assert np.isfinite(gm.lower_bounds_).all()


def test_rows_of_a_sample_inform_the_prior_of_more(blobs: Array) -> None:
    """A fit whose starts come from a sample ends where one of all rows does."""
    x = np.tile(blobs, (2, 1)) + 0.01 * np.random.default_rng(0).standard_normal((2 * len(blobs), blobs.shape[1]))
    settings: dict[str, Any] = {"prior": "default", "tol": 1e-7, "random_state": 0}
    whole = GaussianMixture(3, **settings).fit(x)
    part = GaussianMixture(3, subsample=1000, **settings).fit(x)
    assert part.score(x) == pytest.approx(whole.score(x), abs=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # not converged
def test_weights_of_rows_inform_the_prior(blobs: Array) -> None:
    """A weight of two is the row twice."""
    times = 1 + np.arange(len(blobs)) % 2
    settings: dict[str, Any] = {
        "prior": Prior(shrinkage=3, weight_concentration=2), "tol": 0, "max_iter": 5, "weights_init": [0.5, 0.5],
        "means_init": blobs[:2], "precisions_init": [np.eye(blobs.shape[1])] * 2,
    }  # fmt: skip
    weighted = GaussianMixture(2, **settings).fit(blobs, sample_weight=times)
    repeated = GaussianMixture(2, **settings).fit(np.repeat(blobs, times, axis=0))
    assert weighted.means_ == pytest.approx(repeated.means_, rel=1e-9)
    assert weighted.covariances_ == pytest.approx(repeated.covariances_, rel=1e-9)
    assert weighted.lower_bound_ == pytest.approx(repeated.lower_bound_, rel=1e-9)


# Users


@pytest.mark.parametrize("prior", ["default", Prior(mean=[0.0, 0, 0], scale=np.eye(3), weight_concentration=2)])
def test_a_model_remembers_its_prior(prior: Any, blobs: Array, tmp_path: Path) -> None:
    gm = GaussianMixture(3, prior=prior, random_state=0, warm_start=True).fit(blobs)
    gm.save(tmp_path / "model.zarr")
    again = daskgmm.load(tmp_path / "model.zarr")
    assert np.array_equal(again.fit(blobs).means_, GaussianMixture(3, prior=prior, random_state=0).fit(blobs).means_)
    if isinstance(prior, Prior):
        assert np.array_equal(again.prior.scale, prior.scale)
        assert again.prior.weight_concentration == 2


def test_a_search_with_a_prior_has_the_criteria_of_the_likelihood(blobs: Array) -> None:
    """As mclust's, which counts the prior in the estimates alone."""
    search = GaussianMixtureIC(range(1, 4), covariance_type=("VVV", "VVI"), prior="default", random_state=0).fit(blobs)
    assert search.best_score_ == pytest.approx(search.bic(blobs), abs=0.05)
    assert search.best_estimator_.prior == "default"


def test_the_command_line_fits_with_a_prior(blobs: Array, tmp_path: Path) -> None:
    import zarr

    store = str(tmp_path / "rows.zarr")
    zarr.create_array(store, data=blobs)
    output = str(tmp_path / "model.zarr")
    arguments = ["fit", store, "--components", "3", "--prior", "default", "--output", output, "--workers", "0"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert daskgmm.load(output).prior == "default"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shrinkage": -1}, "shrinkage is -1"),
        ({"dof": np.nan}, "dof is nan"),
        ({"weight_concentration": 0.5}, "weight_concentration is 0.5: give a number not below 1"),
        ({"mean": [0.0, 1.0]}, r"mean has shape \(2,\): give finite values of shape \(3,\)"),
        ({"mean": [0.0, 1.0, np.inf]}, "finite"),
        ({"scale": np.eye(2)}, r"scale has shape \(2, 2\): give finite values of shape \(\) or \(3,\) or \(3, 3\)"),
        ({"scale": -1.0}, "not symmetric and positive definite"),
        ({"scale": np.ones((3, 3))}, "not symmetric and positive definite"),
        ({"scale": np.triu(np.ones((3, 3)))}, "not symmetric and positive definite"),
    ],
)
def test_a_prior_that_cannot_be_is_refused(options: Any, words: str, blobs: Array) -> None:
    with pytest.raises(ValueError, match=words):
        GaussianMixture(2, prior=Prior(**options)).fit(blobs)


def test_a_diagonal_model_takes_no_matrix(blobs: Array) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 3\): give finite values of shape \(\) or \(3,\)"):
        GaussianMixture(2, covariance_type="diag", prior=Prior(scale=np.eye(3))).fit(blobs)
