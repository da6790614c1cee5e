"""Samples in xarray objects, and results with their dims and coords.

In a Dataset the variables are the features and all dimensions are sample dimensions; in a DataArray the
last dimension holds the features.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from daskgmm.data.blocks import Samples, of_numpy
from daskgmm.data.broadcast import BroadcastArray
from daskgmm.data.checks import RowAnnotations, check_real
from daskgmm.data.dask import of_dask
from daskgmm.data.retry import reason
from daskgmm.data.zarr import of_stored

_DESCRIBING = ("grid_mapping", "bounds", "climatology")  # CF's attributes that name variables which describe others
# The entries of an encoding that give values their meaning. Others (chunks, compressors) hold for one format alone.
_MEANING = {"dtype", "units", "calendar", "scale_factor", "add_offset", "_FillValue", "missing_value", "grid_mapping"}


def open_netcdf(path: str | os.PathLike[str]) -> xr.Dataset:
    """Open a NetCDF file, which every task then reads by itself.

    Raises
    ------
    ValueError
        The file cannot be read, or no package for NetCDF is installed.
    """
    try:
        return xr.open_dataset(path, chunks=None, decode_coords="all")
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(
            f"cannot open {os.fspath(path)!r} as NetCDF ({reason(error)}): pip install 'daskgmm[netcdf]', "
            "or see whether the file is whole"
        ) from error


def of_dataset(ds: xr.Dataset, variables: Sequence[str] | None, annotations: RowAnnotations) -> Samples:
    """Describe the samples of a Dataset: one feature per variable, one sample per point of their shared dimensions.

    Raises
    ------
    ValueError
        A variable is missing, or they do not all have the same dimensions.
    """
    names = tuple(str(name) for name in (variables if variables is not None else feature_names(ds)))
    if not names:
        raise ValueError("the Dataset has no data variables: the variables are the features, give it some")
    arrays = [get_variable(ds, name) for name in names]
    dims = arrays[0].dims
    for name, array in zip(names, arrays, strict=True):
        check_real(array.dtype, f"variable {name!r}")
        if set(array.dims) != set(dims):
            raise ValueError(
                f"variable {name!r} has dimensions {array.dims}, but {names[0]!r} has {dims}: "
                "select variables that share all dimensions, or broadcast them"
            )
    if not dims:
        raise ValueError("the variables have no dimensions, so there is one sample: give arrays")
    features = [array.variable.transpose(*dims) for array in arrays]
    samples = _of_variables(features, features[0].shape, len(features), _aligned(annotations, ds, dims))
    grid_mapping = _grid_mapping(arrays)
    coords = _sample_coords(ds, dims)
    mapped = () if grid_mapping is None else _names_in(grid_mapping[1])
    coords |= {name: _for_output(ds.variables[name]) for name in mapped if name in ds and not ds[name].dims}
    return replace(
        samples,
        names=names,
        units=tuple(str(array.attrs.get("units", "")) for array in arrays),
        categories=tuple(tuple(map(float, np.ravel(array.attrs.get("flag_values", ())))) for array in arrays),
        dims=tuple(map(str, dims)),
        coords=coords,
        grid_mapping=grid_mapping,
    )


def feature_names(ds: xr.Dataset) -> list[str]:
    """Return the names of the data variables, without grid mappings and bounds, which in CF describe others."""
    describing = {
        name
        for variable in ds.variables.values()
        for entries in (variable.attrs, variable.encoding)
        for kind in _DESCRIBING
        if kind in entries
        for name in _names_in(entries[kind])
    }
    return [str(name) for name in ds.data_vars if name not in describing]


def of_dataarray(array: xr.DataArray, annotations: RowAnnotations) -> Samples:
    """Describe the samples of a DataArray whose last dimension holds the features.

    Raises
    ------
    ValueError
        It has fewer than two dimensions.
    """
    if array.ndim < 2:
        raise ValueError(
            f"a DataArray of dimensions {array.dims} has no features: its last dimension holds them; "
            "for fields of one variable pass array.to_dataset(name=…)"
        )
    check_real(array.dtype, "the DataArray")
    dims = array.dims[:-1]
    samples = _of_variables([array.variable], array.shape[:-1], array.shape[-1], _aligned(annotations, array, dims))
    names = array.coords.get(array.dims[-1])
    return replace(
        samples,
        names=tuple(map(str, names.values)) if names is not None and names.dtype.kind in "UOT" else None,
        units=(str(array.attrs.get("units", "")),) * array.shape[-1],
        feature_dim=str(array.dims[-1]),
        dims=tuple(map(str, dims)),
        coords=_sample_coords(array, dims),
        grid_mapping=_grid_mapping([array]),
    )


def get_variable(ds: xr.Dataset, name: str) -> xr.DataArray:
    """Return a variable of a Dataset.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    if name not in ds.variables:
        raise ValueError(f"no variable {name!r}: there are {', '.join(map(str, ds.data_vars)) or 'none'}")
    return ds[name]


