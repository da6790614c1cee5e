"""Samples in xarray objects, and results with their dims and coords.

In a Dataset the variables are the features and all dimensions are sample dimensions; in a DataArray the
last dimension holds the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from daskgmm.data.blocks import Samples, of_numpy
from daskgmm.data.dask import of_dask
from daskgmm.data.zarr import of_stored


def of_dataset(ds: xr.Dataset, variables: Sequence[str] | None, weight: Any = None) -> Samples:
    """Samples of a Dataset: one feature a variable, one sample a point of the dimensions they share.

    Raises
    ------
    ValueError
        A variable is missing, or they do not all have the same dimensions.
    """
    names = tuple(str(name) for name in (variables if variables is not None else ds.data_vars))
    if absent := [name for name in names if name not in ds.variables]:
        raise ValueError(f"no variable {absent[0]!r}: there are {', '.join(map(str, ds.data_vars)) or 'none'}")
    if not names:
        raise ValueError("the Dataset has no data variables: the variables are the features, give it some")
    dims = ds[names[0]].dims
    for name in names:
        if set(ds[name].dims) != set(dims):
            raise ValueError(
                f"variable {name!r} has dimensions {ds[name].dims}, but {names[0]!r} has {dims}: "
                "select variables that share all dimensions, or broadcast them"
            )
    if not dims:
        raise ValueError("the variables have no dimensions, so there is one sample: give arrays")
    parts = [ds[name].variable.transpose(*dims) for name in names]
    samples = _of_variables(parts, parts[0].shape, len(parts), _weight(weight, dims))
    return replace(samples, names=names, dims=tuple(map(str, dims)), coords=_coords(ds, dims))


def of_dataarray(array: xr.DataArray, weight: Any = None) -> Samples:
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
    dims = array.dims[:-1]
    samples = _of_variables([array.variable], array.shape[:-1], array.shape[-1], _weight(weight, dims))
    labels = array.coords.get(array.dims[-1])
    named = labels is not None and labels.dtype.kind in "UOT"
    return replace(
        samples,
        names=tuple(map(str, labels.values)) if named and labels is not None else None,
        dims=tuple(map(str, dims)),
        coords=_coords(array, dims),
    )


def wrap(samples: Samples, array: Any, name: str) -> Any:
    """Give a result the dims and coords of the samples it belongs to, if they have any."""
    if samples.coords is None or samples.dims is None:
        return array
    extra = ("component",) if array.ndim > len(samples.dims) else ()
    return xr.DataArray(array, coords=samples.coords, dims=(*samples.dims, *extra), name=name)


def _of_variables(parts: Sequence[xr.Variable], shape: tuple[int, ...], n_features: int, weight: Any) -> Samples:
    if any(part.chunks is not None for part in parts):
        return of_dask([part.chunk().data for part in parts], shape, n_features, weight)
    if all(part._in_memory for part in parts):
        return of_numpy([part.values for part in parts], shape, n_features, weight)
    ndim = len(shape)
    preferred = [part.encoding.get("preferred_chunks", {}) for part in parts]
    dims = parts[0].dims[:ndim]
    chunks = [max(grid.get(dim, size) for grid in preferred) for dim, size in zip(dims, shape, strict=True)]
    sharded = [shards[:ndim] for part in parts if (shards := part.encoding.get("shards")) is not None]
    return of_stored(parts, shape, n_features, chunks, np.max([chunks, *sharded], axis=0).tolist(), weight)


def _coords(source: xr.Dataset | xr.DataArray, dims: Sequence[Any]) -> dict[Any, Any]:
    return {name: c.variable for name, c in source.coords.items() if set(c.dims) <= set(dims)}


def _weight(weight: Any, dims: Sequence[Any]) -> Any:
    return weight.transpose(*dims).data if isinstance(weight, xr.DataArray) else weight
