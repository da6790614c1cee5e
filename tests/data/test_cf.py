"""Laws of the CF conventions: what describes the input describes the results, in memory and through Zarr and netCDF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr

from daskgmm import BernoulliMixture, GaussianMixture, load, open_samples
from daskgmm.prediction.predict import LABELS, LOG_DENSITY, PROBA
from daskgmm.prediction.write import write_predictions

Array = npt.NDArray[np.float64]

pytestmark = [
    pytest.mark.usefixtures("small_blocks"),
    pytest.mark.filterwarnings("error:Variable.s. referenced"),  # to what is not there
    pytest.mark.filterwarnings("error:feature .* has units"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata"),
]

SHAPE, DIMS, HOLE = (6, 10, 10), ("time", "y", "x"), (2, 3, 4)
CRS = {"grid_mapping_name": "latitude_longitude", "semi_major_axis": 6378137.0, "crs_wkt": "GEOGCS[…]"}


def fields(rows: Array, hole: bool = False) -> xr.Dataset:
    """Two variables of a map over time, as CF has them: with a grid mapping, bounds, units, a calendar."""
    cube = rows.reshape(*SHAPE, 3).copy()
    if hole:
        cube[HOLE] = np.nan
    y = np.linspace(-45, 45, 10)
    ds = xr.Dataset(
        {
            "temperature": (DIMS, cube[..., 0], {"units": "degC", "grid_mapping": "crs"}),
            "salinity": (DIMS, cube[..., 1], {"units": "g kg-1", "grid_mapping": "crs"}),
            "crs": ((), np.int32(0), CRS),
            "y_bnds": (("y", "nv"), np.stack([y - 5, y + 5], axis=1)),
        },
        coords={
            "time": ("time", np.arange("2020-01", "2020-07", dtype="datetime64[M]").astype("datetime64[ns]")),
            "y": ("y", y, {"units": "degrees_north", "standard_name": "latitude", "axis": "Y", "bounds": "y_bnds"}),
            "x": ("x", np.arange(10.0), {"units": "degrees_east", "standard_name": "longitude", "axis": "X"}),
            "area": (("y", "x"), np.ones((10, 10)), {"units": "m2"}),
        },
    )
    ds["time"].encoding = {"units": "days since 2000-01-01", "calendar": "standard"}
    return ds


def stored(ds: xr.Dataset, path: Path) -> str:
    ds.to_zarr(path, encoding={name: {"chunks": (2, 10, 10)} for name in ("temperature", "salinity")})
    return str(path)


def model(**changes: Any) -> GaussianMixture:
    start = {"means_init": [[1.0, 1], [8, 0], [-2, 5]], "weights_init": [0.2, 0.3, 0.5]}
    return GaussianMixture(3, random_state=0, **{**start, **changes})


def written(data: str, gm: Any, path: Path, missing: str = "raise") -> Path:
    samples = open_samples(data, variables=list(gm.feature_names_in_), missing=missing)
    write_predictions(samples, gm._components(), (LABELS, PROBA, LOG_DENSITY), str(path), missing=missing)
    return path


def plain(coordinate: xr.DataArray) -> xr.Variable:
    """It without its bounds, which have a dimension that no result has."""
    variable = coordinate.variable.copy(deep=False)
    variable.attrs.pop("bounds", None)
    return variable


def check_flags(labels: xr.DataArray, k: int) -> None:
    values = np.asarray(labels.attrs["flag_values"], dtype=np.int64)
    meanings = labels.attrs["flag_meanings"].split(" ")
    assert values.tolist() == list(range(k))
    assert len(set(meanings)) == k
    assert labels.attrs["long_name"]
    assert "units" not in labels.attrs  # CF 3.5: flags have none


def test_what_describes_other_variables_is_no_feature(blobs: Array, tmp_path: Path) -> None:
    ds = fields(blobs)
    path = stored(ds, tmp_path / "x.zarr")
    assert open_samples(ds).names == ("temperature", "salinity")
    assert open_samples(path).names == ("salinity", "temperature")  # a store has no order
    assert open_samples(xr.open_zarr(path, decode_coords="all")).n_features == 2


@pytest.mark.parametrize("decode_coords", [True, "all"])
def test_results_are_described_and_keep_their_grid_mapping(decode_coords: Any, blobs: Array, tmp_path: Path) -> None:
    ds = xr.open_zarr(stored(fields(blobs), tmp_path / "x.zarr"), decode_coords=decode_coords)
    gm = model().fit(ds)
    results = {"labels": gm.predict(ds), "proba": gm.predict_proba(ds), "log_density": gm.score_samples(ds)}
    check_flags(results["labels"], 3)
    assert results["labels"].attrs["flag_values"].dtype == results["labels"].dtype
    for name, result in results.items():
        assert result.attrs["long_name"]
        assert result.coords["crs"].attrs == CRS
        assert (result.encoding if decode_coords == "all" else result.attrs)["grid_mapping"] == "crs"
        assert name == "labels" or result.attrs["units"] == "1"
        for dim in DIMS:
            xr.testing.assert_identical(result.coords[dim].variable, plain(ds.coords[dim]))


def test_written_results_are_a_cf_dataset_in_the_place_of_the_input(blobs: Array, tmp_path: Path) -> None:
    data = stored(fields(blobs), tmp_path / "x.zarr")
    gm = model().fit(data)
    out = xr.open_zarr(written(data, gm, tmp_path / "o.zarr"), decode_coords="all").load()
    source = xr.open_zarr(data, decode_coords="all").load()
    for name in (*DIMS, "area", "crs"):
        xr.testing.assert_identical(out[name].variable, plain(source[name]))
    assert out.time.encoding["units"] == "days since 2000-01-01"
    for name in ("labels", "proba", "log_density"):
        assert out[name].dims[:3] == DIMS
        assert out[name].encoding["grid_mapping"] == "crs"
        assert "crs" not in out[name].encoding.get("coordinates", "")
    check_flags(out.labels, 3)
    assert out.labels.dtype == np.int32
    assert out.attrs["Conventions"].startswith("CF-")


def test_a_round_trip_keeps_what_a_dataset_of_results_says(blobs: Array, tmp_path: Path) -> None:
    """Through Zarr and netCDF, of what `predict` returns."""
    ds = xr.open_zarr(stored(fields(blobs), tmp_path / "x.zarr"), decode_coords="all")
    gm = model().fit(ds)
    labels = gm.predict(ds).astype("int32", keep_attrs=True)
    results = labels.to_dataset().assign(proba=gm.predict_proba(ds), log_density=gm.score_samples(ds))
    results = results.load().drop_encoding()
    results.to_zarr(tmp_path / "y.zarr")
    results.to_netcdf(tmp_path / "y.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "y.nc", engine="scipy", decode_coords="all") as netcdf:
        for found in (xr.open_zarr(tmp_path / "y.zarr", decode_coords="all"), netcdf):
            xr.testing.assert_equal(found, results)
            assert found.labels.dtype == np.int32
            check_flags(found.labels, 3)
            for name in results.variables:
                assert found[name].attrs.get("units") == results[name].attrs.get("units"), name
                assert found[name].attrs.get("long_name") == results[name].attrs.get("long_name"), name
            assert found.crs.attrs["grid_mapping_name"] == "latitude_longitude"


def test_skipped_rows_are_missing_values_of_an_integer_variable(blobs: Array, tmp_path: Path) -> None:
    data = stored(fields(blobs, hole=True), tmp_path / "x.zarr")
    gm = model(missing="drop").fit(data)
    path = written(data, gm, tmp_path / "o.zarr", missing="drop")
    raw = zarr.open_array(f"{path}/labels", mode="r")
    assert raw.dtype == np.int32
    assert raw.attrs["_FillValue"] == -1
    assert np.asarray(raw)[HOLE] == -1
    labels = xr.open_zarr(path, decode_coords="all").labels.load()
    assert np.isnan(labels[HOLE])
    assert int(labels.isnull().sum()) == 1
    lazy = gm.predict(data)
    assert lazy.dtype.kind == "i"
    assert int(lazy[HOLE]) == -1
    lazy.to_zarr(tmp_path / "y.zarr")
    found = xr.open_zarr(tmp_path / "y.zarr", decode_coords="all").labels.load()
    xr.testing.assert_equal(found, labels)


def test_an_area_that_is_never_written_is_missing_to_those_who_read_no_attributes(blobs: Array, tmp_path: Path) -> None:
    """GDAL takes the array's own fill value for nodata: component 0 must not be it."""
    data = stored(fields(blobs), tmp_path / "x.zarr")
    path = written(data, model().fit(data), tmp_path / "o.zarr")
    documents = {name: json.loads((path / name / "zarr.json").read_text()) for name in ("labels", "log_density")}
    assert documents["labels"]["fill_value"] == -1
    assert documents["log_density"]["fill_value"] == "NaN"
    assert documents["labels"]["dimension_names"] == list(DIMS)


