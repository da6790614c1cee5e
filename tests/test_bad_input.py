"""What cannot be fitted is refused, before any work is wasted on it: with the fact, its place and a remedy."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
import zarr

import daskgmm.passes.memory
from daskgmm import GaussianMixture, open_samples
from daskgmm.em.loop import EMState

Array = npt.NDArray[np.float64]

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")


@pytest.fixture(scope="module")
def rows(blobs: Array) -> Array:
    return np.random.default_rng(1).permutation(blobs)


def files(path: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


# The store


@pytest.mark.parametrize("data", [None, "", "text", "{", '{"zarr_format": 3, "node_type": "array"}', "[]"])
def test_what_is_no_zarr_store_is_refused_and_left_alone(data: str | None, tmp_path: Path) -> None:
    """Nothing at the path, a directory without Zarr metadata, and metadata that are garbage."""
    path = tmp_path / "x.zarr"
    if data is not None:
        path.mkdir()
        (path / ("zarr.json" if data else "notes.txt")).write_text(data)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=rf"cannot open '{path}' as a Zarr array or group \(.+\): check the path"):
        GaussianMixture(2).fit(path)
    assert files(tmp_path) == before


@pytest.mark.parametrize("url", ["nosuchprotocol://bucket/x.zarr", "memory://nothing-there.zarr"])
def test_a_url_that_cannot_be_opened(url: str) -> None:
    with pytest.raises(ValueError, match=f"cannot open '{url}' .*check the path"):
        GaussianMixture(2).fit(url)


def test_what_holds_no_samples_at_all() -> None:
    with pytest.raises(TypeError, match="cannot read samples from dict: give an array"):
        open_samples({"a": [1.0]})
    import dask

    with pytest.raises(TypeError, match="cannot read samples from Delayed"):
        GaussianMixture(2).fit(dask.delayed(np.ones)((5, 2)))


def test_what_holds_an_array_and_is_none(rows: Array) -> None:
    """Stand-ins for a dask DataFrame and for AnnData, which are other packages' here."""
    frame = type("DataFrame", (), {"__dask_graph__": lambda self: {}, "to_dask_array": lambda self, lengths: None})()
    cells = type("AnnData", (), {"X": rows, "shape": rows.shape})()
    for call in (GaussianMixture(2).fit, GaussianMixture(2, random_state=0).fit(rows).predict, open_samples):
        with pytest.raises(TypeError, match=r"samples from DataFrame: give its \.to_dask_array\(lengths=True\)$"):
            call(frame)
        with pytest.raises(TypeError, match=r"samples from AnnData: give the array that it holds, its \.X$"):
            call(cells)
    pandas = pd.DataFrame(rows, columns=["X", "Y", "Z"])
    assert GaussianMixture(2, random_state=0).fit(pandas).n_samples_ == 600


@pytest.mark.parametrize("labelled", [False, True])
def test_sparse_arrays(labelled: bool, rows: Array) -> None:
    lazy: Any = da.from_array(rows, chunks=(100, 3)).map_blocks(scipy.sparse.csr_matrix)
    remedy = re.escape("make them dense by x.map_blocks(lambda b: b.toarray(), dtype=x.dtype)")
    message = rf"the array has sparse blocks \(csr_matrix\), .*: {remedy}$"
    for call in (GaussianMixture(2).fit, GaussianMixture(2, random_state=0).fit(rows).predict, open_samples):
        with pytest.raises(TypeError, match=message):
            call(xr.DataArray(lazy, dims=("x", "feature")) if labelled else lazy)
    expected = GaussianMixture(2, random_state=0).fit(da.from_array(rows, chunks=(100, 3)))
    dense = GaussianMixture(2, random_state=0).fit(lazy.map_blocks(lambda b: b.toarray(), dtype=lazy.dtype))
    np.testing.assert_array_equal(dense.means_, expected.means_)
    with pytest.raises(TypeError, match=r"the array is sparse \(csr_array\), .*: give its \.toarray\(\)$"):
        open_samples(scipy.sparse.csr_array(rows))


