"""Fitted models as Zarr groups that xarray opens. Reading one runs nothing that it contains."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

from daskgmm.data.open import open_store
from daskgmm.data.write import ATTRIBUTE, write_group
from daskgmm.families.prior import Prior

SCHEMA = 1
_NOT_KEPT = {  # parameters that say how to go about a fit, and not what it is
    *("weights_init", "means_init", "precisions_init", "warm_start"),
    *("verbose", "verbose_interval", "persist", "checkpoint", "callbacks"),
}


def to_dataset(model: Any) -> xr.Dataset:
    """The fitted parameters with names, and how they were found."""
    k, d = len(model.weights_), model.n_features_in_
    features = np.array([str(name) for name in getattr(model, "feature_names_in_", range(d))], dtype=object)
    kept = {name: value for name, value in model.get_params(deep=False).items() if name not in _NOT_KEPT}
    seed = kept["random_state"]
    kept["random_state"] = int(seed) if isinstance(seed, int | np.integer) else None
    fit = {
        "converged": bool(model.converged_),
        "n_iter": int(model.n_iter_),
        "n_passes": int(model.n_passes_),
        "n_samples": int(model.n_samples_),
        "lower_bound": float(model.lower_bound_),
        **model._learned(),
    }
    variables = {name: (dims, np.asarray(getattr(model, f"{name}_"))) for name, dims in model._saved().items()}
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
            "title": f"{model._adjective()} mixture of {k} components in {d} features",
            "family": type(model).__name__,
            "named_features": int(hasattr(model, "feature_names_in_")),
            "params": json.dumps(kept, default=_plain),
            "fit": json.dumps(fit),
            "source": f"daskgmm {version('daskgmm')}",
        },
    )
    if "level" in ds.dims:
        known = zip(features, model.categories_, strict=True)
        levels = [
            f"{name}={level:g}" if some.dtype.kind == "f" else f"{name}={level}"
            for name, some in known
            for level in some
        ]
        ds = ds.assign_coords(level=("level", np.array(levels, dtype=object)))
    return ds.assign_coords(feature_=("feature_", features)) if "feature_" in ds.dims else ds


def params(ds: xr.Dataset) -> dict[str, Any]:
    """The parameters of the estimator that was saved."""
    found: dict[str, Any] = json.loads(ds.attrs["params"])
    if isinstance(prior := found.get("prior"), dict):
        found["prior"] = Prior(**prior)
    return found


def restore(model: Any, ds: xr.Dataset) -> None:
    """Give a model the fitted attributes that `to_dataset` wrote."""
    model.n_features_in_ = ds.sizes["feature"]
    if ds.attrs["named_features"]:
        model.feature_names_in_ = np.array([str(name) for name in ds["feature"].values], dtype=object)
    for name in ("weights", *model._saved()):
        values = ds[name].values
        setattr(model, f"{name}_", values if values.ndim else values.item())
    model.lower_bounds_ = ds["lower_bounds"].values.tolist()
    for name, value in json.loads(ds.attrs["fit"]).items():
        setattr(model, f"{name}_", value)


def write(ds: xr.Dataset, path: str | os.PathLike[str], overwrite: bool) -> None:
    """Write a model's Dataset; the group opens once it is complete."""
    write_group(os.fspath(path), ds, {"kind": "model", "schema": SCHEMA}, overwrite)


def read(path: str | os.PathLike[str]) -> xr.Dataset:
    """A model's Dataset, in memory.

    Raises
    ------
    ValueError
        There is no model, or not one that this version can read.
    """
    group = open_store(path)
    name = os.fspath(path)
    try:
        manifest = json.loads(str(group.attrs[ATTRIBUTE]))
    except (KeyError, TypeError, ValueError):
        manifest = {}
    if manifest.get("kind") != "model":
        raise ValueError(f"{name!r} is not a model that daskgmm wrote: give the path that fit wrote to")
    if manifest.get("schema") != SCHEMA:
        raise ValueError(
            f"{name!r} has model schema {manifest.get('schema')}, but this version of daskgmm reads {SCHEMA}: "
            "use the version that wrote it, or fit again"
        )
    with xr.open_zarr(group.store, group=group.path or None, chunks=None, consolidated=False) as ds:
        return ds.load()


def _plain(value: Any) -> Any:
    """A prior, NumPy's scalars and arrays as JSON knows them."""
    return asdict(value) if isinstance(value, Prior) else value.tolist()