def test_written_labels_are_known_components_again(blobs: Array, tmp_path: Path) -> None:
    """The missing value of labels is what `fit` takes for unknown, though xarray reads it as NaN."""
    data = stored(fields(blobs, hole=True), tmp_path / "x.zarr")
    gm = model(missing="drop").fit(data)
    written(data, gm, tmp_path / "o.zarr", missing="drop")
    for name in ("temperature", "salinity"):
        xr.open_zarr(data)[[name]].drop_vars("area").to_zarr(tmp_path / "o.zarr", mode="a")
    samples = open_samples(tmp_path / "o.zarr", variables=list(gm.feature_names_in_), labels="labels", missing="drop")
    again = GaussianMixture(3, missing="drop").fit(samples)
    np.testing.assert_allclose(again.means_, gm.means_, rtol=1e-3)


def test_classes_of_other_families_are_described_too(blobs: Array) -> None:
    ds = (fields(blobs)[["temperature", "salinity"]] > 2).astype(float)
    ds["temperature"][HOLE] = ds["salinity"][HOLE] = np.nan
    labels = BernoulliMixture(2, missing="skip", random_state=0).fit(ds).predict(ds)
    check_flags(labels, 2)
    assert labels.encoding["_FillValue"] == -1
    assert int(labels[HOLE]) == -1


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_results_of_a_store_of_either_format_can_be_written(blobs, tmp_path, zarr_format):
    ds = fields(blobs)
    ds.to_zarr(tmp_path / "x.zarr", zarr_format=zarr_format)  # as xarray compresses it, coordinates too
    names = ["temperature", "salinity"]
    gm = model().fit(ds[names])
    path = written(str(tmp_path / "x.zarr"), gm, tmp_path / "labels.zarr")
    found = xr.open_zarr(path)
    np.testing.assert_array_equal(found["labels"], gm.predict(ds[names]))
    opened = xr.open_zarr(tmp_path / "x.zarr", decode_coords="all")
    gm.predict(opened[names]).to_zarr(tmp_path / "again.zarr", zarr_format=5 - zarr_format)
    again = xr.open_zarr(tmp_path / "again.zarr")
    np.testing.assert_array_equal(again["labels"], found["labels"])
    for each in (found, again):
        xr.testing.assert_equal(each["time"], ds["time"])
        assert each["time"].encoding["units"] == "days since 2000-01-01"


