"""The policy on components that collapse: what is repaired, what is refused, in which words; wherever it runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest

import daskgmm
from daskgmm.families.covariance import MODELS
from daskgmm.families.gaussian import CollapsedComponentError

Array = npt.NDArray[np.float64]

CODES = [name for name, model in MODELS.items() if name == model.code]
SHARED = [name for name in CODES if MODELS[name].pooled] + ["EEV"]  # variances, so that none is singular alone
PLACES = ("here", "threads", "workers")
places = pytest.mark.parametrize("place", PLACES)


def everywhere(names: list[str]) -> pytest.MarkDecorator:
    """All models here, some elsewhere too: what is said does not come from there."""
    some = [name for name in names if name in ("EEE", "EVI", "VVV", "Poisson")]
    return pytest.mark.parametrize(
        ("name", "place"), [(n, "here") for n in names] + [(n, place) for n in some for place in PLACES[1:]]
    )


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    from distributed import Client

    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        yield client


def _fit(model: Any, x: Array, place: str, request: pytest.FixtureRequest) -> tuple[Any, list[str]]:
    """Fit where it is asked for; with what was warned of."""
    data = x if place == "here" else da.from_array(x, chunks=(len(x) // 3, -1))
    client = request.getfixturevalue("client").as_current() if place == "workers" else nullcontext()
    with warnings.catch_warnings(record=True) as caught, client:
        warnings.simplefilter("always")
        model.fit(data)
    return model, [str(warning.message) for warning in caught]


def _refused(model: Any, x: Array, place: str, request: pytest.FixtureRequest) -> str:
    """Why: one sentence, with a remedy."""
    with pytest.raises(ValueError) as refused:
        _fit(model, x, place, request)
    text = str(refused.value)
    assert "\n" not in text
    assert ": " in text
    assert not text.endswith(".")
    return text


def _rows() -> Array:
    rng = np.random.default_rng(0)
    return rng.permutation(np.concatenate([rng.normal(size=(60, 2)), rng.normal(7, 1, (60, 2))]))


FAR = {  # mixtures of which component 1 explains no row
    "Bernoulli": {"means_init": [[0.5, 0.5], [0.0, 0.0]], "x": np.ones((60, 2))},
    "Categorical": {"means_init": [[0.2, 0.8, 0.2, 0.8], [1.0, 0.0, 1.0, 0.0]], "x": np.ones((60, 2))},
    "Poisson": {"means_init": [[3.0, 3.0], [1e9, 1e9]], "x": np.full((60, 2), 3.0)},
}


@everywhere([*CODES, *FAR])
def test_a_component_without_rows_starts_again_with_a_warning(
    name: str, place: str, request: pytest.FixtureRequest
) -> None:
    if name in FAR:
        start = dict(FAR[name])
        x = start.pop("x")
        model = getattr(daskgmm, f"{name}Mixture")(2, weights_init=[0.5, 0.5], **start)
    else:
        x = _rows()
        unit = np.array([np.eye(2)] * 2)
        start = {"means_init": [[3.0, 3.0], [1e4, 1e4]], "weights_init": [0.5, 0.5], "precisions_init": unit}
        model = daskgmm.GaussianMixture(2, covariance_type=name, **start)
    model, warned = _fit(model, x, place, request)
    assert (
        "component 1 lost all its samples in pass 1 and starts again where the model explains the data worst: "
        in str(warned)
    )
    assert np.isfinite(model.means_).all()
    assert np.isfinite(model.lower_bounds_).all()
    assert model.weights_[1] > 0.01


@places
def test_one_of_a_posterior_stays_empty_without_a_word(place: str, request: pytest.FixtureRequest) -> None:
    """It is one too many."""
    model = daskgmm.BayesianGaussianMixture(8, weight_concentration_prior=1e-6, random_state=0, max_iter=300)
    model, warned = _fit(model, _rows(), place, request)
    assert not warned
    assert model.n_components_effective_ == 2
    assert np.isfinite(model.means_).all()


@everywhere(CODES)
def test_a_singular_covariance_is_refused_with_its_component(
    name: str, place: str, request: pytest.FixtureRequest
) -> None:
    """And fitted, once ``reg_covar`` or a prior keeps it from that."""
    x = np.concatenate([_rows(), np.full((60, 2), 30.0)])
    if name in SHARED:
        x = np.repeat([[0.0, 0.0], [7.0, 1.0], [30.0, 30.0]], 30, axis=0)
    options = {"covariance_type": name, "random_state": 0, "n_init": 2}
    text = _refused(daskgmm.GaussianMixture(3, reg_covar=0, **options), x, place, request)
    assert "collapsed (" in text
    assert text.endswith("raise reg_covar, set prior='default' or lower n_components")
    with pytest.raises(CollapsedComponentError):
        daskgmm.GaussianMixture(3, reg_covar=0, **options).fit(x)
    for remedy in ({"reg_covar": 1e-3}, {"reg_covar": 0, "prior": "default"}):
        model, _ = _fit(daskgmm.GaussianMixture(3, **remedy, **options), x, place, request)
        assert np.isfinite(model.covariances_).all()


@pytest.mark.parametrize("name", [name for name in CODES if not MODELS[name].diagonal])
@pytest.mark.parametrize("offset", [0.0, 0.1, 1e3])
def test_a_feature_that_is_another_is_a_singular_covariance(name: str, offset: float) -> None:
    """And not one whose inverse is made of rounding."""
    x = np.repeat(np.random.default_rng(0).standard_normal((50, 1)) + offset, 2, axis=1)
    with pytest.raises(CollapsedComponentError, match="component 0 collapsed"):
        daskgmm.GaussianMixture(1, covariance_type=name, reg_covar=0).fit(x)
    with pytest.raises(CollapsedComponentError, match="component 0 collapsed"):
        daskgmm.GaussianMixture(1, covariance_type=name, reg_covar=0).fit(np.round(x - offset) > 0)
    if len(set(name)) == 1 or name in ("VEE", "EVV"):
        with pytest.raises(CollapsedComponentError, match="component 0 collapsed"):  # as the rows give the prior
            daskgmm.GaussianMixture(1, covariance_type=name, reg_covar=0, prior="default").fit(x)


@pytest.mark.parametrize("name", ["EEE", "VEE", "EVV", "VVV"])
@pytest.mark.parametrize("noise", [1e-6, 1e-9, 1e-11])
def test_a_feature_that_is_all_but_another_is_fitted_and_saved(name: str, noise: float, tmp_path: Any) -> None:
    """As far as rows tell it from the other."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((500, 1)), 2, axis=1)
    x[:, 1] += noise * rng.standard_normal(500)
    model = daskgmm.GaussianMixture(1, covariance_type=name, reg_covar=0).fit(x)
    difference = np.longdouble(1) * x[:, 1] - x[:, 0]
    expected = -np.log(2 * np.pi * x[:, 0].std() * (difference - difference.mean()).std()) - 1
    assert model.score(x) == pytest.approx(float(expected), rel=1e-3)
    model.save(tmp_path / "model.zarr")
    assert daskgmm.load(tmp_path / "model.zarr").score(x) == pytest.approx(model.score(x), rel=1e-3)


