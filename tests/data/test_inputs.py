"""Law: the same samples give the same fit and the same results, whatever holds them; in the container they came in."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr

from daskgmm import GaussianMixture, open_samples
from daskgmm.data.blocks import Samples
from daskgmm.data.stored import StoredArray

Array = npt.NDArray[np.float64]

pytestmark = [
    pytest.mark.usefixtures("small_blocks"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata"),  # of the stores that xarray writes here
    pytest.mark.filterwarnings("ignore:.*does not have a Zarr V3 specification"),
]

SHAPE = (5, 12, 10)  # of the 600 samples, as fields
DIMS = ("time", "lat", "lon")


def model(**changes: Any) -> GaussianMixture:
    """An estimator with an explicit start, so that no random number and no seeding comes in."""
    start = {
        "n_components": 3,
        "weights_init": [0.2, 0.3, 0.5],
        "means_init": [[1.0, 1.0, 0.0], [8.0, 0.0, -3.0], [-2.0, 5.0, 2.0]],
        "precisions_init": [np.eye(3)] * 3,
    }
    return GaussianMixture(**{**start, **changes})


@pytest.fixture(scope="module")
def rows(blobs: Array) -> Array:
    """The blobs in an order that differs from block to block: (600, 3)."""
    return np.random.default_rng(1).permutation(blobs)


@pytest.fixture(scope="module")
def reference(rows: Array) -> GaussianMixture:
    return model().fit(rows)


def fields(rows: Array, **variables: Any) -> xr.Dataset:
    """The samples as three variables over time, lat and lon."""
    cube = rows.reshape(*SHAPE, 3)
    coords = {
        "time": np.arange("2020-01-01", "2020-01-06", dtype="datetime64[D]").astype("datetime64[ns]"),
        "lat": np.linspace(-60, 60, SHAPE[1]),
        "lon": np.arange(0.0, 100.0, 10.0),
        "area": ("lat", np.cos(np.linspace(-1, 1, SHAPE[1]))),
        "height": 2.0,
    }
    return xr.Dataset({name: (DIMS, cube[..., i]) for i, name in enumerate("abc")}, coords=coords, attrs=variables)


def stored(**layout: Any) -> Callable[[Array, Path], zarr.Array[Any]]:
    return lambda rows, path: zarr.create_array(str(path / "x.zarr"), data=rows, **layout)


LAYOUTS = {
    "v3": stored(chunks=(50, 3)),
    "v3, features chunked": stored(chunks=(70, 2)),
    "v3, sharded": stored(chunks=(20, 3), shards=(80, 3)),
    "v2": stored(chunks=(50, 3), zarr_format=2),
    "v2, F order, nested keys": stored(
        chunks=(64, 3), zarr_format=2, order="F", chunk_key_encoding={"name": "v2", "separator": "/"}
    ),
}


def a_group(rows: Array, path: Path) -> str:
    group = zarr.create_group(str(path / "group.zarr"))
    group.create_array("x", data=rows, chunks=(50, 3))
    group.create_array("other", data=rows[:, :1], chunks=(50, 1))
    for i, name in enumerate("abc"):
        group.create_array(name, data=rows[:, i], chunks=(40 + 10 * i,))
    return str(path / "group.zarr")


def in_memory_store(rows: Array, path: Path) -> str:
    url = f"memory://{path.name}.zarr"
    zarr.create_array(url, data=rows, chunks=(50, 3))
    return url


FLAT: dict[str, Callable[[Array, Path], Any]] = {
    "dask": lambda rows, _: da.from_array(rows, chunks=(100, 3)),
    "dask, ragged": lambda rows, _: da.from_array(rows, chunks=((10, 290, 1, 99, 200), 3)),
    "dask, empty chunks": lambda rows, _: da.from_array(rows, chunks=((0, 100, 0, 0, 500, 0), 3)),
    "dask, features chunked": lambda rows, _: da.from_array(rows, chunks=((250, 350), (1, 2))),
    "dask, one chunk": lambda rows, _: da.from_array(rows, chunks=-1),
    "path": lambda rows, path: LAYOUTS["v3"](rows, path) and str(path / "x.zarr"),
    "Path": lambda rows, path: LAYOUTS["v3"](rows, path) and path / "x.zarr",
    "file URL": lambda rows, path: LAYOUTS["v3"](rows, path) and f"file://{path}/x.zarr",
    "memory URL": in_memory_store,
    "v2 path": lambda rows, path: LAYOUTS["v2"](rows, path) and str(path / "x.zarr"),
    "sharded path": lambda rows, path: LAYOUTS["v3, sharded"](rows, path) and path / "x.zarr",
    "store in memory": lambda rows, _: zarr.create_array(zarr.storage.MemoryStore(), data=rows, chunks=(50, 3)),
    "array of a group": lambda rows, path: open_samples(a_group(rows, path), array="x"),
    "variables of a group": lambda rows, path: open_samples(
        zarr.open_group(a_group(rows, path)), variables=["a", "b", "c"]
    ),
    "DataArray": lambda rows, _: xr.DataArray(rows, dims=("sample", "feature")),
    **LAYOUTS,
}


@pytest.mark.parametrize("container", FLAT)
def test_fit_and_results_do_not_depend_on_what_holds_the_rows(
    container: str, rows: Array, reference: GaussianMixture, tmp_path: Path
) -> None:
    data = FLAT[container](rows, tmp_path)
    assert_same_fit(model().fit(data), reference)
    # Log-densities, unlike labels, tell any two rows apart: each must be in its row's place.
    np.testing.assert_allclose(np.asarray(reference.score_samples(data)), reference.score_samples(rows), rtol=1e-10)
    assert reference.score(data) == pytest.approx(reference.score(rows), rel=1e-12)


def lazily(rows: Array, path: Path, encoding: dict[str, Any], **kwargs: Any) -> str:
    fields(rows).to_zarr(path / "fields.zarr", encoding=dict.fromkeys("abc", encoding), **kwargs)
    return str(path / "fields.zarr")


def features_last(rows: Array) -> xr.DataArray:
    cube = rows.reshape(*SHAPE, 3)
    return xr.DataArray(cube, dims=(*DIMS, "feature"), coords={"feature": ["a", "b", "c"]}, name="x")


def mixed(ds: xr.Dataset) -> xr.Dataset:
    """Variables in memory and in dask arrays, in two orders of the dimensions."""
    return ds.assign(b=ds.b.chunk(time=2, lat=5).transpose("lon", "time", "lat"), c=ds.c.chunk(lon=3))


CUBES: dict[str, Callable[[Array, Path], Any]] = {
    "Dataset": lambda rows, _: fields(rows),
    "Dataset, dask": lambda rows, _: fields(rows).chunk(time=2, lat=5),
    "Dataset, dask, ragged": lambda rows, _: fields(rows).chunk(time=(1, 3, 1), lat=(7, 5), lon=(1, 9)),
    "Dataset, mixed": lambda rows, _: mixed(fields(rows)),
    "lazy v2": lambda rows, path: xr.open_zarr(lazily(rows, path, {"chunks": (2, 6, 10)}, zarr_format=2), chunks=None),
    "lazy v3": lambda rows, path: xr.open_zarr(lazily(rows, path, {"chunks": (2, 6, 10)}, zarr_format=3), chunks=None),
    "lazy, sharded": lambda rows, path: xr.open_zarr(
        lazily(rows, path, {"chunks": (2, 3, 10), "shards": (4, 6, 10)}, zarr_format=3), chunks=None
    ),
    "xr.open_zarr": lambda rows, path: xr.open_zarr(lazily(rows, path, {"chunks": (2, 6, 10)})),
    "path": lambda rows, path: lazily(rows, path, {"chunks": (2, 6, 10)}),
    "path, v2": lambda rows, path: lazily(rows, path, {"chunks": (1, 12, 10)}, zarr_format=2),
    "path, not consolidated": lambda rows, path: lazily(rows, path, {"chunks": (2, 6, 10)}, consolidated=False),
    "variables of a path": lambda rows, path: open_samples(lazily(rows, path, {}), variables=["a", "b", "c"]),
    "netCDF": lambda rows, path: (
        fields(rows).to_netcdf(path / "x.nc", engine="scipy") or xr.open_dataset(path / "x.nc", engine="scipy")
    ),
    "DataArray": lambda rows, _: features_last(rows),
    "DataArray, dask": lambda rows, _: features_last(rows).chunk(time=2, lat=5, feature=1),
    "DataArray of a path": lambda rows, path: open_samples(
        features_last(rows).to_dataset().to_zarr(path / "a.zarr") and str(path / "a.zarr"), array="x"
    ),
    "NumPy": lambda rows, _: open_samples(rows.reshape(*SHAPE, 3)),
    "dask": lambda rows, _: da.from_array(rows.reshape(*SHAPE, 3), chunks=(2, 5, 10, 2)),
    "zarr": lambda rows, path: zarr.create_array(
        str(path / "c.zarr"), data=rows.reshape(*SHAPE, 3), chunks=(2, 6, 10, 1), shards=(2, 12, 10, 3)
    ),
}


@pytest.mark.parametrize("container", CUBES)
def test_fit_and_results_do_not_depend_on_what_holds_the_fields(
    container: str, rows: Array, reference: GaussianMixture, tmp_path: Path
) -> None:
    data = CUBES[container](rows, tmp_path)
    assert_same_fit(model().fit(data), reference)
    np.testing.assert_allclose(
        np.asarray(model().fit(data).score_samples(data)), reference.score_samples(rows).reshape(SHAPE), rtol=1e-8
    )


@pytest.mark.parametrize("dims", [("lat", "lon", "time"), ("lon", "time", "lat")])
@pytest.mark.parametrize("lazy", [False, True])
def test_transposed_and_selected_variables_keep_their_places(
    dims: tuple[str, ...], lazy: bool, rows: Array, reference: GaussianMixture, tmp_path: Path
) -> None:
    layout = {"chunks": (2, 6, 10), "shards": (4, 12, 10)}
    whole = xr.open_zarr(lazily(rows, tmp_path, layout, zarr_format=3), chunks=None) if lazy else fields(rows)
    density = xr.DataArray(reference.score_samples(rows).reshape(SHAPE), dims=DIMS, coords=fields(rows).coords)
    turned = whole.assign(b=whole.b.transpose(*dims)).transpose(*dims)
    part = turned.isel(time=slice(1, 4), lat=slice(None, None, -1)).isel(lon=3)
    expected = density.isel(time=slice(1, 4), lat=slice(None, None, -1), lon=3)
    found = model().fit(whole).score_samples(part)
    assert found.dims == tuple(dim for dim in dims if dim != "lon")
    xr.testing.assert_allclose(found.compute(), expected.transpose(*found.dims).rename("log_density"), rtol=1e-8)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_cf_encoding_is_decoded(zarr_format: int, rows: Array, tmp_path: Path) -> None:
    packed = {"dtype": "int16", "scale_factor": 0.001, "add_offset": 1.5, "_FillValue": -32768}
    path = lazily(rows, tmp_path, packed, zarr_format=zarr_format)
    with xr.open_zarr(path) as ds:
        unpacked = np.stack([ds[name].values.ravel() for name in "abc"], axis=1)
    assert abs(unpacked - rows).max() < 0.001  # so it is the values that are compared, not the packed integers
    expected = model().fit(unpacked)
    assert_same_fit(model().fit(path), expected)
    assert_same_fit(model().fit(xr.open_zarr(path, chunks=None)), expected)


@pytest.mark.parametrize(
    ("container", "form"),
    [
        *((container, "dask") for container in ("NumPy", "Dataset", "Dataset, dask", "lazy v3", "zarr")),
        *(("dask", form) for form in ("ndarray", "list", "dask", "DataArray", "zarr")),
        *(("lazy v3", form) for form in ("ndarray", "DataArray", "zarr")),
        ("Dataset, dask", "DataArray"),
    ],
)
def test_weights_of_any_kind(container: str, form: str, rows: Array, tmp_path: Path) -> None:
    weight = np.random.default_rng(2).integers(0, 4, 600).astype(float)
    cube = weight.reshape(SHAPE)
    forms: dict[str, Callable[[], Any]] = {
        "ndarray": lambda: cube,
        "list": cube.tolist,
        "dask": lambda: da.from_array(cube, chunks=(3, 5, 5)),
        "DataArray": lambda: fields(rows).a.copy(data=cube).transpose("lon", "lat", "time").chunk(lat=5),
        "zarr": lambda: zarr.create_array(str(tmp_path / "w.zarr"), data=cube, chunks=(2, 5, 10)),
    }
    if form == "DataArray" and not container.startswith(("Dataset", "lazy")):
        forms["DataArray"] = lambda: xr.DataArray(cube, dims=DIMS)
    data = rows.reshape(*SHAPE, 3) if container == "NumPy" else CUBES[container](rows, tmp_path)
    samples = open_samples(data, sample_weight=forms[form]())
    assert_same_fit(model().fit(samples), model().fit(np.repeat(rows, weight.astype(int), axis=0)))


SPREAD = ("Dataset", "Dataset, dask", "Dataset, mixed", "lazy v3", "netCDF", "xr.open_zarr", "path", "DataArray, dask")


@pytest.mark.parametrize("dims", [("lat",), ("lon", "time"), ()])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("container", SPREAD)
def test_weights_along_some_dimensions_are_those_of_all_samples(
    container: str, lazy: bool, dims: tuple[str, ...], rows: Array, tmp_path: Path
) -> None:
    """To the last bit."""
    data = CUBES[container](rows, tmp_path)
    whole = fields(rows)
    sizes = [whole.sizes[dim] for dim in dims]
    few = xr.DataArray(np.random.default_rng(3).uniform(0.1, 2, sizes), dims=dims)
    if not container.startswith("DataArray"):
        few = few.assign_coords({dim: whole[dim] for dim in dims})
    every = few.broadcast_like(whole.a.drop_vars(whole.coords)).transpose(*DIMS)
    few = few.chunk(dict.fromkeys(dims, 2)) if lazy else few
    found, expected = model().fit(data, sample_weight=few), model().fit(data, sample_weight=every.values)
    for name in ("weights_", "means_", "covariances_", "lower_bound_"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    samples = open_samples(data, sample_weight=few)
    if not (samples.in_memory or samples.graph):  # it is sent to workers; all weights are 4,800 bytes
        assert len(pickle.dumps(samples.source)) < len(pickle.dumps(open_samples(data).source)) + 4000


@pytest.mark.parametrize("weight", ["lat", "area"])
@pytest.mark.parametrize("container", ["Dataset", "Dataset, dask", "lazy v3", "path"])
def test_weights_along_some_dimensions_by_name(container: str, weight: str, rows: Array, tmp_path: Path) -> None:
    """The store's own are read with what is done for all that is stored, and a kept fit knows them again."""
    own = fields(rows).assign_coords(lat=np.linspace(1, 60, SHAPE[1])).reset_coords("area")
    path = str(tmp_path / "w.zarr")
    own.to_zarr(path, encoding={name: {"chunks": (2, 6, 10)} for name in "abc"})
    data = {
        "Dataset": lambda: own,
        "Dataset, dask": lambda: own.chunk(time=2, lat=5),
        "lazy v3": lambda: xr.open_zarr(path, chunks=None),
        "path": lambda: path,
    }[container]()
    samples = open_samples(data, variables=["a", "b", "c"], sample_weight=weight)
    expected = model().fit(own[["a", "b", "c"]], sample_weight=own[weight].broadcast_like(own.a).transpose(*DIMS))
    assert_same_fit(model().fit(samples), expected)
    if container == "path":
        assert isinstance(samples.source.weight.array, StoredArray)
        assert samples.source.stamp() is not None
        given = open_samples(path, variables=["a", "b", "c"], sample_weight=own[weight])
        assert given.source.stamp() is None  # which may be another the next time