def test_arrays_of_a_group_are_listed_where_the_choice_is_open_or_wrong(rows: Array, tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "g.zarr"))
    with pytest.raises(ValueError, match=r"holds 0 arrays \(none\)"):
        open_samples(group)
    for name in ("second", "first"):
        group.create_array(name, data=rows)
    group.create_array("short", data=rows[:10])
    with pytest.raises(ValueError, match=r"holds 3 arrays \(first, second, short\): name one"):
        open_samples(group)
    with pytest.raises(ValueError, match=r"no array 'third': there are first, second, short"):
        open_samples(group, array="third")
    with pytest.raises(ValueError, match=r"no variable 'third': there are first, second, short"):
        open_samples(group, variables=["first", "third"])
    with pytest.raises(ValueError, match=r"'short' has shape \(10, 3\), but 'first' has \(600, 3\)"):
        open_samples(group, variables=["first", "short"])


def test_a_name_for_what_is_one_array(rows: Array, tmp_path: Path) -> None:
    for data in (
        rows,
        da.from_array(rows),
        xr.DataArray(rows, dims=("x", "y")),
        zarr.create_array(str(tmp_path / "x.zarr"), data=rows),
    ):
        with pytest.raises(ValueError, match="no array 'q', as the data are one array themselves: give no name"):
            open_samples(data, array="q")


def test_a_labelled_store_of_one_array_leaves_a_choice_open(rows: Array, tmp_path: Path) -> None:
    """Its last dimension may hold features, or samples of one feature."""
    ds = xr.Dataset({"x": (("sample", "feature"), rows)}, coords={"feature": np.arange(3)})
    ds.to_zarr(tmp_path / "x.zarr")
    with pytest.raises(ValueError, match=r"holds one array, 'x', whose last dimension .*: name it"):
        GaussianMixture(2).fit(tmp_path / "x.zarr")
    assert open_samples(tmp_path / "x.zarr", array="x").n_features == 3
    assert open_samples(tmp_path / "x.zarr", variables=["x"]).n_features == 1


def test_variables_of_a_dataset_are_listed(rows: Array) -> None:
    ds = xr.Dataset({"a": ("x", rows[:, 0]), "b": ("x", rows[:, 1]), "c": ("y", rows[:, 2]), "d": 1.0})
    for choice in ({"variables": ["a", "z"]}, {"array": "z"}):
        with pytest.raises(ValueError, match="no variable 'z': there are a, b, c, d"):
            open_samples(ds, **choice)
    with pytest.raises(ValueError, match=r"'c' has dimensions \('y',\), but 'a' has \('x',\): select variables"):
        open_samples(ds, variables=["a", "c"])
    with pytest.raises(ValueError, match="no data variables"):
        GaussianMixture(2).fit(ds[[]])
    with pytest.raises(ValueError, match="no dimensions"):
        GaussianMixture(2).fit(ds[["d"]])
    with pytest.raises(ValueError, match=r"has no features: .*to_dataset"):
        GaussianMixture(2).fit(ds.a)
    with pytest.raises(ValueError, match="no variable 'a'"):
        GaussianMixture(2, random_state=0).fit(ds[["a", "b"]]).predict(ds[["b"]])


# Chunks that the store lacks

