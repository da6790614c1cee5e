"""From the same start, the iterates are scikit-learn's to rounding, wherever the data are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture as Reference
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from daskgmm import GaussianMixture
from daskgmm.families.covariance import MODELS

Array = npt.NDArray[np.float64]

STEPS = 10
TEXTBOOK: dict[str, Any] = {"accelerate": False, "subsample": None}
SKLEARN = ["full", "tied", "diag", "spherical"]


def _synthetic() -> Array:
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((4, 16, 16))
    rows: Array = np.concatenate([rng.standard_normal((25_000, 16)) @ m + 6 * m[0] for m in mixing])
    return rng.permutation(rows)


DATA: dict[str, tuple[int, Callable[[], Array]]] = {  # name: components, rows
    "digits": (10, lambda: PCA(10, random_state=0).fit_transform(load_digits().data)),
    "wine": (3, lambda: StandardScaler().fit_transform(load_wine().data)),
    "breast_cancer": (2, lambda: StandardScaler().fit_transform(load_breast_cancer().data)),
    "synthetic": (4, _synthetic),
}


@cache
def _rows(name: str) -> Array:
    return DATA[name][1]()


def _arguments(name: str, covariance_type: str) -> dict[str, Any]:
    """A start that is the same for both, from the rows by hand."""
    k, x = DATA[name][0], _rows(name)
    model = MODELS[covariance_type]
    groups = np.array_split(x[np.argsort(x[:, 0], kind="stable")], k)  # slices along the first feature
    counts = np.array([len(group) for group in groups], dtype=float)
    spread = [np.cov(x.T) * (1 + 0.1 * i) for i in range(k)]
    covariances = np.array([c.diagonal() if model.diagonal else c for c in spread])
    covariances = model.estimate(counts, covariances)
    precisions = 1 / covariances if model.diagonal else np.linalg.inv(covariances)
    return {
        "n_components": k,
        "covariance_type": covariance_type,
        "weights_init": counts / counts.sum(),
        "means_init": np.array([group.mean(axis=0) for group in groups]),
        "precisions_init": model.compact(precisions),
        "tol": 0.0,
        "max_iter": STEPS,
    }


def _fit(model: Any, x: Any, **arguments: Any) -> Any:
    with warnings.catch_warnings(), threadpool_limits(1):  # the cores may be shared with other tests
        warnings.simplefilter("ignore")  # tol=0 does not converge
        return model.fit(x, **arguments)


@cache
def _reference(name: str, covariance_type: str, repeat: int = 1) -> Any:
    """scikit-learn's fit; row i of the data ``i % repeat + 1`` times."""
    x = _rows(name)
    repeated = np.repeat(x, np.arange(len(x)) % repeat + 1, axis=0)
    return _fit(Reference(**_arguments(name, covariance_type)), repeated)


def _assert_same(ours: Any, theirs: Any) -> None:
    assert ours.n_iter_ == theirs.n_iter_ == STEPS
    for name in ("weights", "means", "covariances", "precisions", "precisions_cholesky", "lower_bound", "lower_bounds"):
        found, expected = (np.asarray(getattr(model, f"{name}_")) for model in (ours, theirs))
        assert found.shape == expected.shape, name
        assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max(), name


@pytest.mark.parametrize("covariance_type", SKLEARN)
@pytest.mark.parametrize("name", list(DATA))
def test_iterates(name: str, covariance_type: str) -> None:
    """Ten steps from NumPy end where scikit-learn's end, in parameters, bounds, densities and labels."""
    x = _rows(name)
    ours = _fit(GaussianMixture(**_arguments(name, covariance_type), **TEXTBOOK), x)
    theirs = _reference(name, covariance_type)
    _assert_same(ours, theirs)
    some = x[:5000]
    density = theirs.score_samples(some)
    assert np.abs(ours.score_samples(some) - density).max() <= 1e-9 * np.abs(density).max()
    assert np.abs(ours.predict_proba(some) - theirs.predict_proba(some)).max() < 1e-7
    assert np.array_equal(ours.predict(some), theirs.predict(some))
    assert ours.bic(some) == pytest.approx(theirs.bic(some), rel=1e-9)
    assert ours.aic(some) == pytest.approx(theirs.aic(some), rel=1e-9)