def test_labels_along_some_dimensions(rows: Array) -> None:
    ds = fields(rows)
    labels = xr.where(ds.lat > 50, 1, -1)
    every = labels.broadcast_like(ds.a).transpose(*DIMS)
    assert_same_fit(model().fit(open_samples(ds, labels=labels)), model().fit(open_samples(ds, labels=every)))


def test_weights_without_units_of_storage(rows: Array, tmp_path: Path) -> None:
    """Weights beside rows, and straight to `fit`."""
    weight = np.arange(600) % 3
    expected = model().fit(np.repeat(rows, weight, axis=0))
    lazy = da.from_array(rows, chunks=(130, 3))
    assert_same_fit(model().fit(rows, sample_weight=weight), expected)
    assert_same_fit(model().fit(lazy, sample_weight=da.from_array(weight, chunks=77)), expected)
    assert_same_fit(model().fit(LAYOUTS["v3"](rows, tmp_path), sample_weight=weight), expected)


# What comes out


def test_numpy_in_numpy_out(rows: Array, reference: GaussianMixture) -> None:
    assert isinstance(reference.predict(rows), np.ndarray)
    assert reference.predict_proba(rows).shape == (600, 3)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "score_samples"])
def test_dask_in_lazy_dask_with_the_same_chunks_out(method: str, rows: Array, reference: GaussianMixture) -> None:
    chunks = (10, 290, 1, 99, 200)
    lazy = getattr(reference, method)(da.from_array(rows, chunks=(chunks, (1, 2))))
    expected = getattr(reference, method)(rows)
    assert isinstance(lazy, da.Array)
    assert lazy.chunks == (chunks, *((size,) for size in expected.shape[1:]))
    assert lazy.dtype == expected.dtype
    # A chunk of one row is multiplied by other routines of BLAS.
    np.testing.assert_allclose(lazy.compute(), expected, rtol=1e-12)
    np.testing.assert_allclose(lazy[250:305].compute(), expected[250:305], rtol=1e-12)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "score_samples"])
