"""Open any supported input as samples."""

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
from daskgmm.data.stored import LazyArray, StoredArray, guarded
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
    """Open any supported input as samples, without reading them.

    Parameters
    ----------
    data : ndarray, dask array, xarray Dataset or DataArray, zarr Array or Group, or path or URL of a store
        Or the path of a NetCDF file, which is a Dataset. Features last; in a Dataset or a group
        of named variables, one variable per feature.
    array : str, optional
        Name of an array in a group, with the features last.
    variables : sequence of str, optional
        The variables of a Dataset or group that are the features; default: all data variables, of a group in the order
        of their names.
    sample_weight : array-like or str, optional
        Of the shape of the sample dimensions, or a DataArray along some of them; or the name of an array of the group
        or Dataset, which is then no feature.
    labels : array-like of int or str, optional
        The component of each sample, -1 where it is not known; given as ``sample_weight`` is.
    missing : {"raise", "drop", "skip", "fill"}
        Meaning of chunks that a store lacks: an error; with "drop" and "skip", missing values where the fill value is
        NaN; the fill value.

    Returns
    -------
    Samples

    Raises
    ------
    ValueError
        There is nothing at the path, nothing of that name, values are not numbers, or shapes do not fit.
    TypeError
        The input is of another kind.
    OSError
        A store cannot be read.
    """
    annotations = RowAnnotations(sample_weight, labels)
    return retried(lambda: _open(data, array, variables, annotations, missing), final=PERMANENT)


def _open(
    data: Any, array: str | None, variables: Sequence[str] | None, annotations: RowAnnotations, missing: str
) -> Samples:
    annotations = RowAnnotations(*(guarded(each) if isinstance(each, zarr.Array) else each for each in annotations))
    for each in annotations:
        if isinstance(each, zarr.Array):
            _check_chunks(each, missing)
    if isinstance(data, str | os.PathLike):
        data = _open_path(data)
    if array is not None and not (isinstance(data, zarr.Group) or hasattr(data, "data_vars")):
        raise ValueError(f"there is no array {array!r}, as the data are one array themselves: give no name")
    if isinstance(data, zarr.Group | zarr.Array):
        data = guarded(data)
        if isinstance(data, zarr.Group):
            samples = _of_group(data, array, variables, annotations, missing)
        else:
            samples = _of_array(data, annotations, missing)
        return replace(samples, source=replace(samples.source, store_root=StoreRoot.of(data)))
    xr, da = sys.modules.get("xarray"), sys.modules.get("dask.array")  # whoever has such an object has imported it
    if xr is not None and isinstance(data, xr.Dataset | xr.DataArray):
        return _with_retries(_of_xarray(data, array, variables, annotations))
    check_kind(data)
    if da is not None and isinstance(data, da.Array):
        from daskgmm.data.dask import of_dask

        check_unmasked(data, "the array")
        return of_dask([data], *_features_last(data, "the array"), annotations)
    if hasattr(data, "ndim") and not hasattr(data, "__dask_graph__"):
        check_unmasked(data, "the array")
        data = np.asarray(data)
        return of_numpy([data], *_features_last(data, "the array"), annotations)
    raise TypeError(
        f"cannot read samples from {type(data).__name__}: give an array, a dask array, an xarray object "
        "or the path of a Zarr store or a NetCDF file"
    )


def _open_path(path: str | os.PathLike[str]) -> Any:
    """Open the Zarr store at a local path or URL, or the local NetCDF file as a Dataset."""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            magic = file.read(4)
        if magic in (b"CDF\x01", b"CDF\x02", b"CDF\x05", b"\x89HDF"):
            from daskgmm.data.xarray import open_netcdf

            return open_netcdf(path)
    return open_store(path)


def _of_array(array: zarr.Array[Any], annotations: RowAnnotations, missing: str) -> Samples:
    shape, n_features = _features_last(array, "the array")
    _check_chunks(array, missing)
    return _with_retries(of_zarr([array], shape, n_features, annotations))


