"""Densities far outside of what a float holds, very many features, very many components: finite, and right."""

from __future__ import annotations

import tracemalloc
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from daskgmm import BayesianGaussianMixture, GaussianMixture, PoissonMixture

Array = npt.NDArray[np.float64]

TYPES = ("full", "tied", "diag", "spherical")
TEXTBOOK = {"tol": 0, "accelerate": False, "subsample": None}  # each step as exact as the one before

pytestmark = pytest.mark.filterwarnings("ignore:EM did not converge")


def _groups(d: int, n: int = 150) -> Array:
    """Rows of three groups, whose features are correlated."""
    rng = np.random.default_rng(d)
    turn = np.eye(d) + 0.3 * rng.standard_normal((d, d)) / np.sqrt(d)
    rows = [rng.standard_normal((n, d)) @ turn + 4 * rng.standard_normal(d) for _ in range(3)]
    return rng.permutation(np.concatenate(rows))


def _log_densities(model: Any, x: Array) -> Array:
    """As SciPy has them, of the fitted parameters, about the first mean."""
    d = x.shape[1]
    whole = {
        "full": lambda c: c,
        "tied": lambda c: np.broadcast_to(c, (len(model.weights_), d, d)),
        "diag": lambda c: c[:, :, None] * np.eye(d),
        "spherical": lambda c: c[:, None, None] * np.eye(d),
    }[model.covariance_type](model.covariances_)
    each = [
        np.log(w) + multivariate_normal(m, c, allow_singular=False).logpdf(x)
        for w, m, c in zip(model.weights_, model.means_, whole, strict=True)
    ]
    return np.asarray(logsumexp(each, axis=0))


# Scales


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100], ids=["1e-30", "1e30"])
@pytest.mark.parametrize("d", [1, 8, 64])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_densities_that_no_float_holds(covariance_type: str, d: int, scale: float) -> None:
    """A fit of scaled rows is the scaled fit; with 64 features, densities are 1e±1920. Powers of two round nothing."""
    x = _groups(d)
    options = {"covariance_type": covariance_type, "random_state": 0, "max_iter": 10, **TEXTBOOK}
    plain = GaussianMixture(3, reg_covar=1e-6, **options).fit(x)
    model = GaussianMixture(3, reg_covar=1e-6 * scale**2, **options).fit(x * scale)
    np.testing.assert_allclose(model.weights_, plain.weights_, rtol=1e-9)
    np.testing.assert_allclose(model.means_, plain.means_ * scale, rtol=1e-9)
    np.testing.assert_allclose(model.covariances_, plain.covariances_ * scale**2, rtol=1e-9, atol=1e-9 * scale**2)
    np.testing.assert_allclose(model.precisions_, plain.precisions_ / scale**2, rtol=1e-8, atol=1e-8 / scale**2)
    assert model.lower_bound_ == pytest.approx(plain.lower_bound_ - d * np.log(scale), rel=1e-10)
    found = model.score_samples(x * scale)
    np.testing.assert_allclose(found, _log_densities(plain, x) - d * np.log(scale), rtol=1e-9)
    np.testing.assert_allclose(model.predict_proba(x * scale), plain.predict_proba(x), atol=1e-8)
    rows, _ = model.sample(10)
    assert np.isfinite(rows / scale).all()
    assert np.abs(rows / scale).max() < 100


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100], ids=["1e-30", "1e30"])
def test_the_bound_of_a_posterior_of_such_densities(scale: float) -> None:
    """But for the rows' density, and its range, a bound of the log evidence does not know the units."""
    x = _groups(8)
    plain = BayesianGaussianMixture(4, reg_covar=0, random_state=0, max_iter=10, **TEXTBOOK).fit(x)
    model = BayesianGaussianMixture(4, reg_covar=0, random_state=0, max_iter=10, **TEXTBOOK).fit(x * scale)
    assert model.lower_bound_ == pytest.approx(plain.lower_bound_ - 8 * np.log(scale), rel=1e-10)
    np.testing.assert_allclose(model.means_, plain.means_ * scale, rtol=1e-8)


