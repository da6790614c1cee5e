"""Fitted models as Zarr groups that xarray opens.

Reading one runs nothing that it contains, and ends in a model that is valid or in an error that says why not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from zarr.abc.store import Store

from daskgmm.data.retry import StoreUnavailable, raise_as, reason
from daskgmm.data.zarr import open_store, store_at
from daskgmm.families.prior import Prior
from daskgmm.storage.groups import ATTRIBUTE, METADATA, checked_names, write_group
from daskgmm.storage.safe_read import fetch, parse_object, read_arrays
from daskgmm.urls import presentable

SCHEMA = 2  # from 2 on with a checksum
_NOT_SAVED = {  # parameters of the way to a fit, which say nothing of its result
    *("weights_init", "means_init", "precisions_init", "warm_start"),
    *("verbose", "verbose_interval", "persist", "checkpoint", "callbacks"),
}

_FIT = {"converged": bool, "n_iter": int, "n_passes": int, "n_samples": int, "lower_bound": float}


def to_dataset(model: Any) -> xr.Dataset:
    """Return the fitted parameters as labelled arrays, with the estimator's parameters and the fit as attributes."""
    k, d = len(model.weights_), model.n_features_in_
    features = np.array([str(name) for name in getattr(model, "feature_names_in_", range(d))], dtype=object)
    saved = {name: value for name, value in model.get_params(deep=False).items() if name not in _NOT_SAVED}
    seed = saved["random_state"]
    saved["random_state"] = int(seed) if isinstance(seed, int | np.integer) else None
    fit = {name: kind(getattr(model, f"{name}_")) for name, kind in _FIT.items()} | model._extra_state()
    variables = {name: (dims, np.asarray(getattr(model, f"{name}_"))) for name, dims in model._state_dims().items()}
    ds = xr.Dataset(
        {
            "weights": ("component", model.weights_, {"long_name": "mixing weight"}),
            **variables,
            "lower_bounds": ("iteration", model.lower_bounds_, {"long_name": f"{model._objective()} per sample"}),
        },
        coords={
            "component": np.arange(k),
            "feature": features,
            "iteration": np.arange(1, len(model.lower_bounds_) + 1),
        },
        attrs={
            "title": f"{model._kind()} mixture of {k} components in {d} features",
            "family": type(model).__name__,
            "named_features": int(hasattr(model, "feature_names_in_")),
            "params": json.dumps(saved, default=_to_json),
            "fit": json.dumps(fit),
            "source": f"daskgmm {version('daskgmm')}",
        },
    )
    if hasattr(model, "feature_units_in_"):
        ds["units"] = "feature", np.array(list(map(str, model.feature_units_in_)), dtype=object)
    if "level" in ds.dims:
        ds = ds.assign_coords(level=("level", np.array(columns(model), dtype=object)))
    return ds.assign_coords(feature_=("feature_", features)) if "feature_" in ds.dims else ds


def columns(model: Any) -> list[str]:
    """Return a name for each mean of a component: that of its feature, or of its level of a categorical feature."""
    names = [str(name) for name in getattr(model, "feature_names_in_", range(model.n_features_in_))]
    if not hasattr(model, "categories_"):
        return names
    return [
        f"{name}={level:g}" if levels.dtype.kind == "f" else f"{name}={level}"
        for name, levels in zip(names, model.categories_, strict=True)
        for level in levels
    ]


def params(ds: xr.Dataset, known: Iterable[str]) -> dict[str, Any]:
    """Return the parameters of the estimator that was saved.

    Raises
    ------
    ValueError
        One is not among the ``known``, or has a value that JSON does not give a parameter.
    """
    found = parse_object(ds.attrs["params"], finite=True)
    for name, value in found.items():
        if name not in known or name in _NOT_SAVED:
            raise ValueError(f"{name!r} is not a parameter that is kept")
        if name == "prior" and isinstance(value, dict):
            found[name] = Prior(**{key: _checked_value(key, each) for key, each in value.items()})
        else:
            _checked_value(name, value)
    return found


def _checked_value(name: str, value: Any) -> Any:
    """Return a scalar, or numbers in lists."""
    if isinstance(value, list):
        np.asarray(value, dtype=np.float64)
    elif isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}")
    return value