LAYOUTS: dict[str, tuple[dict[str, Any], str, str]] = {  # layout, the file that is lost, the chunk's name
    "v3": ({"chunks": (50, 2)}, "c/3/1", "c/3/1"),
    "v3, sharded": ({"chunks": (50, 3), "shards": (150, 3)}, "c/2/0", "c/2/0"),
    "v2": ({"chunks": (50, 3), "zarr_format": 2}, "7.0", "7.0"),
    "v2, nested": (
        {"chunks": (50, 3), "zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
        "7/0",
        "7/0",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("in_group", [False, True])
def test_a_missing_chunk_is_named(layout: str, in_group: bool, rows: Array, tmp_path: Path) -> None:
    kwargs, file, chunk = LAYOUTS[layout]
    zarr.create_array(str(tmp_path / "g.zarr"), name="x" if in_group else None, data=rows, **kwargs)
    array = tmp_path / "g.zarr" / ("x" if in_group else ".")
    (array / file).unlink()
    with pytest.raises(ValueError, match=rf"chunk '{chunk}' of array .* is missing \(1 of .*missing='fill'"):
        open_samples(tmp_path / "g.zarr")
    assert open_samples(tmp_path / "g.zarr", missing="fill").n == 600
    with pytest.raises(ValueError, match="is missing"):  # its fill value is zero: a number like any other
        open_samples(tmp_path / "g.zarr", missing="drop")


def test_a_missing_chunk_is_the_fill_value_where_that_is_meant(rows: Array, tmp_path: Path) -> None:
    full = rows.copy()
    full[150:200] = -7.0
    partial = zarr.create_array(str(tmp_path / "x.zarr"), data=rows, chunks=(50, 3), fill_value=-7.0)
    (tmp_path / "x.zarr" / "c" / "3" / "0").unlink()
    expected = GaussianMixture(2, random_state=0).fit(da.from_array(full, chunks=(600, 3)))
    found = GaussianMixture(2, random_state=0, missing="fill").fit(partial)
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-10)


@pytest.mark.parametrize("kind", ["plain", "labelled", "CF v2", "CF v3"])
def test_a_missing_chunk_is_missing_rows_where_it_reads_as_nan(kind: str, rows: Array, tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    if kind == "plain":
        zarr.create_array(str(path), data=rows, chunks=(50, 3), fill_value=np.nan)
        (path / "c" / "3" / "0").unlink()
    else:
        packed = {"dtype": "int16", "scale_factor": 0.001, "_FillValue": -32768} if "CF" in kind else {}
        encoding = {"chunks": (50,), **(packed or {"_FillValue": np.nan})}
        if kind == "CF v3":
            encoding["fill_value"] = -32768
        ds = xr.Dataset({name: ("x", rows[:, i]) for i, name in enumerate("abc")})
        zarr_format = 2 if kind == "CF v2" else 3
        ds.to_zarr(path, encoding=dict.fromkeys("abc", encoding), zarr_format=zarr_format)
        (path / "b" / ("3" if zarr_format == 2 else "c/3")).unlink()
    with pytest.raises(ValueError, match="is missing"):
        GaussianMixture(2).fit(path)
    found = GaussianMixture(2, random_state=0, missing="drop").fit(path)
    assert found.n_samples_ == 550
    labels = np.asarray(found.predict(path))
    assert set(np.flatnonzero(labels == -1)) == set(range(150, 200))


def test_a_store_that_is_gone_before_it_is_read_is_not_read_as_fill_values(rows: Array, tmp_path: Path) -> None:
    """Where a worker cannot see the store, each chunk is missing, and Zarr would read zeros."""
    path = tmp_path / "x.zarr"
    lazy = GaussianMixture(2).fit(rows).predict(zarr.create_array(str(path), data=rows, chunks=(50, 3)))
    shutil.rmtree(path)
    with pytest.raises(FileNotFoundError, match=r"x.zarr/zarr.json is not there for this worker: put the data"):
        lazy.compute()


# Values and shapes


@pytest.mark.parametrize("dtype", ["complex128", "datetime64[s]", "U3", "object"])
@pytest.mark.parametrize("kind", ["dask", "zarr", "Dataset", "DataArray", "group", "NumPy"])
def test_what_are_no_real_numbers_is_refused(dtype: str, kind: str, rows: Array, tmp_path: Path) -> None:
    values = np.arange(600).reshape(300, 2).astype(dtype)
    if kind in ("zarr", "group") and dtype == "object":
        dtype, values = "StringDType()", values.astype(str).astype(np.dtypes.StringDType())
    makers: dict[str, Callable[[], Any]] = {
        "dask": lambda: da.from_array(values, chunks=(100, 2)),
        "Dataset": lambda: xr.Dataset({"good": ("x", rows[:300, 0]), "bad": ("x", values[:, 0])}),
        "DataArray": lambda: xr.DataArray(values, dims=("x", "feature")).chunk(x=100),
        "NumPy": lambda: values,
        "zarr": lambda: zarr.create_array(str(tmp_path / "x.zarr"), data=values, chunks=(100, 2)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Zarr's, of its dtypes
        if kind == "group":
            group = zarr.create_group(str(tmp_path / "g.zarr"))
            group.create_array("good", data=rows[:300, 0])
            group.create_array("bad", data=values[:, 0])
            data, choice = group, {"variables": ["good", "bad"]}
        else:
            data, choice = makers[kind](), {}
    what = {"Dataset": "variable 'bad'", "group": "array 'bad'", "DataArray": "the DataArray"}.get(kind, "the array")
    remedy = "fit the real and imaginary parts" if dtype == "complex128" else "convert them first"
    with pytest.raises(ValueError, match=rf"{what} has dtype .*, but a mixture needs real numbers: {remedy}"):
        open_samples(data, **choice)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "int64", "float16", "float32"])
def test_real_numbers_of_any_dtype_are_taken_as_they_are(dtype: str, rows: Array, tmp_path: Path) -> None:
    values = (rows > 2) if dtype == "bool" else np.abs(5 * rows).astype(dtype)
    expected = GaussianMixture(2, random_state=0).fit(values.astype(np.float64))
    found = GaussianMixture(2, random_state=0).fit(zarr.create_array(str(tmp_path / "x.zarr"), data=values))
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-10)
    np.testing.assert_allclose(found.covariances_, expected.covariances_, rtol=1e-8)


@pytest.mark.parametrize("shape", [(0, 3), (0, 4, 3), (5, 0, 3)])
def test_no_rows(shape: tuple[int, ...], rows: Array) -> None:
    message = r"Found array with 0 sample\(s\)"
    model = GaussianMixture(2, random_state=0).fit(rows)
    for call in (GaussianMixture(2).fit, model.predict, model.score):
        with pytest.raises(ValueError, match=message):
            call(da.zeros(shape))
    with pytest.raises(ValueError, match=message):
        open_samples(np.zeros(shape))


def test_no_features(tmp_path: Path) -> None:
    empty = zarr.create_array(str(tmp_path / "x.zarr"), shape=(5, 0), chunks=(5, 1), dtype=float)
    for data in (da.zeros((5, 0)), empty, xr.DataArray(np.zeros((5, 0)), dims=("x", "y")), np.zeros((5, 0))):
        with pytest.raises(ValueError, match=r"0 feature\(s\)"):
            GaussianMixture(2).fit(data)


def test_a_dask_array_that_does_not_know_its_shape(rows: Array) -> None:
    lazy = da.from_array(rows, chunks=(100, 3))
    unknown = lazy[lazy[:, 0] > 0]
    with pytest.raises(ValueError, match=r"does not know its shape: call its compute_chunk_sizes\(\)"):
        GaussianMixture(2).fit(unknown)
    assert GaussianMixture(2, random_state=0).fit(unknown.compute_chunk_sizes()).n_samples_ == (rows[:, 0] > 0).sum()


def test_one_dimension(rows: Array) -> None:
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array instead"):
        GaussianMixture(2).fit(da.from_array(rows[:, 0]))


@pytest.mark.parametrize("subsample", [None, 100_000])
def test_fewer_rows_than_components(subsample: int | None, rows: Array) -> None:
    for data in (rows[:3], da.from_array(rows[:3], chunks=(1, 3))):
        with pytest.raises(ValueError, match="n_components = 4, n_samples = 3"):
            GaussianMixture(4, subsample=subsample).fit(data)


@pytest.mark.parametrize("kind", ["NumPy", "dask", "Dataset", "zarr"])
def test_another_number_of_features(kind: str, rows: Array, tmp_path: Path) -> None:
    data = {
        "NumPy": lambda: rows[:, :2],
        "dask": lambda: da.from_array(rows[:, :2]),
        "Dataset": lambda: xr.Dataset({name: ("x", rows[:, i]) for i, name in enumerate("ab")}),
        "zarr": lambda: zarr.create_array(str(tmp_path / "x.zarr"), data=rows[:, :2]),
    }[kind]()
    model = GaussianMixture(2, random_state=0).fit(rows)
    for call in (model.predict, model.predict_proba, model.score_samples, model.score):
        with pytest.raises(ValueError, match="X has 2 features, but GaussianMixture is expecting 3 features"):
            call(data)


# Weights


@pytest.mark.parametrize("kind", ["NumPy", "dask", "zarr", "DataArray"])
@pytest.mark.parametrize("shape", [(599,), (), (600, 3), (600, 1)])
def test_weights_of_another_shape(kind: str, shape: tuple[int, ...], rows: Array, tmp_path: Path) -> None:
    data = {
        "NumPy": lambda: rows,
        "dask": lambda: da.from_array(rows, chunks=(100, 3)),
        "zarr": lambda: zarr.create_array(str(tmp_path / "x.zarr"), data=rows),
        "DataArray": lambda: xr.DataArray(rows, dims=("x", "feature")),
    }[kind]()
    with pytest.raises(ValueError, match=r"sample_weight.shape == .*, expected \(600,\)"):
        open_samples(data, sample_weight=np.ones(shape))
    with pytest.raises(ValueError, match=r"sample_weight has dtype"):
        open_samples(data, sample_weight=["heavy"] * 600)


def test_weights_that_a_store_lacks(rows: Array, tmp_path: Path) -> None:
    """They would read as zero: rows would be left out without a word."""
    weight = zarr.create_array(str(tmp_path / "w.zarr"), data=np.ones(600), chunks=(100,))
    (tmp_path / "w.zarr" / "c" / "2").unlink()
    with pytest.raises(ValueError, match=r"chunk 'c/2' of array .* is missing"):
        open_samples(da.from_array(rows), sample_weight=weight)


def test_weights_that_belong_to_other_samples(rows: Array) -> None:
    ds = xr.Dataset({"a": ("x", rows[:, 0]), "b": ("x", rows[:, 1])}, coords={"x": np.arange(600)})
    weight = xr.ones_like(ds.a)
    with pytest.raises(ValueError, match=r"other coordinates than the samples: .*xarray\.align"):
        GaussianMixture(2).fit(ds, sample_weight=weight.assign_coords(x=np.arange(1, 601)))
    with pytest.raises(ValueError, match="other coordinates"):
        GaussianMixture(2).fit(ds, sample_weight=weight[:-1])
    with pytest.raises(ValueError, match=r"sample_weight has dimensions \('y',\), expected \('x',\)"):
        GaussianMixture(2).fit(ds, sample_weight=weight.rename(x="y"))


# Data that do not spread


@pytest.mark.parametrize("kind", ["NumPy", "Dataset"])
def test_a_constant_feature_is_named(kind: str, rows: Array) -> None:
    flat = rows.copy()
    flat[:, 1] = 4.0
    data = flat if kind == "NumPy" else xr.Dataset({name: ("x", flat[:, i]) for i, name in enumerate("abc")})
    fact = f"feature {'1' if kind == 'NumPy' else repr('b')} is constant"
    with pytest.raises(ValueError, match=rf"{fact}.*: drop it, or set reg_covar above zero"):
        GaussianMixture(2, reg_covar=0).fit(data)
    with pytest.warns(UserWarning, match=fact):
        model = GaussianMixture(2, random_state=0).fit(data)
    assert np.isfinite(model.means_).all()
    np.testing.assert_allclose(model.covariances_[:, 1, 1], 1e-6, rtol=1e-6)


def test_duplicates_of_fewer_rows_than_components() -> None:
    twice = np.repeat([[0.0, 1.0], [2.0, 3.0]], 50, axis=0)
    fact = "only 2 of 100 sampled rows are distinct, fewer than n_components=3"
    with pytest.raises(ValueError, match=f"{fact}: lower n_components"):
        GaussianMixture(3, reg_covar=0).fit(twice)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        model = GaussianMixture(3, random_state=0).fit(twice)
    assert any(fact in str(warning.message) for warning in warned)
    assert np.isfinite(model.means_).all()
    assert np.isfinite(model.covariances_).all()


# Components that die

PRECISIONS = {"full": [np.eye(3)] * 3, "tied": np.eye(3), "diag": np.ones((3, 3)), "spherical": np.ones(3)}
PRECISIONS |= dict.fromkeys(("EII", "VEI", "VEE", "EVE", "VVE", "EEV", "EVV"), PRECISIONS["full"])


@pytest.mark.parametrize("far", [1e3, 1e8, 1e150])
@pytest.mark.parametrize("covariance_type", PRECISIONS)
def test_a_component_without_rows_is_repaired_and_named(covariance_type: str, far: float, rows: Array) -> None:
    model = GaussianMixture(
        3,
        covariance_type=covariance_type,
        weights_init=[1 / 3] * 3,
        means_init=[[0.0, 0.0, 0.0], [far, far, far], [9.0, 1.0, -5.0]],
        precisions_init=PRECISIONS[covariance_type],
    )
    with pytest.warns(UserWarning, match="component 1 lost all its samples in pass 1"):
        model.fit(da.from_array(rows, chunks=(100, 3)))
    for name in ("weights_", "means_", "covariances_", "precisions_cholesky_", "lower_bounds_"):
        assert np.isfinite(getattr(model, name)).all(), name
    assert model.weights_[1] > 0.01
    assert abs(model.means_).max() < 20


def test_components_that_die_again_and_again_end_the_fit(rows: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine of them were started again before."""
    model = GaussianMixture(3, weights_init=[1 / 3] * 3, means_init=[[0.0] * 3, [1e3] * 3, [9.0, 1.0, -5.0]])
    model.set_params(precisions_init=PRECISIONS["full"])
    original = EMState.__init__

    def tired(self: EMState, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{"n_restarted": 9} | kwargs)

    monkeypatch.setattr(EMState, "__init__", tired)
    with pytest.raises(ValueError, match=r"component 1 lost .* \(now 3\)"):
        model.fit(rows)


@pytest.mark.parametrize("least", [0.0, -1.0])
def test_a_singular_start_is_refused(least: float, rows: Array) -> None:
    precisions = [np.eye(3), np.diag([1.0, 1.0, least])]
    with pytest.raises(ValueError, match="symmetric, positive-definite, as no component has another: correct"):
        GaussianMixture(2, precisions_init=precisions).fit(rows)


# What a failure leaves behind


def test_a_failed_fit_leaves_the_estimator_as_it_was(rows: Array, tmp_path: Path) -> None:
    model = GaussianMixture(2, random_state=0).fit(rows)
    before = dict(model.__dict__)
    for bad in (rows * np.nan, da.zeros((0, 7)), tmp_path / "nothing.zarr", rows[:1]):
        with pytest.raises(ValueError):
            model.fit(bad)
    assert model.__dict__ == before
    assert not list(tmp_path.iterdir())


def test_blocks_too_large_for_memory_are_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a store whose one chunk was never written: to read it would be to allocate it."""
    array = zarr.create_array(str(tmp_path / "x.zarr"), shape=(10**9, 3), chunks=(10**9, 3), dtype="float64")
    monkeypatch.setattr(daskgmm.passes.memory, "_limits", lambda samples: (4 * 2.0**30, 2))
    with pytest.raises(
        MemoryError, match=r"2 threads needs \d+ MiB .* limit is 4096 MiB: .* fewer threads, or rechunk"
    ):
        GaussianMixture(2, missing="fill").fit(array)
    lazy = da.zeros((10**9, 3), chunks=(5 * 10**8, 3))
    with pytest.raises(MemoryError, match="rechunk"):
        GaussianMixture(2).fit(lazy)