def test_zarr_in_lazy_dask_out(method: str, rows: Array, reference: GaussianMixture, tmp_path: Path) -> None:
    LAYOUTS["v3"](rows, tmp_path)
    lazy = getattr(reference, method)(tmp_path / "x.zarr")
    assert isinstance(lazy, da.Array)
    assert lazy.numblocks[0] > 1
    np.testing.assert_array_equal(lazy.compute(), getattr(reference, method)(rows))


@pytest.mark.parametrize("lazy", [False, True])
def test_dataset_in_dataarray_with_its_dims_coords_and_chunks_out(
    lazy: bool, rows: Array, reference: GaussianMixture
) -> None:
    ds = fields(rows).chunk(time=2, lat=(5, 7)) if lazy else fields(rows)
    for method, name in (("predict", "labels"), ("score_samples", "log_density"), ("predict_proba", "proba")):
        result = getattr(reference, method)(ds)
        assert isinstance(result, xr.DataArray)
        assert result.name == name
        assert result.dims == (*DIMS, *(["component"] if name == "proba" else []))
        xr.testing.assert_identical(result.coords.to_dataset(), ds.coords.to_dataset())
        assert (result.chunks is not None) == lazy
        if lazy:
            assert {dim: result.chunksizes[dim] for dim in DIMS} == dict(ds.chunksizes)
        expected = getattr(reference, method)(rows)
        np.testing.assert_array_equal(result.values, expected.reshape(*SHAPE, *expected.shape[1:]))


