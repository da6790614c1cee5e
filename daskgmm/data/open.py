"""One door for every kind of input."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zarr

from daskgmm.data.blocks import Samples, check_real, of_numpy
from daskgmm.data.zarr import Home, check_complete, of_zarr, open_store


def open_samples(
    data: Any,
    *,
    array: str | None = None,
    variables: Sequence[str] | None = None,
    sample_weight: Any = None,
    missing: str = "raise",
) -> Samples:
    """See any supported input as samples.

    Parameters
    ----------
    data : ndarray, dask array, xarray Dataset or DataArray, zarr Array or Group, or path or URL of a store
        Features last; in a Dataset or a group of named variables, one variable a feature.
    array : str, optional
        Name of an array in a group, with the features last.
    variables : sequence of str, optional
        The variables of a Dataset or group that are the features; default: all data variables.
    sample_weight : array-like, optional
        Of the shape of the sample dimensions.
    missing : {"raise", "drop", "fill"}
        What chunks that a store lacks mean: an error; missing values where the fill value is NaN; the fill value.

    Raises
    ------
    ValueError
        Nothing there, nothing of that name, not numbers, or shapes that do not fit.
    TypeError
        An input of another kind.
    """
    samples = _open(data, array, variables, sample_weight, missing)
    if samples.n_features == 0:
        raise ValueError(f"0 feature(s) (shape={(*samples.shape, 0)}) while a minimum of 1 is required.")
    if samples.n == 0:
        raise ValueError(f"Found array with 0 sample(s) (shape={(*samples.shape, samples.n_features)}): give it some")
    return samples


def _open(data: Any, array: str | None, variables: Sequence[str] | None, weight: Any, missing: str) -> Samples:
    if isinstance(data, str | os.PathLike):
        data = open_store(data)
    if isinstance(data, zarr.Group | zarr.Array):
        samples = (
            _of_group(data, array, variables, weight, missing)
            if isinstance(data, zarr.Group)
            else _of_array(data, weight, missing)
        )
        return replace(samples, source=replace(samples.source, home=Home.of(data)))
    xr = sys.modules.get("xarray")  # whoever has an xarray object has imported it
    if xr is not None and isinstance(data, xr.Dataset | xr.DataArray):
        return _of_xarray(data, array, variables, weight)
    if hasattr(data, "__dask_graph__"):
        import dask.array as da

        if isinstance(data, da.Array):
            from daskgmm.data.dask import of_dask

            return of_dask([data], *_features_last(data, "the data"), weight)
    elif hasattr(data, "ndim"):
        data = np.asarray(data)
        return of_numpy([data], *_features_last(data, "the data"), weight)
    raise TypeError(
        f"cannot read samples from {type(data).__name__}: give an array, a dask array, an xarray object "
        "or the path of a Zarr store"
    )


def _of_array(array: zarr.Array[Any], weight: Any, missing: str) -> Samples:
    shape, n_features = _features_last(array, f"array {array.name or '/'!r}")
    _check_chunks(array, missing)
    return of_zarr([array], shape, n_features, weight)


def _of_group(
    group: zarr.Group, array: str | None, variables: Sequence[str] | None, weight: Any, missing: str
) -> Samples:
    arrays = dict(group.arrays())
    there = f"in {group.store_path} there are {', '.join(sorted(arrays)) or 'none'}"
    named = [array] if array is not None else [*(variables or ())]
    if absent := [name for name in named if name not in arrays]:
        raise ValueError(f"no array {absent[0]!r}: {there}")
    unlabelled = [name for name, member in arrays.items() if member.ndim and not _has_dims(member)]
    if any(member.ndim and name not in unlabelled for name, member in arrays.items()):
        import xarray as xr

        # Read through xarray, which knows the scale, offset and missing value that a convention stores beside them.
        ds = xr.open_zarr(
            group.store, group=group.path or None, chunks=None, consolidated=False, drop_variables=unlabelled
        )
        if not named and len(ds.data_vars) == 1 and next(iter(ds.data_vars.values())).ndim > 1:
            raise ValueError(
                f"{group.store_path} holds one array, {next(iter(ds.data_vars))!r}, whose last dimension may hold the "
                "features or samples: name it as the array, or as the variable"
            )
        if not set(named) & set(unlabelled):
            for name in named or ds.data_vars:
                _check_chunks(arrays[str(name)], missing, ds[name].encoding.get("_FillValue"))
            return _of_xarray(ds, array, variables, weight)
    if not named and len(arrays) == 1:
        named = array, = arrays
    if array is not None:
        return _of_array(arrays[array], weight, missing)
    if not named:
        raise ValueError(f"which array of the store holds the samples? {there}: name one, or the variables to use")
    members = [arrays[name] for name in named]
    for name, member in zip(named, members, strict=True):
        check_real(member.dtype, f"array {name!r}")
        if member.shape != members[0].shape:
            raise ValueError(
                f"array {name!r} has shape {member.shape}, but {named[0]!r} has {members[0].shape}: "
                "name arrays of one shape, one a feature"
            )
        _check_chunks(member, missing)
    return replace(of_zarr(members, members[0].shape, len(members), weight), names=tuple(named))


def _of_xarray(data: Any, array: str | None, variables: Sequence[str] | None, weight: Any) -> Samples:
    from daskgmm.data.xarray import of_dataarray, of_dataset, variable

    if hasattr(data, "data_vars") and array is None:
        return of_dataset(data, variables, weight)
    return of_dataarray(data if array is None or not hasattr(data, "data_vars") else variable(data, array), weight)


def _features_last(array: Any, what: str) -> tuple[tuple[int, ...], int]:
    """Shape of the samples, and the number of features, of an array of numbers."""
    check_real(array.dtype, what)
    if array.ndim < 2:
        raise ValueError(
            f"Expected 2D array, got {array.ndim}D array instead: the last dimension holds the features. "
            "Reshape your data either using array.reshape(-1, 1) if your data has a single feature "
            "or array.reshape(1, -1) if it contains a single sample."
        )
    return array.shape[:-1], array.shape[-1]


def _check_chunks(array: zarr.Array[Any], missing: str, absent: Any = None) -> None:
    """Refuse an array that lacks chunks, unless they read as what is meant: ``absent`` or NaN where that is dropped."""
    fill = array.fill_value
    dropped = missing == "drop" and (fill == absent or (isinstance(fill, np.floating | float) and np.isnan(fill)))
    if missing != "fill" and not dropped:
        check_complete(array)


def _has_dims(array: zarr.Array[Any]) -> bool:
    """Have its dimensions names, as Zarr v3 or xarray (v2) store them?"""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return bool(names) and None not in names