@pytest.mark.parametrize("covariance_type", SKLEARN)
@pytest.mark.parametrize("name", ["digits", "wine", "breast_cancer"])
def test_stopping(name: str, covariance_type: str) -> None:
    """EM stops at the same step, by the same rule."""
    arguments = {**_arguments(name, covariance_type), "tol": 1e-3, "max_iter": 200}
    ours, theirs = (
        _fit(model, _rows(name)) for model in (GaussianMixture(**arguments, **TEXTBOOK), Reference(**arguments))
    )
    assert ours.converged_
    assert theirs.converged_
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.lower_bounds_ == pytest.approx(theirs.lower_bounds_, rel=1e-9)


def _ragged(n: int) -> tuple[int, ...]:
    """Chunks of very different sizes."""
    return (1, n // 2, 3, n // 7, n - n // 2 - n // 7 - 4)


@pytest.mark.parametrize("covariance_type", SKLEARN)
@pytest.mark.parametrize(
    ("name", "features"), [*((name, "split") for name in DATA), ("digits", "together"), ("wine", "together")]
)
def test_iterates_of_ragged_chunks(name: str, covariance_type: str, features: str) -> None:
    """So do those from a dask array, however it is chunked, over the features too."""
    x = _rows(name)
    n, d = x.shape
    lazy = da.from_array(x, chunks=(_ragged(n), (d,) if features == "together" else (1, d - 4, 3)))
    ours = _fit(GaussianMixture(**_arguments(name, covariance_type), **TEXTBOOK), lazy)
    _assert_same(ours, _reference(name, covariance_type))


@pytest.mark.parametrize("covariance_type", SKLEARN)
@pytest.mark.parametrize(("name", "shards"), [*((name, 4) for name in DATA), ("digits", None), ("wine", None)])
def test_iterates_of_a_store(tmp_path: Path, name: str, covariance_type: str, shards: int | None) -> None:
    """So do those from a Zarr store, given by its path."""
    x = _rows(name)
    rows = len(x) // 9
    stored = zarr.create_array(
        tmp_path / "x.zarr",
        shape=x.shape,
        dtype=x.dtype,
        chunks=(rows, x.shape[1]),
        shards=None if shards is None else (shards * rows, x.shape[1]),
    )
    stored[:] = x
    ours = _fit(GaussianMixture(**_arguments(name, covariance_type), **TEXTBOOK), tmp_path / "x.zarr")
    _assert_same(ours, _reference(name, covariance_type))


@pytest.mark.parametrize("covariance_type", SKLEARN)
@pytest.mark.parametrize("name", ["digits", "wine", "breast_cancer"])
@pytest.mark.parametrize("lazy", [False, True], ids=["numpy", "dask"])
def test_weight_is_repetition(name: str, covariance_type: str, lazy: bool) -> None:
    """Rows of weight 1, 2 and 3 count as scikit-learn counts the row once, twice and three times."""
    x: Any = _rows(name)
    weights: Any = np.arange(len(x)) % 3 + 1.0
    if lazy:
        x, weights = da.from_array(x, chunks=(_ragged(len(x)), -1)), da.from_array(weights, chunks=50)
    ours = _fit(GaussianMixture(**_arguments(name, covariance_type), **TEXTBOOK), x, sample_weight=weights)
    _assert_same(ours, _reference(name, covariance_type, repeat=3))


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random_from_data"])
@pytest.mark.parametrize("covariance_type", SKLEARN)
def test_well_separated_groups(covariance_type: str, init_params: str) -> None:
    """From its own starts too it finds the solution that scikit-learn finds, where there is but one."""
    rng = np.random.default_rng(11)
    centres = np.array([[0.0, 0.0], [30.0, 0.0]])
    x = np.concatenate([rng.standard_normal((150, 2)) * [1, 3] + c for c in centres])
    arguments: dict[str, Any] = {"covariance_type": covariance_type, "tol": 1e-9, "max_iter": 500}
    ours = GaussianMixture(2, init_params=init_params, n_init=3, random_state=0, **arguments).fit(x)
    theirs = Reference(2, n_init=3, random_state=0, **arguments).fit(x)
    order, their_order = np.argsort(ours.means_[:, 0]), np.argsort(theirs.means_[:, 0])
    assert ours.means_[order] == pytest.approx(theirs.means_[their_order], rel=1e-6, abs=1e-6)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, rel=1e-6)