@pytest.mark.parametrize("exponent", [-3000, -300, -1, 1, 300, 3000])
def test_densities_of_single_rows(exponent: int) -> None:
    """From 1e-3000 to 1e3000: rows so far out, or variances so small, in one feature or in 64."""
    model = GaussianMixture(1, covariance_type="diag", reg_covar=0).fit(np.array([[-1.0], [1.0]]))  # N(0, 1)
    distance = np.sqrt(np.longdouble(2 * abs(exponent)) * np.log(np.longdouble(10)))
    (found,) = model.score_samples(np.array([[float(distance)]]))
    half_log = np.log(np.longdouble(2 * np.pi)) / 2
    assert found == pytest.approx(float(-(np.longdouble(float(distance)) ** 2) / 2 - half_log), rel=1e-14)

    scale = 10.0 ** (-exponent / 64)
    corners = np.random.default_rng(0).choice([-scale, scale], (40, 64))
    model = GaussianMixture(1, covariance_type="diag", reg_covar=0).fit(np.concatenate([corners, -corners]))
    expected = -64 * (half_log + np.log(np.longdouble(scale)) + np.longdouble(1) / 2)
    np.testing.assert_allclose(model.score_samples(corners), float(expected), rtol=1e-12)


def test_rows_that_are_impossible_everywhere_still_belong_somewhere() -> None:
    """Log densities of -1e300 are equal to rounding; no responsibility is NaN."""
    model = GaussianMixture(2, random_state=0).fit(_groups(2))
    far = np.array([[1e150, 0.0], [0.0, -1e150], [1e100, 1e100], [-1e8, 3.0]])
    densities, proba = model.score_samples(far), model.predict_proba(far)
    assert np.isfinite(densities).all()
    assert (densities < -1e10).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(proba.argmax(axis=1), model.predict(far))


def test_counts_of_which_each_is_all_but_impossible() -> None:
    """Poisson rates of a million in 50 features: log probabilities of -1e3 and -1e9, as SciPy has them."""
    from scipy.stats import poisson

    rng = np.random.default_rng(0)
    rates = np.array([1e6, 1e3])
    x = np.concatenate([rng.poisson(rate, (60, 50)) for rate in rates]).astype(float)
    model = PoissonMixture(2, random_state=0).fit(x)
    each = [np.log(w) + poisson.logpmf(x, m).sum(axis=1) for w, m in zip(model.weights_, model.means_, strict=True)]
    terms = 50 * 1e6 * np.log(1e6)  # of which log probabilities are the sums
    np.testing.assert_allclose(model.score_samples(x), logsumexp(each, axis=0), rtol=0, atol=1e-14 * terms)
    np.testing.assert_allclose(np.sort(model.means_, axis=0), np.sort([x[:60].mean(0), x[60:].mean(0)], axis=0))


# Sizes


