"""One door for every kind of input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np
import zarr

from daskgmm.data.blocks import Samples, Source, of_numpy
from daskgmm.data.broadcast import BroadcastArray
from daskgmm.data.checks import RowAnnotations, check_kind, check_real, check_unmasked
from daskgmm.data.retry import PERMANENT, retried
from daskgmm.data.stored import Lazy, Stored, guarded
from daskgmm.data.zarr import StoreRoot, check_complete, of_zarr, open_store


def open_samples(
    data: Any,
    *,
    array: str | None = None,
    variables: Sequence[str] | None = None,
    sample_weight: Any = None,
    labels: Any = None,
    missing: str = "raise",
) -> Samples:
    """See any supported input as samples.

    Parameters
    ----------
    data : ndarray, dask array, xarray Dataset or DataArray, zarr Array or Group, or path or URL of a store
        Or the path of a NetCDF file, which is a Dataset. Features last; in a Dataset or a group
        of named variables, one variable a feature.
    array : str, optional
        Name of an array in a group, with the features last.
    variables : sequence of str, optional
        The variables of a Dataset or group that are the features; default: all data variables, of a group in the order
        of their names.
    sample_weight : array-like or str, optional
        Of the shape of the sample dimensions, or a DataArray along some of them; or which array of a group or Dataset
        that is, and so no feature.
    labels : array-like of int or str, optional
        Of the same shape: the component of each sample, -1 where it is not known.
    missing : {"raise", "drop", "skip", "fill"}
        What chunks that a store lacks mean: an error; missing values where the fill value is NaN; the fill value.

    Raises
    ------
    ValueError
        Nothing there, nothing of that name, not numbers, or shapes that do not fit.
    TypeError
        An input of another kind.
    """
    beside = RowAnnotations(sample_weight, labels)
    return retried(lambda: _open(data, array, variables, beside, missing), final=PERMANENT)


def _open(
    data: Any, array: str | None, variables: Sequence[str] | None, beside: RowAnnotations, missing: str
) -> Samples:
    beside = RowAnnotations(*(guarded(each) if isinstance(each, zarr.Array) else each for each in beside))
    for each in beside:
        if isinstance(each, zarr.Array):
            _check_chunks(each, missing)
    if isinstance(data, str | os.PathLike):
        data = _open_path(data)
    if array is not None and not (isinstance(data, zarr.Group) or hasattr(data, "data_vars")):
        raise ValueError(f"there is no array {array!r}, as the data are one array themselves: give no name")
    if isinstance(data, zarr.Group | zarr.Array):
        data = guarded(data)
        samples = (
            _of_group(data, array, variables, beside, missing)
            if isinstance(data, zarr.Group)
            else _of_array(data, beside, missing)
        )
        return replace(samples, source=replace(_stored(samples.source), home=StoreRoot.of(data)))
    xr = sys.modules.get("xarray")  # whoever has an xarray object has imported it
    if xr is not None and isinstance(data, xr.Dataset | xr.DataArray):
        samples = _of_xarray(data, array, variables, beside)
        return replace(samples, source=_stored(samples.source))
    check_kind(data)
    if hasattr(data, "__dask_graph__"):
        import dask.array as da

        if isinstance(data, da.Array):
            from daskgmm.data.dask import of_dask

            check_unmasked(data, "the array")
            return of_dask([data], *_features_last(data, "the array"), beside)
    elif hasattr(data, "ndim"):
        check_unmasked(data, "the array")
        data = np.asarray(data)
        return of_numpy([data], *_features_last(data, "the array"), beside)
    raise TypeError(
        f"cannot read samples from {type(data).__name__}: give an array, a dask array, an xarray object "
        "or the path of a Zarr store or a NetCDF file"
    )


def _open_path(path: str | os.PathLike[str]) -> Any:
    """What is at a local path or URL: an array or a group of a Zarr store, or the Dataset of a NetCDF file."""
    if _is_netcdf(path):
        from daskgmm.data.xarray import open_netcdf

        return open_netcdf(path)
    return open_store(path)


def _is_netcdf(path: str | os.PathLike[str]) -> bool:
    """Is it a local file in a format of NetCDF's?"""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(4) in (b"CDF\x01", b"CDF\x02", b"CDF\x05", b"\x89HDF")


def _of_array(array: zarr.Array[Any], beside: RowAnnotations, missing: str) -> Samples:
    shape, n_features = _features_last(array, "the array")
    _check_chunks(array, missing)
    return of_zarr([array], shape, n_features, beside)


