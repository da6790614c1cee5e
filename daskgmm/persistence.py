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
_WHOLE = ("component", "feature", "feature_")
_SHAPES = {  # of covariances that are not whole
    "tied": ("feature", "feature_"),
    "diag": ("component", "feature"),
    "spherical": ("component",),
}
_KEPT_PARAMS = (
    "n_components",
    "covariance_type",
    "tol",
    "reg_covar",
    "prior",
    "max_iter",
    "n_init",
    "init_params",
    "random_state",
    "accelerate",
    "subsample",
    "missing",
)


def to_dataset(model: Any) -> xr.Dataset:
    """The fitted parameters with names, and how they were found."""
    k, d = model.means_.shape
    features = np.array([str(name) for name in getattr(model, "feature_names_in_", range(d))], dtype=object)
    dims = _SHAPES.get(model.covariance_type, _WHOLE)
    params = {name: getattr(model, name) for name in _KEPT_PARAMS}
    seed = params["random_state"]
    params["random_state"] = int(seed) if isinstance(seed, int | np.integer) else None
    kind = "likelihood" if model.prior is None else "posterior"
    fit = {
        "converged": bool(model.converged_),
        "n_iter": int(model.n_iter_),
        "n_passes": int(model.n_passes_),
        "n_samples": int(model.n_samples_),
        "lower_bound": float(model.lower_bound_),
    }
    ds = xr.Dataset(
        {
            "weights": ("component", model.weights_, {"long_name": "mixing weight"}),
            "means": (("component", "feature"), model.means_),
            "covariances": (dims, model.covariances_),
            "precisions_cholesky": (dims, model.precisions_cholesky_),
            "lower_bounds": ("iteration", model.lower_bounds_, {"long_name": f"log-{kind} per sample"}),
        },
        coords={
            "component": np.arange(k),
            "feature": features,
            "iteration": np.arange(1, len(model.lower_bounds_) + 1),
        },
        attrs={
            "title": f"Gaussian mixture of {k} components in {d} features",
            "family": type(model).__name__,
            "named_features": int(hasattr(model, "feature_names_in_")),
            "params": json.dumps(params, default=_plain),
            "fit": json.dumps(fit),
            "source": f"daskgmm {version('daskgmm')}",
        },
    )
    return ds.assign_coords(feature_=("feature_", features)) if "feature_" in dims else ds


def restore(model: Any, ds: xr.Dataset) -> None:
    """Give a model the fitted attributes that `to_dataset` wrote."""
    model.n_features_in_ = ds.sizes["feature"]
    if ds.attrs["named_features"]:
        model.feature_names_in_ = np.array([str(name) for name in ds["feature"].values], dtype=object)
    for name in ("weights", "means", "covariances", "precisions_cholesky"):
        setattr(model, f"{name}_", ds[name].values)
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