def test_labelled_store_in_lazy_dataarray_out(rows: Array, reference: GaussianMixture, tmp_path: Path) -> None:
    path = lazily(rows, tmp_path, {"chunks": (2, 6, 10)})
    result = model().fit(path).predict(path)
    assert isinstance(result, xr.DataArray)
    assert result.chunks is not None
    xr.testing.assert_identical(result.coords.to_dataset(), xr.open_zarr(path).coords.to_dataset().compute())
    np.testing.assert_array_equal(result.values, reference.predict(rows).reshape(SHAPE))


def test_stacked_dimensions_come_back(rows: Array, reference: GaussianMixture) -> None:
    result = reference.predict(fields(rows).stack(sample=("time", "lat")))
    xr.testing.assert_identical(
        result.unstack("sample").transpose(*DIMS).drop_vars("area"), reference.predict(fields(rows)).drop_vars("area")
    )


def test_features_are_found_by_name(rows: Array) -> None:
    ds = fields(rows)
    fitted = model().fit(ds)
    assert fitted.feature_names_in_.tolist() == ["a", "b", "c"]
    turned = ds[["c", "a", "b"]].assign(other=ds.a * 7)
    xr.testing.assert_identical(fitted.predict(turned), fitted.predict(ds))


def test_one_named_feature_and_rows_without_names(rows: Array) -> None:
    """A model of one named variable sees (n, 1) rows as rows."""
    fitted = GaussianMixture(2, random_state=0).fit(fields(rows)[["a"]])
    np.testing.assert_array_equal(
        fitted.predict(da.from_array(rows[:, :1], chunks=(100, 1))).compute(),
        fitted.predict(fields(rows)).values.ravel(),
    )


