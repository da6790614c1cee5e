"""Rows with missing values: named and refused, or left out as if they were not there."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr

import daskgmm.data.blocks
from daskgmm import GaussianMixture, open_samples

Array = npt.NDArray[np.float64]

pytestmark = [
    pytest.mark.usefixtures("small_blocks"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata"),
]

BAD = ((345, 1), (346, 0), (599, 2))  # rows and features without a value
START = {
    "n_components": 3,
    "weights_init": [0.2, 0.3, 0.5],
    "means_init": [[1.0, 1.0, 0.0], [8.0, 0.0, -3.0], [-2.0, 5.0, 2.0]],
    "precisions_init": [np.eye(3)] * 3,
}
KINDS: dict[str, Callable[[Array, Path], Any]] = {
    "NumPy": lambda rows, _: rows,
    "dask": lambda rows, _: da.from_array(rows, chunks=((100, 245, 255), 2)),
    "zarr": lambda rows, path: zarr.create_array(str(path / "x.zarr"), data=rows, chunks=(40, 3), shards=(120, 3)),
    "Dataset": lambda rows, _: fields(rows),
    "Dataset, dask": lambda rows, _: fields(rows).chunk(time=2, lat=5),
    "labelled store": lambda rows, path: fields(rows).to_zarr(path / "f.zarr") and path / "f.zarr",
}


def fields(rows: Array) -> xr.Dataset:
    cube = rows.reshape(5, 12, 10, 3)
    return xr.Dataset({name: (("time", "lat", "lon"), cube[..., i]) for i, name in enumerate("abc")})


@pytest.fixture(scope="module")
def rows(blobs: Array) -> Array:
    return np.random.default_rng(1).permutation(blobs)


@pytest.fixture(params=[np.nan, np.inf, -np.inf])
def gappy(rows: Array, request: pytest.FixtureRequest) -> Array:
    gappy = rows.copy()
    for at in BAD:
        gappy[at] = request.param
    return gappy


def place(kind: str) -> str:
    """Where the first bad value stands, in the words of its container: row 345 is time 2, lat 10, lon 5."""
    return "variable 'b' at time=2, lat=10, lon=5" if kind.startswith(("Dataset", "labelled")) else "row 345, feature 1"


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_names_the_first_bad_value(kind: str, gappy: Array, tmp_path: Path) -> None:
    word = "NaN" if np.isnan(gappy[BAD[0]]) else "infinity"
    with pytest.raises(ValueError, match=f"contains {word}: {place(kind)} is .*missing='drop'"):
        GaussianMixture(**START).fit(KINDS[kind](gappy, tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_names_the_bad_value_once_it_is_computed(kind: str, rows: Array, tmp_path: Path) -> None:
    model = GaussianMixture(**START).fit(rows)
    gappy = rows.copy()
    gappy[BAD[0]] = np.nan
    data = KINDS[kind](gappy, tmp_path)
    if kind in ("NumPy", "Dataset"):
        with pytest.raises(ValueError, match=place(kind)):
            model.predict(data)
        return
    lazy = model.predict(data)
    with pytest.raises(ValueError, match=place(kind)):
        lazy.compute()


COORDS = {  # of time, and how a message says its third value
    "days": (np.arange("2020-01-01", "2020-01-06", dtype="datetime64[D]").astype("datetime64[ns]"), "2020-01-03"),
    "hours": (np.datetime64("2020-01-01T06:30", "ns") + np.arange(5) * np.timedelta64(12, "h"), "2020-01-02T06:30"),
    "years": (np.arange(1999, 2004), "2001"),
    "names": (np.array(["a", "b", "c", "d", "e"], dtype=object), "c"),
    "none": (None, "2"),
}


@pytest.mark.parametrize("kind", ["Dataset", "Dataset, dask", "labelled store", "DataArray"])
@pytest.mark.parametrize("times", COORDS)
def test_a_place_has_the_values_of_coordinates(times: str, kind: str, rows: Array, tmp_path: Path) -> None:
    """And its positions, which are said to be such; a dimension without coordinates has these alone."""
    gappy = rows.copy()
    gappy[BAD[0]] = np.nan
    values, word = COORDS[times]
    ds = fields(gappy).assign_coords(lat=np.linspace(-59.25, 56.25, 12, dtype=np.float32))
    ds = ds if values is None else ds.assign_coords(time=values)
    ds = ds.assign_coords(x=("lon", np.arange(10.0)), t=(("lat", "lon"), np.ones((12, 10))))
    data: dict[str, Callable[[], Any]] = {
        "Dataset": lambda: ds,
        "Dataset, dask": lambda: ds.chunk(time=2, lat=5),
        "labelled store": lambda: ds.to_zarr(tmp_path / "f.zarr") and tmp_path / "f.zarr",
        "DataArray": lambda: ds.to_array("feature").transpose(..., "feature"),
    }
    where = re.escape(f"variable 'b' at time={word}, lat=45.75, lon=5 (position 2, 10, 5) is nan")
    given = data[kind]()
    with pytest.raises(ValueError, match=where):
        GaussianMixture(**START).fit(given)
    model = GaussianMixture(**START).fit(rows)
    with pytest.raises(ValueError, match=where):
        np.asarray(model.predict(given))


def test_coordinates_are_not_read_for_a_place(rows: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are in memory they are taken, unless they are as many as should not be sent to workers."""
    fields(rows).assign_coords(lat=np.arange(12.0)).to_zarr(tmp_path / "f.zarr")
    lazy = xr.open_zarr(tmp_path / "f.zarr", chunks=None, create_default_indexes=False)
    assert open_samples(lazy).locate(345) == "time=2, lat=10, lon=5"
    whole = open_samples(tmp_path / "f.zarr")
    assert whole.locate(345) == "time=2, lat=10, lon=5 (position 2, 10, 5)"
    monkeypatch.setattr(daskgmm.data.blocks, "_MAX_COORDINATES", 11)
    assert replace(whole).locate(345) == "time=2, lat=10, lon=5"


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_rows_are_as_if_they_were_not_there(kind: str, gappy: Array, tmp_path: Path) -> None:
    good = np.isfinite(gappy).all(axis=1)
    expected = GaussianMixture(**START).fit(gappy[good])
    data = KINDS[kind](gappy, tmp_path)
    found = GaussianMixture(missing="drop", **START).fit(data)
    assert found.n_samples_ == good.sum() == 597
    for name in ("weights_", "means_", "covariances_", "lower_bound_"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-10)
    assert found.score(data) == pytest.approx(expected.score(gappy[good]), rel=1e-10)
    assert found.bic(data) == pytest.approx(expected.bic(gappy[good]), rel=1e-10)
    labels = np.asarray(found.predict(data)).ravel()
    np.testing.assert_array_equal(labels[good], expected.predict(gappy[good]))
    assert (labels[~good] == -1).all()
    for method, tail in (("score_samples", ()), ("predict_proba", (3,))):
        result = np.asarray(getattr(found, method)(data)).reshape(600, *tail)
        assert np.isnan(result[~good]).all()
        np.testing.assert_allclose(result[good], getattr(expected, method)(gappy[good]), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("kind", ["NumPy", "dask", "zarr"])
def test_default_starts_see_no_missing_row(kind: str, gappy: Array, tmp_path: Path) -> None:
    data = KINDS[kind](gappy, tmp_path)
    for subsample in (None, 200, 100_000):
        found = GaussianMixture(3, missing="drop", random_state=0, subsample=subsample).fit(data)
        assert np.sort(found.weights_) == pytest.approx([1 / 3] * 3, abs=0.01)


def test_a_chunk_without_any_good_row(rows: Array) -> None:
    gappy = rows.copy()
    gappy[100:300] = np.nan
    found = GaussianMixture(missing="drop", **START).fit(da.from_array(gappy, chunks=(100, 3)))
    expected = GaussianMixture(**START).fit(np.delete(rows, slice(100, 300), axis=0))
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-10)