def wrap(samples: Samples, array: Any, name: str, attrs: Mapping[str, Any], encoding: Mapping[str, Any]) -> Any:
    """Give a result the dims, coords and grid mapping of the samples it belongs to, if they have any."""
    if samples.coords is None or samples.dims is None:
        return array
    extra = ("component",) if array.ndim > len(samples.dims) else ()
    result = xr.DataArray(array, coords=samples.coords, dims=(*samples.dims, *extra), name=name, attrs=attrs)
    result.encoding = dict(encoding)
    if samples.grid_mapping is not None:
        where, mapping = samples.grid_mapping
        getattr(result, where)["grid_mapping"] = mapping
    return result


def _of_variables(
    features: Sequence[xr.Variable], shape: tuple[int, ...], n_features: int, annotations: RowAnnotations
) -> Samples:
    """Describe samples in variables of the same dimensions, by how the variables are held."""
    if chunked := [feature for feature in features if feature.chunks is not None]:
        arrays = [feature.chunk(chunked[0].chunksizes).data for feature in features]
        return of_dask(arrays, shape, n_features, annotations)
    if all(feature._in_memory for feature in features):
        return of_numpy([feature.values for feature in features], shape, n_features, annotations)
    dims = features[0].dims[: len(shape)]
    grids = [f.encoding.get("preferred_chunks", {}) for f in features]  # dims in the order of storage
    shards = [dict(zip(g, f.encoding.get("shards") or (), strict=False)) for g, f in zip(grids, features, strict=True)]
    chunks = _largest(dims, grids, (1, *shape[1:]))  # a file that is not chunked: some rows at a time
    return of_stored(features, shape, n_features, chunks, _largest(dims, shards, chunks), annotations)


def _largest(dims: Sequence[Any], grids: Sequence[Mapping[Any, int]], otherwise: Sequence[int]) -> list[int]:
    """Return the largest extent along each dimension."""
    return [max(grid.get(dim, 0) for grid in grids) or extent for dim, extent in zip(dims, otherwise, strict=True)]


def _grid_mapping(arrays: Sequence[xr.DataArray]) -> tuple[str, str] | None:
    """Return where the first array with a grid mapping has it, "attrs" or "encoding", and its value."""
    for array in arrays:
        for where in ("attrs", "encoding"):
            if (mapping := getattr(array, where).get("grid_mapping")) is not None:
                return where, str(mapping)
    return None


def _names_in(text: Any) -> list[str]:
    """Split an attribute that names variables, perhaps as "name: variable …"."""
    return str(text).replace(":", " ").split()


def _sample_coords(source: xr.Dataset | xr.DataArray, dims: Sequence[Any]) -> dict[Any, Any]:
    return {name: _for_output(c.variable) for name, c in source.coords.items() if set(c.dims) <= set(dims)}


def _for_output(variable: xr.Variable) -> xr.Variable:
    """Copy a coordinate for results: with its meaning, and without bounds, which have a dimension of their own."""
    copy = variable.copy(deep=False)
    copy.encoding = {name: value for name, value in variable.encoding.items() if name in _MEANING}
    copy.attrs = {name: value for name, value in variable.attrs.items() if name not in ("bounds", "climatology")}
    return copy


def _aligned(annotations: RowAnnotations, samples: xr.Dataset | xr.DataArray, dims: Sequence[Any]) -> RowAnnotations:
    """Bring annotations that are DataArrays to the samples' order of dimensions, and refuse other coordinates."""
    return RowAnnotations(*(_aligned_array(name, array, samples, dims) for name, array in annotations.named))


def _aligned_array(name: str, array: Any, samples: xr.Dataset | xr.DataArray, dims: Sequence[Any]) -> Any:
    if not isinstance(array, xr.DataArray):
        return array
    if not set(array.dims) <= set(dims):
        one = "label" if name == "labels" else "weight"
        raise ValueError(
            f"{name} has dimensions {array.dims}, expected {dims} or some of them: give one {one} a sample"
        )
    try:
        xr.align(samples, array, join="exact", copy=False)
    except ValueError as error:
        raise ValueError(f"{name} has other coordinates than the samples: give it theirs (xarray.align)") from error
    own = [dim for dim in dims if dim in array.dims]
    variable = array.transpose(*own).variable
    if len(own) == len(dims):
        return variable
    return BroadcastArray(variable, tuple(map(dims.index, own)), tuple(samples.sizes[dim] for dim in dims))
