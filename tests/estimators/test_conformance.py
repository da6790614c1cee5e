"""The estimator keeps scikit-learn's conventions."""

from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.mixture import GaussianMixture as Reference
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from daskgmm import GaussianMixture
from daskgmm.families.covariance import MODELS

Array = npt.NDArray[np.float64]
SKLEARN = ["full", "tied", "diag", "spherical"]


@pytest.mark.parametrize("covariance_type", [*SKLEARN, "EII", "VVE", "VEV"])
def test_check_estimator(covariance_type: str) -> None:
    """scikit-learn's own checks of an estimator hold, whatever the covariance model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(GaussianMixture(covariance_type=covariance_type), on_skip=None)
    # The one check that scikit-learn leaves out itself: arrays of libraries that it is not set up for.
    assert {r["check_name"] for r in results if r["status"] != "passed"} <= {"check_array_api_input"}
    assert len(results) > 40


def test_constructor_is_scikit_learns() -> None:
    """Each constructor argument of scikit-learn's is there, with its default and in its order."""
    ours = inspect.signature(GaussianMixture).parameters
    theirs = inspect.signature(Reference).parameters
    assert [name for name in ours if name in theirs] == list(theirs)
    assert {name: ours[name].default for name in theirs} == {name: p.default for name, p in theirs.items()}
    assert all(ours[name].kind == p.kind for name, p in theirs.items())


def test_fitted_attributes_are_scikit_learns(blobs: Array) -> None:
    """Each fitted attribute of scikit-learn's is there, of the same kind and shape."""
    ours = GaussianMixture(3, random_state=0).fit(blobs)
    theirs = Reference(3, random_state=0).fit(blobs)
    for name, value in vars(theirs).items():
        if name.endswith("_"):
            assert np.asarray(getattr(ours, name)).dtype.kind == np.asarray(value).dtype.kind, name
            if name != "lower_bounds_":  # of as many entries as there were steps
                assert np.shape(getattr(ours, name)) == np.shape(value), name


def test_clone_and_params(blobs: Array) -> None:
    """get_params gives back what was set; a clone has the same arguments and none of the fit."""
    parameters = {"n_components": 2, "covariance_type": "tied", "tol": 1e-2, "random_state": 3, "subsample": 50}
    model = GaussianMixture(**parameters).fit(blobs)  # type: ignore[arg-type]
    assert parameters.items() <= model.get_params().items()
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(blobs)
    assert not [name for name in vars(copy) if name.endswith("_")]


def test_pickle(blobs: Array) -> None:
    """A model that was pickled scores as the model itself."""
    model = GaussianMixture(3, random_state=0).fit(blobs)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.score_samples(blobs), model.score_samples(blobs))


def test_pipeline_and_search(blobs: Array) -> None:
    """It works as a pipeline's last step, and a search over it finds the number of groups that are there."""
    pipeline = make_pipeline(StandardScaler(), GaussianMixture(3, random_state=0)).fit(blobs)
    scaled = StandardScaler().fit_transform(blobs)
    alone = GaussianMixture(3, random_state=0).fit(scaled)
    assert np.array_equal(pipeline.predict(blobs), alone.predict(scaled))
    assert pipeline.score(blobs) == alone.score(scaled)
    shuffled = np.random.default_rng(0).permutation(blobs)
    search = GridSearchCV(GaussianMixture(random_state=0), {"n_components": [1, 2, 3]}, cv=3).fit(shuffled)
    assert search.best_params_ == {"n_components": 3}


def test_feature_names(blobs: Array) -> None:
    """A DataFrame's column names are kept, asked for again, and change nothing else."""
    frame = pd.DataFrame(blobs, columns=["u", "v", "w"])
    model = GaussianMixture(3, random_state=0).fit(frame)
    plain = GaussianMixture(3, random_state=0).fit(blobs)
    assert model.feature_names_in_.tolist() == ["u", "v", "w"]
    assert not hasattr(plain, "feature_names_in_")
    assert np.array_equal(model.means_, plain.means_)
    assert np.array_equal(model.predict(frame), plain.predict(blobs))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[["w", "v", "u"]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(blobs)
    assert not hasattr(model.fit(blobs), "feature_names_in_")


def test_series_of_weights(blobs: Array) -> None:
    """Weights in a pandas Series, whatever its index, count as the same numbers in an array."""
    weights = np.linspace(0, 2, len(blobs))
    series = pd.Series(weights, index=np.arange(len(blobs))[::-1])
    ours = GaussianMixture(3, random_state=0).fit(pd.DataFrame(blobs), sample_weight=series)
    assert np.array_equal(ours.means_, GaussianMixture(3, random_state=0).fit(blobs, sample_weight=weights).means_)


def _with(rows: Array, value: float) -> Array:
    changed = rows.copy()
    changed[-1, 1] = value
    return changed


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (lambda x: _with(x, np.nan), {}, "row 599, feature 1 is nan"),
        (lambda x: da.from_array(_with(x, np.inf), chunks=(100, 2)), {}, "row 599, feature 1 is inf"),
        (lambda x: pd.DataFrame(_with(x, np.nan), columns=["u", "v", "w"]), {}, "NaN"),
        (lambda x: x[:2, :2], {}, "n_samples >= n_components"),
        (lambda x: x[:, :0], {}, "0 feature"),
        (lambda x: np.repeat(x[:1], 50, axis=0), {"reg_covar": 0}, "distinct, fewer than n_components"),
        (lambda x: x, {"means_init": np.zeros((3, 2))}, "shape of"),
        (lambda x: x, {"tol": -1.0}, "'tol' parameter"),
    ],
    ids=["nan", "lazy-inf", "frame", "few-rows", "no-features", "one-row", "bad-start", "bad-argument"],
)
def test_failed_fit_changes_nothing(
    blobs: Array, spoil: Callable[[Array], Any], arguments: dict[str, Any], message: str
) -> None:
    """A fit that fails leaves the estimator, and what it predicts, as it was."""
    model = GaussianMixture(3, random_state=0).fit(blobs)
    labels = model.predict(blobs)
    model.set_params(**arguments)
    before = dict(vars(model))
    with pytest.raises(ValueError, match=message):
        model.fit(spoil(blobs))
    assert vars(model) == before  # arrays compare by being the same object
    assert np.array_equal(model.predict(blobs), labels)