def test_no_good_row_at_all() -> None:
    lazy = da.full((600, 3), np.nan, chunks=(100, 3))
    with pytest.raises(ValueError, match=r"^no row of 600 is complete, where the last axis, of size 3, .*: move"):
        GaussianMixture(missing="drop", **START).fit(lazy)
    model = GaussianMixture(missing="drop").fit(np.random.default_rng(0).standard_normal((50, 3)))
    assert (model.predict(lazy).compute() == -1).all()
    with pytest.raises(ValueError, match="nothing to"):
        model.score(lazy)


@pytest.mark.parametrize("chunks", [None, {"lat": 5}])
def test_no_good_row_where_the_features_are_not_last(chunks: Any, rows: Array, tmp_path: Path) -> None:
    """A DataArray of features first, or of one variable: whole columns along its last dimension are land."""
    ds = fields(rows)
    ds = ds.where(ds.lon.isin([0, 1, 2, 3]))
    ds = ds if chunks is None else ds.chunk(chunks)
    model = GaussianMixture(2, missing="drop")
    remedy = "transpose so that the features are last, or name the variables that are features"
    fact = "where the last dimension, 'lon' of size 10, is taken as the features"
    ds.to_zarr(tmp_path / "x.zarr")
    for data, n in ((ds.to_array(), 180), (ds.a, 60), (open_samples(tmp_path / "x.zarr", array="b"), 60)):
        with pytest.raises(ValueError, match=f"^no row of {n} is complete, {fact}: {remedy}$"):
            model.fit(data)
    assert model.fit(ds.to_array().transpose(..., "variable")).n_samples_ == 240
    with pytest.raises(ValueError, match=r"^no row of 600 is complete: leave out the variables that lack most"):
        model.fit(ds.assign(b=ds.b * np.nan))
    weight = ds.a.isnull().astype(float)
    with pytest.raises(ValueError, match=r"^no row of 600 is complete and weighs something: leave"):
        model.fit(ds, sample_weight=weight)
    with pytest.raises(ValueError, match=r"^no row of 600 weighs anything: sample_weight needs non-zero numbers$"):
        model.fit(fields(rows), sample_weight=weight * 0)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("kind", ["dask", "zarr", "Dataset", "Dataset, dask"])