def _of_group(
    group: zarr.Group, array: str | None, variables: Sequence[str] | None, beside: RowAnnotations, missing: str
) -> Samples:
    arrays, aside = dict(group.arrays()), beside.names
    there = ", ".join(sorted(name for name, member in arrays.items() if _dims(member) != [name])) or "none"
    named = [array] if array is not None else list(variables or ())
    if absent := [name for name in (*named, *aside) if name not in arrays]:
        kind = "variable" if array is None and absent[0] not in aside else "array"
        raise ValueError(f"no {kind} {absent[0]!r}: there are {there}")
    for name in aside:
        _check_chunks(arrays[name], missing)
    others = [name for name in arrays if name not in aside]
    if others and all(_labelled(arrays[name]) for name in named or others):
        from daskgmm.data.xarray import features

        ds = _dataset(group, [name for name, member in arrays.items() if not _labelled(member)], beside.labels)
        names = named or sorted(name for name in features(ds) if name not in aside)  # a store has no order
        origins = [arrays.get(each) if isinstance(each, str) else None for each in beside]
        beside = beside.found({name: ds[name] if name in ds else arrays[name] for name in aside})
        if not named and len(names) == 1 and ds[names[0]].ndim > 1:
            raise ValueError(
                f"{group.store_path} holds one array, {names[0]!r}, whose last dimension may hold the features or "
                "samples: name it as the array, or as the variable"
            )
        for name in names:
            _check_chunks(arrays[name], missing, ds[name].encoding.get("_FillValue", np.nan))
        samples = _of_xarray(ds, array, names, beside)
        return replace(samples, source=_stored(samples.source, [*map(arrays.get, names), *origins]))
    if not named and len(others) != 1:
        raise ValueError(f"{group.store_path} holds {len(arrays)} arrays ({there}): name one, or the variables to use")
    beside = beside.found(arrays)
    if array is not None or not named:
        return _of_array(arrays[array or others[0]], beside, missing)
    members = [arrays[name] for name in named]
    for name, member in zip(named, members, strict=True):
        check_real(member.dtype, f"array {name!r}")
        if member.shape != members[0].shape:
            raise ValueError(
                f"array {name!r} has shape {member.shape}, but {named[0]!r} has {members[0].shape}: "
                "name arrays of one shape, one a feature"
            )
        _check_chunks(member, missing)
    return replace(of_zarr(members, members[0].shape, len(members), beside), names=tuple(named))


def _dataset(group: zarr.Group, dropped: list[str], labels: Any) -> Any:
    """A labelled group as xarray reads it: with the scale, offset and missing value that stand in the attributes.

    Labels keep the -1 that `predict` writes as their missing value.
    """
    import xarray as xr

    return xr.open_zarr(
        group.store,
        group=group.path or None,
        chunks=None,
        consolidated=False,
        drop_variables=dropped,
        decode_coords="all",
        mask_and_scale={labels: False} if isinstance(labels, str) else True,
    )


def _of_xarray(data: Any, array: str | None, variables: Sequence[str] | None, beside: RowAnnotations) -> Samples:
    from daskgmm.data.xarray import features, of_dataarray, of_dataset, variable

    if not hasattr(data, "data_vars"):
        return of_dataarray(data, beside)
    if aside := beside.names:
        beside = beside.found({name: variable(data, name) for name in aside})
        variables = variables or [name for name in features(data) if name not in aside]
    return of_dataset(data, variables, beside) if array is None else of_dataarray(variable(data, array), beside)


def _stored(source: Source, origins: Iterable[zarr.Array[Any] | None] = repeat(None)) -> Source:
    """A source that reads again what fails; of variables of xarray the origins are the arrays that they decode."""

    def stored(array: Any, origin: zarr.Array[Any] | None) -> Any:
        if isinstance(array, zarr.Array):
            return Stored(array, array, tuple(range(array.ndim)))
        if isinstance(array, BroadcastArray):
            return replace(array, array=stored(array.array, origin))
        if origin is not None and hasattr(array, "dims"):
            return Stored(array, origin, tuple(array.dims.index(dim) for dim in _dims(origin)))
        return Lazy(array) if hasattr(array, "dims") and not array._in_memory else array

    *arrays, weight, labels = map(stored, (*source.arrays, source.weight, source.labels), origins)
    return Source(tuple(arrays), weight, labels)


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


def _check_chunks(array: zarr.Array[Any], missing: str, absent: Any = np.nan) -> None:
    """Refuse an array that lacks chunks, unless they read as what is meant: ``absent`` or NaN where that is dropped."""
    fill = array.fill_value
    dropped = missing in ("drop", "skip") and (
        fill == absent or (isinstance(fill, np.floating | float) and np.isnan(fill))
    )
    if missing != "fill" and not dropped:
        check_complete(array)


def _labelled(array: zarr.Array[Any]) -> bool:
    return len(_dims(array)) == array.ndim


def _dims(array: zarr.Array[Any]) -> list[str]:
    """The names of its dimensions that have one, as Zarr v3 or xarray (v2) store them."""
    names: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    return [str(name) for name in names if name is not None]