@places
def test_a_singular_start_is_refused(place: str, request: pytest.FixtureRequest) -> None:
    """One that is given, and one that the rows give: a row for each component."""
    singular = [[[1.0, 1.0], [1.0, 1.0]]] * 2
    text = _refused(daskgmm.GaussianMixture(2, precisions_init=singular), _rows(), place, request)
    assert "'full precision' should be symmetric, positive-definite" in text
    for init in ("kmeans", "random_from_data"):
        model = daskgmm.GaussianMixture(4, init_params=init, reg_covar=0, random_state=0)
        assert "component 0 collapsed (1.0 samples, 2 features): " in _refused(model, _rows()[:4], place, request)


@places
@pytest.mark.parametrize("name", ["Gaussian", "BayesianGaussian", *FAR])
def test_more_components_than_distinct_rows(name: str, place: str, request: pytest.FixtureRequest) -> None:
    """Refused where nothing bounds the likelihood, else fitted; with a warning where densities are arbitrary."""
    x = np.repeat([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], 20, axis=0)
    fact = "only 3 of 60 sampled rows are distinct, fewer than n_components=4"
    if name == "Gaussian":
        text = _refused(daskgmm.GaussianMixture(4, reg_covar=0, random_state=0), x, place, request)
        assert text == f"{fact}: lower n_components, set reg_covar above zero or prior='default'"
    model, warned = _fit(getattr(daskgmm, f"{name}Mixture")(4, random_state=0), x, place, request)
    decides = {"Gaussian": "reg_covar=1e-06", "BayesianGaussian": "the prior"}.get(name)
    expected = f"{fact}, and {decides} alone decides their density: lower n_components"
    assert (expected in warned) == (decides is not None), warned
    assert np.isfinite(model.means_).all()
    assert np.isfinite(model.score(x))


@pytest.mark.filterwarnings("ignore:only 2 of 60")
def test_a_posterior_whose_prior_is_singular_says_so() -> None:
    """Rows on a line give none to a component without rows; it is not ``reg_covar`` that lacks."""
    x = np.repeat([[0.0, 1.0], [1.0, 0.0]], 30, axis=0)
    with pytest.raises(CollapsedComponentError, match="give the prior a larger covariance"):
        daskgmm.BayesianGaussianMixture(3, random_state=0).fit(x)
    daskgmm.BayesianGaussianMixture(3, covariance_prior=np.eye(2), random_state=0).fit(x)


@pytest.mark.parametrize("far", 10.0 ** np.arange(2, 13))
def test_what_the_rounding_of_a_prior_leaves_nothing_of_is_refused(far: float, tmp_path: Path) -> None:
    """One row is far in all features, so that the prior's covariance says little of how they differ."""
    x = np.array([[far] * 3, [0, 0, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, -2, -1], [0, -1, 0], [0, 0, 1]])
    model = daskgmm.GaussianMixture(3, prior="default", reg_covar=0, max_iter=0, random_state=0)
    refused = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model.fit(x)
        except CollapsedComponentError:
            refused = True
    assert not (refused and far < 1e4)
    assert refused or far < 1e9
    if not refused:
        model.save(tmp_path / "m.zarr")
        assert daskgmm.load(tmp_path / "m.zarr").score(x) == pytest.approx(model.score(x), rel=1e-6)