def test_a_bad_weight_is_named(kind: str, value: float, rows: Array, tmp_path: Path) -> None:
    weight = np.ones(600)
    weight[[345, 500]] = value
    data = KINDS[kind](rows, tmp_path)
    where = "time=2, lat=10, lon=5" if kind.startswith("Dataset") else "row 345"
    with pytest.raises(ValueError, match=rf"sample_weight is {value} at {where}: .*finite"):
        GaussianMixture(**START).fit(
            data, sample_weight=weight if where.startswith("row") else weight.reshape(5, 12, 10)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_left_out_needs_no_weight(kind: str, gappy: Array, tmp_path: Path) -> None:
    """But one that is not needs one, and none may be negative."""
    shape = (5, 12, 10) if kind.startswith(("Dataset", "labelled")) else (600,)
    good = np.isfinite(gappy).all(axis=1)
    weight = np.where(good, np.arange(600) % 3 + 0.5, np.nan)
    data = KINDS[kind](gappy, tmp_path)
    found = GaussianMixture(missing="drop", **START).fit(data, sample_weight=weight.reshape(shape))
    expected = GaussianMixture(**START).fit(gappy[good], sample_weight=weight[good])
    for name in ("weights_", "means_", "covariances_", "lower_bound_"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-10)
    default = GaussianMixture(3, missing="drop", random_state=0).fit(data, sample_weight=weight.reshape(shape))
    assert np.isfinite(default.means_).all()
    for row, value in ((344, np.nan), (345, -1.0)):
        bad = weight.copy()
        bad[row] = value
        with pytest.raises(ValueError, match=f"sample_weight is {value} at|Negative values in data passed"):
            GaussianMixture(missing="drop", **START).fit(data, sample_weight=bad.reshape(shape))
    with pytest.raises(ValueError, match=r"sample_weight contains NaN|X contains (NaN|infinity)"):
        GaussianMixture(**START).fit(data, sample_weight=weight.reshape(shape))


def test_a_row_of_no_weight_may_be_anything(rows: Array) -> None:
    """It does not touch the fit."""
    gappy = rows.copy()
    gappy[7] = 1e300
    weight = np.ones(600)
    weight[7] = 0
    found = GaussianMixture(**START).fit(gappy, sample_weight=weight)
    expected = GaussianMixture(**START).fit(np.delete(rows, 7, axis=0))
    np.testing.assert_allclose(found.covariances_, expected.covariances_, rtol=1e-10)