@pytest.mark.parametrize("kind", ["NETCDF4", "NETCDF3_64BIT"])
def test_a_netcdf_file_is_its_dataset(blobs, tmp_path, kind):
    ds = fields(blobs, hole=True)
    ds.to_netcdf(tmp_path / "x.nc", format=kind, engine="netcdf4")
    gm = model(missing="drop").fit(ds)
    of_file = model(missing="drop").fit(tmp_path / "x.nc")
    assert list(of_file.feature_names_in_) == ["temperature", "salinity"]
    np.testing.assert_allclose(of_file.means_, gm.means_, rtol=1e-12)
    path = written(str(tmp_path / "x.nc"), gm, tmp_path / "labels.zarr", missing="drop")
    found = xr.open_zarr(path, decode_coords="all")
    np.testing.assert_array_equal(found["labels"].fillna(-1), gm.predict(ds))
    assert found["crs"].attrs == CRS
    for name in DIMS:
        np.testing.assert_array_equal(found[name], ds[name])


def test_a_netcdf_file_that_is_torn_is_said_to_be_one(blobs, tmp_path):
    path = tmp_path / "x.nc"
    fields(blobs).to_netcdf(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"x.nc' as NetCDF .*: pip install 'daskgmm\[netcdf\]', or see whether"):
        open_samples(path)


def test_units_stay_with_the_model_and_others_are_warned_of(blobs, tmp_path):
    ds = fields(blobs)
    path = stored(ds, tmp_path / "x.zarr")
    gm = model().fit(open_samples(path, variables=["temperature", "salinity"]))
    assert list(gm.feature_units_in_) == ["degC", "g kg-1"]
    gm.save(tmp_path / "m.zarr")
    assert xr.open_zarr(tmp_path / "m.zarr")["units"].values.tolist() == ["degC", "g kg-1"]
    again = load(tmp_path / "m.zarr")
    names = ["temperature", "salinity"]
    again.predict(ds[names])  # in the same
    kelvin = (ds[names] + 273.15).assign(salinity=ds["salinity"])
    kelvin["temperature"].attrs["units"] = "K"
    with pytest.warns(UserWarning, match="feature 'temperature' has units 'K', but had 'degC' in the fit: convert it"):
        again.predict(kelvin)
    again.predict(kelvin.drop_attrs())  # of which nothing is known
    assert not hasattr(again.fit(ds[names].drop_attrs()), "feature_units_in_")
    assert not hasattr(gm.fit(blobs[:, :2]), "feature_units_in_")  # nor are they those of an earlier fit