def _of_group(
    group: zarr.Group, array: str | None, variables: Sequence[str] | None, annotations: RowAnnotations, missing: str
) -> Samples:
    """Describe the samples of a group: through xarray if its dimensions have names, as bare arrays otherwise."""
    arrays, aside = dict(group.arrays()), annotations.array_names
    available = ", ".join(sorted(name for name, member in arrays.items() if _dims(member) != [name])) or "none"
    named = [array] if array is not None else list(variables or ())
    if absent := [name for name in (*named, *aside) if name not in arrays]:
        kind = "variable" if array is None and absent[0] not in aside else "array"
        raise ValueError(f"no {kind} {absent[0]!r}: there are {available}")
    for name in aside:
        _check_chunks(arrays[name], missing)
    candidates = [name for name in arrays if name not in aside]
    if candidates and all(_has_dims(arrays[name]) for name in named or candidates):
        from daskgmm.data.xarray import feature_names

        ds = _open_dataset(
            group, [name for name, member in arrays.items() if not _has_dims(member)], annotations.labels
        )
        names = named or sorted(name for name in feature_names(ds) if name not in aside)  # a store has no order
        origins = [arrays.get(each) if isinstance(each, str) else None for each in annotations]
        annotations = annotations.resolve({name: ds[name] if name in ds else arrays[name] for name in aside})
        if not named and len(names) == 1 and ds[names[0]].ndim > 1:
            raise ValueError(
                f"{group.store_path} holds one array, {names[0]!r}, whose last dimension may hold the features or "
                "samples: name it as the array, or as the variable"
            )
        for name in names:
            _check_chunks(arrays[name], missing, ds[name].encoding.get("_FillValue", np.nan))
        return _with_retries(_of_xarray(ds, array, names, annotations), [*map(arrays.get, names), *origins])
    if not named and len(candidates) != 1:
        raise ValueError(
            f"{group.store_path} holds {len(arrays)} arrays ({available}): name one, or the variables to use"
        )
    annotations = annotations.resolve(arrays)
    if array is not None or not named:
        return _of_array(arrays[array or candidates[0]], annotations, missing)
    members = [arrays[name] for name in named]
    for name, member in zip(named, members, strict=True):
        check_real(member.dtype, f"array {name!r}")
        if member.shape != members[0].shape:
            raise ValueError(
                f"array {name!r} has shape {member.shape}, but {named[0]!r} has {members[0].shape}: "
                "name arrays of one shape, one a feature"
            )
        _check_chunks(member, missing)
    samples = _with_retries(of_zarr(members, members[0].shape, len(members), annotations))
    return replace(samples, names=tuple(named))


def _open_dataset(group: zarr.Group, dropped: list[str], labels: Any) -> Any:
    """Open a group whose dimensions have names with xarray, which applies scale, offset and missing value.

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


def _of_xarray(data: Any, array: str | None, variables: Sequence[str] | None, annotations: RowAnnotations) -> Samples:
    from daskgmm.data.xarray import feature_names, get_variable, of_dataarray, of_dataset

    if not hasattr(data, "data_vars"):
        return of_dataarray(data, annotations)
    if aside := annotations.array_names:
        annotations = annotations.resolve({name: get_variable(data, name) for name in aside})
        variables = variables or [name for name in feature_names(data) if name not in aside]
    if array is not None:
        return of_dataarray(get_variable(data, array), annotations)
    return of_dataset(data, variables, annotations)


def _with_retries(samples: Samples, origins: Iterable[zarr.Array[Any] | None] = repeat(None)) -> Samples:
    """Have failed reads of stored arrays retried; ``origins`` are the Zarr arrays that variables of xarray decode."""

    def with_retries(array: Any, origin: zarr.Array[Any] | None) -> Any:
        if isinstance(array, zarr.Array):
            return StoredArray(array, array, tuple(range(array.ndim)))
        if isinstance(array, BroadcastArray):
            return replace(array, array=with_retries(array.array, origin))
        if origin is not None and hasattr(array, "dims"):
            return StoredArray(array, origin, tuple(array.dims.index(dim) for dim in _dims(origin)))
        return LazyArray(array) if hasattr(array, "dims") and not array._in_memory else array

    source = samples.source
    *arrays, weight, labels = map(with_retries, (*source.arrays, source.weight, source.labels), origins)
    return replace(samples, source=Source(tuple(arrays), weight, labels))


def _features_last(array: Any, what: str) -> tuple[tuple[int, ...], int]:
    """Return the shape of the samples and the number of features of an array of real numbers."""
    check_real(array.dtype, what)
    if array.ndim < 2:
        raise ValueError(
            f"Expected 2D array, got {array.ndim}D array instead: the last dimension holds the features. "
            "Reshape your data either using array.reshape(-1, 1) if your data has a single feature "
            "or array.reshape(1, -1) if it contains a single sample."
        )
    return array.shape[:-1], array.shape[-1]


def _check_chunks(array: zarr.Array[Any], missing: str, absent: Any = np.nan) -> None:
    """Refuse an array that lacks chunks, unless they are meant to read as the fill value or as missing values.

    They read as missing values where ``missing`` skips or drops those, and the fill value is NaN or ``absent``.
    """
    fill = array.fill_value
    is_missing_value = fill == absent or (isinstance(fill, np.floating | float) and np.isnan(fill))
    if missing != "fill" and not (missing in ("drop", "skip") and is_missing_value):
        check_complete(array)


def _has_dims(array: zarr.Array[Any]) -> bool:
    """Whether all dimensions of an array have names."""
    return len(_dims(array)) == array.ndim


def _dims(array: zarr.Array[Any]) -> list[str]:
    """Return the names of the dimensions that have one, as Zarr v3 or xarray (v2) store them."""
    names: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    return [str(name) for name in names if name is not None]