def test_a_store_without_order_has_the_order_of_its_names(rows: Array, tmp_path: Path) -> None:
    """Directories list their members in any order: the features must not follow it."""
    names = ["q", "b", "z", "a", "k", "c"]
    ds = xr.Dataset({name: ("x", rows[:, i % 3]) for i, name in enumerate(names)})
    ds.to_zarr(tmp_path / "x.zarr", consolidated=False)
    assert open_samples(tmp_path / "x.zarr").names == tuple(sorted(names))


def test_features_of_a_dataarray_have_the_names_of_its_coordinate(rows: Array) -> None:
    assert model().fit(features_last(rows)).feature_names_in_.tolist() == ["a", "b", "c"]


# What is left undone


@pytest.mark.parametrize("method", ["predict", "predict_proba", "score_samples"])
@pytest.mark.parametrize("labelled", [False, True])
def test_nothing_is_computed_before_it_is_asked_for(method: str, labelled: bool, reference: GaussianMixture) -> None:
    def explode(block: Array) -> Array:
        raise RuntimeError("computed")

    lazy = da.map_blocks(explode, da.zeros((*SHAPE, 3), chunks=(2, 6, 10, 2)), meta=np.empty((0,) * 4))
    data = xr.DataArray(lazy, dims=(*DIMS, "feature")) if labelled else lazy
    result = getattr(reference, method)(data)
    with pytest.raises(RuntimeError, match="computed"):
        result.compute()