def restore(model: Any, ds: xr.Dataset) -> None:
    """Give a model the fitted attributes that `to_dataset` wrote.

    Raises
    ------
    ValueError
        They are not all there, not of the shapes and kinds that they must be, or not finite.
    """
    model.n_features_in_ = ds.sizes["feature"]
    if ds.attrs["named_features"]:
        model.feature_names_in_ = np.array([str(name) for name in ds["feature"].values], dtype=object)
    if "units" in ds.variables:
        if ds["units"].dims != ("feature",):
            raise ValueError(f"units has dimensions {ds['units'].dims}, not ('feature',)")
        model.feature_units_in_ = np.array([str(units) for units in ds["units"].values], dtype=object)
    for name, dims in {"weights": ("component",), **model._state_dims()}.items():
        variable = ds.variables[name]
        values = variable.values
        kind = "i" if name == "n_components_effective" else "f"
        if variable.dims != dims:
            raise ValueError(f"{name} has dimensions {variable.dims}, not {dims}")
        if values.dtype.kind != kind or not values.size or not np.isfinite(values).all():
            raise ValueError(f"{name} are not all finite numbers")
        setattr(model, f"{name}_", values if values.ndim else values.item())
    weights = model.weights_
    if (weights < 0).any() or not np.isclose(weights.sum(), 1, rtol=0, atol=1e-6):
        raise ValueError(f"the weights, which add up to {weights.sum():g}, are not those of a mixture")
    model.lower_bounds_ = ds["lower_bounds"].values.astype(np.float64).tolist()
    fit, kinds = parse_object(ds.attrs["fit"]), {**_FIT, **dict.fromkeys(model._extra_state_names(), list)}
    if fit.keys() != kinds.keys():
        raise ValueError(
            f"of what the fit found, {', '.join(sorted(fit.keys() ^ kinds.keys()))} is too much or missing"
        )
    for name, value in fit.items():
        if type(value) is not kinds[name] or (type(value) is int and value < 0):
            raise ValueError(f"{name} is {value!r}")
        setattr(model, f"{name}_", value)


def write(ds: xr.Dataset, path: str | os.PathLike[str], overwrite: bool) -> None:
    """Write a model's Dataset to a group, which opens once it is complete."""
    manifest = {"kind": "model", "schema": SCHEMA, "sha256": _digest(ds.attrs, ds.variables)}
    write_group(os.fspath(path), ds, manifest, overwrite)


def read(path: str | os.PathLike[str] | Store) -> xr.Dataset:
    """Read a model's Dataset into memory.

    Raises
    ------
    ValueError
        There is no model, or not one that this version can read.
    OSError
        The store cannot be read.
    """
    name = presentable(path if isinstance(path, Store) else os.fspath(path))
    try:
        store = store_at(path)
        (document,) = fetch(store, [METADATA])
        attributes = {} if document is None else parse_object(document)["attributes"]
        manifest = parse_object(attributes.pop(ATTRIBUTE))
    except StoreUnavailable:
        raise
    except Exception:  # there is nothing, of which opening it raises the reason; or something else
        open_store(path)
        manifest = {}
    if manifest.get("kind") != "model":
        raise ValueError(f"{name!r} is not a model that daskgmm wrote: give the path that fit wrote to")
    if manifest.get("schema") not in (1, SCHEMA):
        raise ValueError(
            f"{name!r} has model schema {manifest.get('schema')}, but this version of daskgmm reads 1 and {SCHEMA}: "
            "use the version that wrote it, or fit again"
        )
    with valid(name):
        arrays = read_arrays(store, checked_names(manifest["arrays"]))
        # Schema 1 had no checksum.
        if (manifest["schema"] > 1 or "sha256" in manifest) and manifest["sha256"] != _digest(attributes, arrays):
            raise ValueError("its checksum is another")
        variables = {name: (array.dims, array.values, array.attrs) for name, array in arrays.items()}
        return xr.Dataset(variables, attrs=attributes)


def valid(name: str) -> AbstractContextManager[None]:
    """Report any error within the context, except `StoreUnavailable`, as a model's file that is not valid."""
    return raise_as(_invalid, name, (StoreUnavailable,))


def _invalid(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"{name!r} does not hold a valid model ({reason(error)}): take a copy of it that does, or fit again"
    )


def _digest(attrs: Mapping[Any, Any], variables: Mapping[Any, Any]) -> str:
    """Return a checksum of the content of a model's Dataset, which does not depend on how it is stored."""
    digest = hashlib.sha256(_canonical(dict(attrs)))
    for name in sorted(variables):
        variable = variables[name]
        values, attributes = variable.values, {k: v for k, v in variable.attrs.items() if k != "_FillValue"}
        digest.update(_canonical([name, variable.dims, values.shape, values.dtype.kind, attributes]))
        if values.dtype.kind == "f":  # one kind of NaN and of zero, as storage may not tell them apart
            values = np.where(np.isnan(values), np.nan, values) + 0.0
        numbers = values.dtype.kind in "biuf"
        digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes() if numbers else _canonical(list(values)))
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _to_json(value: Any) -> Any:
    """Convert a prior, or a scalar or array of NumPy's."""
    return asdict(value) if isinstance(value, Prior) else value.tolist()
