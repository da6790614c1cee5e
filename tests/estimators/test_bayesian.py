"""Variational Bayesian mixtures: scikit-learn's steps and its examples, and what every estimator of ours does."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import dask.array as da
import numpy as np
import pytest
import sklearn.mixture
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator

from daskgmm import BayesianGaussianMixture, load

TYPES = ["full", "tied", "diag", "spherical"]
PRIORS = ["dirichlet_process", "dirichlet_distribution"]
pytestmark = pytest.mark.usefixtures("one_thread")
every_type = pytest.mark.parametrize("covariance_type", TYPES)
every_prior = pytest.mark.parametrize("prior", PRIORS)
COPIED = (
    *("weights_", "means_", "covariances_", "precisions_cholesky_"),
    *("weight_concentration_", "mean_precision_", "degrees_of_freedom_"),
)


def _theirs(x: Any, **options: Any) -> sklearn.mixture.BayesianGaussianMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return sklearn.mixture.BayesianGaussianMixture(**options).fit(x)


def _ours(x: Any, begin: Any, options: dict[str, Any], **rest: Any) -> BayesianGaussianMixture:
    """A fit that goes on from where scikit-learn's is, by the same steps."""
    model = BayesianGaussianMixture(**options, max_iter=1, subsample=None).fit(x)
    for name in COPIED:
        setattr(model, name, getattr(begin, name))
    return model.set_params(warm_start=True, accelerate=False, **rest).fit(x)


@every_type
@every_prior
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_iterates_are_scikit_learn_s(blobs, covariance_type, prior):
    """After 1, 5 and 30 passes from where scikit-learn is after two, through the whole of a fit."""
    options = {"n_components": 5, "covariance_type": covariance_type, "weight_concentration_prior_type": prior}
    x = da.from_array(blobs * [1, 30, 0.1] + [1000, 0, -5], chunks=(250, -1))
    start = {**options, "init_params": "random", "random_state": 0}
    begin = _theirs(x.compute(), **start, max_iter=2)
    for n in (1, 5, 30):
        theirs = _theirs(x.compute(), **start, max_iter=2 + n, tol=0)
        ours = _ours(x, begin, options, max_iter=n, tol=0)
        for name in (*COPIED, "precisions_", "mean_prior_", "covariance_prior_", "degrees_of_freedom_prior_"):
            found, expected = np.asarray(getattr(ours, name)), np.asarray(getattr(theirs, name))
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max(), err_msg=name)
        np.testing.assert_allclose(ours.predict_proba(x.compute()), theirs.predict_proba(x.compute()), atol=1e-8)
        np.testing.assert_allclose(ours.score_samples(x.compute()), theirs.score_samples(x.compute()), atol=1e-6)


def _ellipses(seed: int) -> Any:
    """Rows of scikit-learn's example of ellipsoids: two groups, one stretched."""
    rng = np.random.RandomState(seed)
    stretched = rng.randn(500, 2) @ np.array([[0.0, -0.1], [1.7, 0.4]])
    return np.concatenate([stretched, 0.7 * rng.randn(500, 2) + [-6, 3]])


def _three(seed: int) -> Any:
    """Rows of its example of concentration priors: three groups of 400 in a column."""
    rng = np.random.RandomState(seed)
    covariances = [[[0.7, 0.0], [0.0, 0.1]], [[0.5, 0.0], [0.0, 0.1]], [[0.5, 0.0], [0.0, 0.1]]]
    groups = [
        rng.multivariate_normal([0.0, m], c, n)
        for m, c, n in zip([-0.7, 0, 0.7], covariances, [200, 500, 200], strict=True)
    ]
    return np.concatenate(groups)


def _used(labels: Any) -> int:
    return len(np.unique(labels))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("prior", "concentration"),
    [(PRIORS[1], 1e-3), (PRIORS[1], 1000), (PRIORS[0], 1), (PRIORS[0], 100_000), (PRIORS[0], None)],
)
def test_examples_of_scikit_learn_keep_as_many_components(prior, concentration):
    """From the same start: three groups under the least and the largest of its concentrations, and two ellipsoids."""
    options = {"weight_concentration_prior_type": prior, "weight_concentration_prior": concentration}
    if concentration is None:
        rows, options = _ellipses(0), {**options, "n_components": 5}
    else:
        rows, options = _three(2), {**options, "n_components": 6, "reg_covar": 0, "mean_precision_prior": 0.8}
    start = {**options, "init_params": "random", "random_state": 2}
    theirs = _theirs(rows, **start, max_iter=1500)
    ours = _ours(rows, _theirs(rows, **start, max_iter=2), options, max_iter=1500, tol=1e-3 / len(rows))
    assert _used(ours.predict(rows)) == _used(theirs.predict(rows))
    np.testing.assert_allclose(ours.weights_, theirs.weights_, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_by_itself_it_keeps_the_two_ellipsoids(seed):
    model = BayesianGaussianMixture(5, random_state=seed).fit(_ellipses(0))
    assert model.n_components_effective_ == 2
    assert _used(model.predict(_ellipses(0))) == 2


@every_prior
def test_superfluous_components_are_empty_also_after_a_sample(prior):
    """Three groups of 10,000 rows, ten components, a start on a sample of 2,000; none is started again."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30_000, 3)) + rng.permutation(np.repeat([[0, 0, 0], [9, 0, 0], [0, 9, 9]], 10_000, axis=0))
    options = {"weight_concentration_prior": 1e-3, "weight_concentration_prior_type": prior, "subsample": 2000}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = BayesianGaussianMixture(10, max_iter=500, random_state=0, **options).fit(x)
    assert model.n_components_effective_ == 3
    assert _used(model.predict(x)) == 3
    np.testing.assert_allclose(np.sort(model.weights_)[-3:], 1 / 3, atol=0.01)


@every_type
@every_prior
def test_a_saved_model_is_the_same(blobs, covariance_type, prior, tmp_path):
    options = {"covariance_type": covariance_type, "weight_concentration_prior_type": prior, "mean_prior": [0.0, 1, 2]}
    model = BayesianGaussianMixture(4, random_state=0, **options).fit(blobs)
    model.save(tmp_path / "model.zarr")
    loaded = load(tmp_path / "model.zarr")
    assert type(loaded) is BayesianGaussianMixture
    assert isinstance(loaded.weight_concentration_, tuple) == (prior == "dirichlet_process")
    for name in (*COPIED, "covariance_prior_", "n_components_effective_", "lower_bounds_"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
    assert isinstance(loaded.mean_precision_prior_, float)
    assert isinstance(loaded.n_components_effective_, int)
    for other in (loaded, pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.score_samples(blobs), model.score_samples(blobs))
    assert clone(loaded).get_params()["mean_prior"] == [0.0, 1, 2]


@every_type
def test_it_is_an_estimator(covariance_type):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(BayesianGaussianMixture(covariance_type=covariance_type), on_skip=None)
    assert {r["check_name"] for r in results if r["status"] != "passed"} <= {"check_array_api_input"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"covariance_type": "VEV"}, "no variational posterior"),
        ({"degrees_of_freedom_prior": 1.5}, "should be greater than 2"),
        ({"mean_prior": [1.0]}, "mean has shape"),
        ({"covariance_prior": -np.eye(3)}, "not symmetric and positive definite"),
    ],
)
def test_priors_that_cannot_be_are_refused(blobs, options, words):
    with pytest.raises(ValueError, match=words):
        BayesianGaussianMixture(2, **options).fit(blobs)
