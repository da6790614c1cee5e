"""One door for every kind of input."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zarr

from daskgmm.data.blocks import Samples, of_numpy
from daskgmm.data.zarr import check_complete, of_zarr, open_store


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
    if samples.dtype.kind not in "biuf":
        raise ValueError(
            f"the data have dtype {samples.dtype}, but a mixture needs real numbers: "
            + ("fit the real and imaginary parts as features" if samples.dtype.kind == "c" else "convert them first")
        )
    if sample_weight is not None and np.shape(samples.source.weight) != samples.shape:
        raise ValueError(
            f"sample_weight.shape == {np.shape(samples.source.weight)}, expected {samples.shape}: one weight a sample"
        )
    return samples


def _open(data: Any, array: str | None, variables: Sequence[str] | None, weight: Any, missing: str) -> Samples:
    if isinstance(data, str | os.PathLike):
        data = open_store(data)
    if isinstance(data, zarr.Group):
        data = _member(data, array, variables, missing)
    xr = sys.modules.get("xarray")  # whoever has an xarray object has imported it
    if xr is not None and isinstance(data, xr.Dataset | xr.DataArray):
        from daskgmm.data.xarray import of_dataarray, of_dataset

        if isinstance(data, xr.Dataset):
            return of_dataset(data, variables, weight)
        return of_dataarray(data, weight)
    parts = list(data) if isinstance(data, tuple) else [data]
    if not all(hasattr(part, "ndim") for part in parts):
        raise TypeError(
            f"cannot read samples from {type(data).__name__}: give an array, a dask array, an xarray object "
            "or the path of a Zarr store"
        )
    names = tuple(variables) if variables and len(parts) == len(variables) else None
    if names is not None:
        shape, n_features = parts[0].shape, len(parts)
    elif parts[0].ndim < 2:
        raise ValueError(
            f"Expected 2D array, got {parts[0].ndim}D array instead: the last dimension holds the features. "
            "Reshape your data either using array.reshape(-1, 1) if your data has a single feature "
            "or array.reshape(1, -1) if it contains a single sample."
        )
    else:
        shape, n_features = parts[0].shape[:-1], parts[0].shape[-1]
    if isinstance(parts[0], zarr.Array):
        if missing != "fill":
            for part in parts:
                _check(part, missing)
        return replace(of_zarr(parts, shape, n_features, weight), names=names)
    if hasattr(parts[0], "__dask_graph__"):
        from daskgmm.data.dask import of_dask

        return of_dask(parts, shape, n_features, weight)
    return of_numpy([np.asarray(part) for part in parts], shape, n_features, weight)


def _check(array: zarr.Array[Any], missing: str) -> None:
    fill = array.fill_value
    absent_is_nan = isinstance(fill, np.floating | float) and np.isnan(fill)
    if not (missing == "drop" and absent_is_nan):
        check_complete(array)


def _member(group: zarr.Group, array: str | None, variables: Sequence[str] | None, missing: str) -> Any:
    """What to read of a group: an array, a tuple of arrays, or an xarray Dataset."""
    arrays = dict(group.arrays())
    names = ", ".join(sorted(arrays)) or "none"
    if array is not None:
        if array not in arrays:
            raise ValueError(f"no array {array!r} in {group.store_path}: there are {names}")
        return arrays[array]
    labelled = {name: _dims(member) for name, member in arrays.items()}
    if any(labelled.values()):
        import xarray as xr

        ds = xr.open_zarr(group.store, group=group.path or None, chunks=None)
        if variables is None and len(ds.data_vars) == 1 and next(iter(ds.data_vars.values())).ndim > 1:
            raise ValueError(
                f"{group.store_path} holds one array ({names}), whose last dimension may hold the features or "
                "samples: name it as the array, or as the variable"
            )
        if missing != "fill":
            for name in variables if variables is not None else ds.data_vars:
                if name in arrays:
                    _check(arrays[str(name)], missing)
        return ds
    if variables is not None:
        if absent := [name for name in variables if name not in arrays]:
            raise ValueError(f"no variable {absent[0]!r} in {group.store_path}: there are {names}")
        return tuple(arrays[name] for name in variables)
    if len(arrays) != 1:
        raise ValueError(f"{group.store_path} holds several arrays ({names}): name one, or the variables to use")
    return next(iter(arrays.values()))


def _dims(array: zarr.Array[Any]) -> Any:
    """Names of an array's dimensions, as Zarr v3 or xarray (v2) store them."""
    return getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