@pytest.mark.parametrize("mixture", [GaussianMixture, BayesianGaussianMixture])
def test_ten_thousand_features_with_a_prior(mixture: Any) -> None:
    """Whose scale is that of the rows, without their covariances."""
    x = np.random.default_rng(0).standard_normal((40, 10_000)) + np.repeat([[0.0], [1.0]], 20, axis=0)
    options = {"prior": "default"} if mixture is GaussianMixture else {}
    tracemalloc.start()
    model = mixture(2, covariance_type="diag", random_state=0, max_iter=3, **options).fit(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**28
    np.testing.assert_allclose(model.weights_, 0.5, rtol=0.1)
    assert (model.covariances_ > 0).all()


def test_ten_thousand_features() -> None:
    """Two components of 10,000 variances, by the closed form, in memory that the rows set."""
    rng = np.random.default_rng(0)
    d, n = 10_000, 60
    x = rng.standard_normal((2 * n, d)) * np.exp(rng.standard_normal(d)) + 1e3
    x[n:] += 1.0
    tracemalloc.start()
    model = GaussianMixture(2, covariance_type="diag", random_state=0).fit(da.from_array(x, chunks=(50, d)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**28  # of a matrix of the features, one alone has 800 MB
    halves = sorted((x[:n], x[n:]), key=lambda half: half[0, 0])
    order = np.argsort(model.predict(np.array([half[0] for half in halves])))
    np.testing.assert_allclose(model.weights_, 0.5, rtol=1e-10)
    np.testing.assert_allclose(model.means_, np.array([half.mean(axis=0) for half in halves])[order], rtol=1e-10)
    variances = np.array([half.var(axis=0) for half in halves])[order] + model.reg_covar
    np.testing.assert_allclose(model.covariances_, variances, rtol=1e-8)
    squares = [((half - half.mean(axis=0)) ** 2 / (half.var(axis=0) + model.reg_covar)).sum(axis=1) for half in halves]
    logs = [np.log(2 * np.pi * (half.var(axis=0) + model.reg_covar)).sum() for half in halves]
    expected = [-(s + log) / 2 - np.log(2) for s, log in zip(squares, logs, strict=True)]
    assert model.score(x) == pytest.approx(np.mean(expected), rel=1e-10)


def _thousand() -> tuple[Array, Array]:
    """Rows about 1,000 centres on a grid of 10 x 10 x 10, a distance of 12 standard deviations apart."""
    centres = 12.0 * np.stack(np.meshgrid(*[np.arange(10.0)] * 3), axis=-1).reshape(-1, 3)
    rng = np.random.default_rng(0)
    return np.repeat(centres, 12, axis=0) + rng.standard_normal((12_000, 3)), centres


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_a_thousand_components(covariance_type: str) -> None:
    """From their centres: each has its own rows, and what these give by themselves."""
    x, centres = _thousand()
    shape = {"full": (1000, 3, 3), "tied": (3, 3), "diag": (1000, 3), "spherical": (1000,)}[covariance_type]
    ones = np.broadcast_to(np.eye(3), shape) if len(shape) > 1 and shape[-2] == 3 else np.ones(shape)
    model = GaussianMixture(
        1000,
        covariance_type=covariance_type,
        weights_init=np.full(1000, 1e-3),
        means_init=centres,
        precisions_init=ones,
        max_iter=3,
    ).fit(x)
    own = x.reshape(1000, 12, 3)
    deviations = own - own.mean(axis=1, keepdims=True)
    scatter = np.einsum("kni,knj->kij", deviations, deviations) / 12 + model.reg_covar * np.eye(3)
    expected = {
        "full": scatter,
        "tied": scatter.mean(axis=0),
        "diag": np.einsum("kii->ki", scatter),
        "spherical": np.einsum("kii->k", scatter) / 3,
    }[covariance_type]
    np.testing.assert_allclose(model.weights_, 1e-3, rtol=1e-5)
    np.testing.assert_allclose(model.means_, own.mean(axis=1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.covariances_, expected, rtol=0, atol=1e-4)
    assert (model.predict(x).reshape(1000, 12) == np.arange(1000)[:, None]).all()
    assert model.score(x[::400]) == pytest.approx(_log_densities(model, x[::400]).mean(), rel=1e-10)


@pytest.mark.slow
def test_a_thousand_components_from_any_start() -> None:
    """As a user asks for them: finite, each with rows, and the likelihood is that of the parameters."""
    x, _ = _thousand()
    model = GaussianMixture(1000, covariance_type="spherical", random_state=0).fit(da.from_array(x, chunks=(5000, 3)))
    assert np.isfinite(model.means_).all()
    assert model.weights_.sum() == pytest.approx(1, rel=1e-12)
    assert model.score(x[::40]) == pytest.approx(_log_densities(model, x[::40]).mean(), rel=1e-10)
    assert np.isfinite(model.lower_bounds_).all()