def test_failed_first_fit_leaves_it_unfitted(blobs: Array) -> None:
    """A first fit that fails sets no fitted attribute."""
    model = GaussianMixture(3)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(_with(blobs, np.nan))
    assert not [name for name in vars(model) if name.endswith("_")]


def test_interrupted_fit_changes_nothing(blobs: Array) -> None:
    """So does one that the user, or a callback, stops."""

    def stop(info: Any) -> None:
        raise KeyboardInterrupt

    model = GaussianMixture(3, random_state=0).fit(blobs)
    model.callbacks = (stop,)
    before = dict(vars(model))
    with pytest.raises(KeyboardInterrupt):
        model.fit(blobs)
    assert vars(model) == before


def test_no_convergence_is_warned_of(blobs: Array) -> None:
    """A fit that ran out of passes warns with scikit-learn's category, and max_iter=0 does not."""
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        GaussianMixture(3, tol=0, max_iter=2, random_state=0).fit(blobs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GaussianMixture(3, max_iter=0, random_state=0).fit(blobs)


def test_weights_out_of_range_are_named(blobs: Array) -> None:
    with pytest.raises(ValueError, match=r"max value 1\.50000, min value -0\.25000"):
        GaussianMixture(3, weights_init=[1.5, -0.25, -0.25]).fit(blobs)


@pytest.mark.parametrize("covariance_type", list(MODELS))
def test_a_collapsed_component_is_named(covariance_type: str) -> None:
    """Two values are enough distinct rows, but two components of them have no variance."""
    rows = np.repeat([[0.0, 0.0], [1.0, 2.0]], 10, axis=0)
    with pytest.raises(ValueError, match=r"component 0 collapsed \(10\.0 samples, 2 features\): raise reg_covar"):
        GaussianMixture(2, covariance_type=covariance_type, reg_covar=0, random_state=0).fit(rows)


@pytest.mark.parametrize("changed", [{"n_components": 4}, {"covariance_type": "tied"}, {}], ids=["k", "model", "data"])
def test_warm_start_needs_the_same_model(blobs: Array, changed: dict[str, Any]) -> None:
    """What the last fit found is gone on from only where it is of the shape that is asked for."""
    model = GaussianMixture(3, warm_start=True, random_state=0).fit(blobs)
    model.set_params(**changed)
    with pytest.raises(ValueError, match="warm_start=False"):
        model.fit(blobs if changed else blobs[:, :2])


def test_start_in_single_precision(blobs: Array) -> None:
    """Weights of a start may sum to one to the precision they are given in."""
    thirds = np.full(3, 1 / 3, dtype=np.float32)
    assert abs(float(thirds.astype(float).sum()) - 1) > 1e-8
    GaussianMixture(3, weights_init=thirds, random_state=0).fit(blobs)
    with pytest.raises(ValueError, match="normalized"):
        GaussianMixture(3, weights_init=thirds.astype(float)).fit(blobs)


@pytest.mark.parametrize("covariance_type", SKLEARN)
def test_more_starts_are_no_worse(blobs: Array, covariance_type: str) -> None:
    """The best of several starts, the first of which is the one that a single start takes, is not worse than it."""
    rows = blobs[::2, :2]
    one, five = (
        GaussianMixture(4, covariance_type=covariance_type, n_init=n, init_params="random_from_data", random_state=0)
        for n in (1, 5)
    )
    assert five.fit(rows).lower_bound_ >= one.fit(rows).lower_bound_ - 1e-9


def test_criteria_are_of_the_mixture_that_was_fitted(blobs: Array) -> None:
    """Not of the one that the next fit is to find."""
    gm = GaussianMixture(2, random_state=0).fit(blobs)
    before = gm.scores(blobs)
    assert gm.set_params(n_components=5).scores(blobs) == before
