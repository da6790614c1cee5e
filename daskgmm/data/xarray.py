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
from daskgmm.data.checks import NO_ANNOTATIONS, RowAnnotations, check_real
from daskgmm.data.dask import of_dask
from daskgmm.data.retry import reason
from daskgmm.data.zarr import of_stored

_DESCRIBING = ("grid_mapping", "bounds", "climatology")  # CF's attributes that name such variables
# Of an encoding, what values mean. How they are stored (chunks, compressors) holds in a store of their format alone.
_MEANING = {"dtype", "units", "calendar", "scale_factor", "add_offset", "_FillValue", "missing_value", "grid_mapping"}


def open_netcdf(path: str | os.PathLike[str]) -> xr.Dataset:
    """A NetCDF file, to be read piece by piece, by whoever sees the file.

    Raises
    ------
    ValueError
        It cannot be read, or there is no package to do so.
    """
    try:
        return xr.open_dataset(path, chunks=None, decode_coords="all")
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(
            f"cannot open {os.fspath(path)!r} as NetCDF ({reason(error)}): pip install 'daskgmm[netcdf]', "
            "or see whether the file is whole"
        ) from error


def of_dataset(ds: xr.Dataset, variables: Sequence[str] | None, beside: RowAnnotations = NO_ANNOTATIONS) -> Samples:
    """Samples of a Dataset: one feature a variable, one sample a point of the dimensions they share.

    Raises
    ------
    ValueError
        A variable is missing, or they do not all have the same dimensions.
    """
    names = tuple(str(name) for name in (variables if variables is not None else features(ds)))
    if not names:
        raise ValueError("the Dataset has no data variables: the variables are the features, give it some")
    arrays = [variable(ds, name) for name in names]
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
    parts = [array.variable.transpose(*dims) for array in arrays]
    samples = _of_variables(parts, parts[0].shape, len(parts), _aligned(beside, ds, dims))
    flags = tuple(tuple(map(float, np.ravel(array.attrs.get("flag_values", ())))) for array in arrays)
    grid_mapping = _grid_mapping(arrays)
    mapped = () if grid_mapping is None else _words(grid_mapping[1])
    coords = _coords(ds, dims)
    coords |= {name: _described(ds.variables[name]) for name in mapped if name in ds and not ds[name].dims}
    return replace(
        samples,
        names=names,
        units=tuple(str(array.attrs.get("units", "")) for array in arrays),
        categories=flags,
        dims=tuple(map(str, dims)),
        coords=coords,
        grid_mapping=grid_mapping,
    )


def features(ds: xr.Dataset) -> list[str]:
    """The data variables, but for those that CF has to describe others: grid mappings and bounds."""
    said = [
        about[kind]
        for variable in ds.variables.values()
        for about in (variable.attrs, variable.encoding)
        for kind in _DESCRIBING
        if kind in about
    ]
    others = {word for text in said for word in _words(text)}
    return [str(name) for name in ds.data_vars if name not in others]


def of_dataarray(array: xr.DataArray, beside: RowAnnotations = NO_ANNOTATIONS) -> Samples:
    """Samples of a DataArray whose last dimension holds the features.

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
    samples = _of_variables([array.variable], array.shape[:-1], array.shape[-1], _aligned(beside, array, dims))
    labels = array.coords.get(array.dims[-1])
    named = labels is not None and labels.dtype.kind in "UOT"
    return replace(
        samples,
        names=tuple(map(str, labels.values)) if named and labels is not None else None,
        units=(str(array.attrs.get("units", "")),) * array.shape[-1],
        feature_dim=str(array.dims[-1]),
        dims=tuple(map(str, dims)),
        coords=_coords(array, dims),
        grid_mapping=_grid_mapping([array]),
    )


def variable(ds: xr.Dataset, name: str) -> xr.DataArray:
    """A variable of a Dataset.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    if name not in ds.variables:
        raise ValueError(f"no variable {name!r}: there are {', '.join(map(str, ds.data_vars)) or 'none'}")
    return ds[name]


def wrap(
    samples: Samples,
    array: Any,
    name: str,
    attrs: Mapping[str, Any] | None = None,
    encoding: Mapping[str, Any] | None = None,
) -> Any:
    """Give a result the dims, coords and grid mapping of the samples it belongs to, if they have any."""
    if samples.coords is None or samples.dims is None:
        return array
    extra = ("component",) if array.ndim > len(samples.dims) else ()
    result = xr.DataArray(array, coords=samples.coords, dims=(*samples.dims, *extra), name=name, attrs=attrs)
    result.encoding = dict(encoding or {})
    if samples.grid_mapping is not None:
        where, mapping = samples.grid_mapping
        getattr(result, where)["grid_mapping"] = mapping
    return result


def _grid_mapping(arrays: Sequence[xr.DataArray]) -> tuple[str, str] | None:
    """Where the first array that has a grid mapping says so, and what."""
    for array in arrays:
        for where in ("attrs", "encoding"):
            if (mapping := getattr(array, where).get("grid_mapping")) is not None:
                return where, str(mapping)
    return None


def _words(text: Any) -> list[str]:
    """Names in an attribute that names variables, perhaps as "name: variable …"."""
    return str(text).replace(":", " ").split()


def _of_variables(
    parts: Sequence[xr.Variable], shape: tuple[int, ...], n_features: int, beside: RowAnnotations
) -> Samples:
    if chunked := [part for part in parts if part.chunks is not None]:
        return of_dask([part.chunk(chunked[0].chunksizes).data for part in parts], shape, n_features, beside)
    if all(part._in_memory for part in parts):
        return of_numpy([part.values for part in parts], shape, n_features, beside)
    dims = parts[0].dims[: len(shape)]
    grids = [part.encoding.get("preferred_chunks", {}) for part in parts]  # dims in the order of storage
    shards = [dict(zip(g, p.encoding.get("shards") or (), strict=False)) for g, p in zip(grids, parts, strict=True)]
    chunks = _common(dims, grids, (1, *shape[1:]))  # a file that is not chunked: some rows at a time
    return of_stored(parts, shape, n_features, chunks, _common(dims, shards, chunks), beside)


def _common(dims: Sequence[Any], grids: Sequence[Mapping[Any, int]], otherwise: Sequence[int]) -> list[int]:
    """The largest extent along each dimension."""
    return [
        max((grid[dim] for grid in grids if dim in grid), default=extent)
        for dim, extent in zip(dims, otherwise, strict=True)
    ]


def _coords(source: xr.Dataset | xr.DataArray, dims: Sequence[Any]) -> dict[Any, Any]:
    """Those of the samples."""
    return {name: _described(c.variable) for name, c in source.coords.items() if set(c.dims) <= set(dims)}


def _described(variable: xr.Variable) -> xr.Variable:
    """As it is written beside results: with what it means, and without bounds, which have a dimension of their own."""
    found = variable.copy(deep=False)
    found.encoding = {name: value for name, value in variable.encoding.items() if name in _MEANING}
    found.attrs = {name: value for name, value in variable.attrs.items() if name not in ("bounds", "climatology")}
    return found


def _aligned(beside: RowAnnotations, samples: xr.Dataset | xr.DataArray, dims: Sequence[Any]) -> RowAnnotations:
    return RowAnnotations(*(_aligned_array(name, array, samples, dims) for name, array in beside.named))


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
    found = array.transpose(*own).variable
    if len(own) == len(dims):
        return found
    return BroadcastArray(found, tuple(map(dims.index, own)), tuple(samples.sizes[dim] for dim in dims))