def test_a_store_is_not_read_to_name_a_task(rows: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's names are hashes of the arguments: of a lazy variable, of all of its values."""
    samples = open_samples(lazily(rows, tmp_path, {"chunks": (2, 6, 10)}))

    def read(*_: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(zarr.Array, "__getitem__", read)
    dask.base.tokenize(samples.source)


def test_one_block_of_the_result_takes_one_block_of_the_input(rows: Array, reference: GaussianMixture) -> None:
    read: list[int] = []

    def note(block: Array) -> Array:
        read.append(len(block))
        return block

    lazy = da.map_blocks(note, da.from_array(rows, chunks=((100, 150, 350), 3)), meta=np.empty((0, 0)))
    with dask.config.set(scheduler="synchronous"):
        reference.predict(lazy)[100:250].compute()
    assert read == [150]


@pytest.mark.parametrize("container", ["Dataset, dask", "DataArray, dask", "xr.open_zarr", "dask"])
def test_fields_are_not_reshaped_in_the_graph(container: str, rows: Array, tmp_path: Path) -> None:
    """dask's reshape of chunked fields moves data between chunks."""
    samples = open_samples(CUBES[container](rows, tmp_path))
    assert isinstance(samples, Samples)
    assert not [key for key in samples.graph if "reshape" in str(key) or "ravel" in str(key)]
    assert samples.shape == SHAPE


def assert_same_fit(found: GaussianMixture, expected: GaussianMixture) -> None:
    assert found.n_iter_ == expected.n_iter_
    for name in ("weights_", "means_", "covariances_", "precisions_cholesky_", "lower_bound_"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-10, err_msg=name)
