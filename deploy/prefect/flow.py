"""A flow over the tasks of daskgmm: from a store of samples to a model, and to a label for each sample."""

from __future__ import annotations

from typing import Any

from prefect import flow

from daskgmm.integrations.prefect import fit, predict, select


@flow(name="daskgmm")
def label(
    store: str,
    folder: str,
    n_components: int | list[int] = 8,
    options: dict[str, Any] | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    memory_limit: str = "auto",
) -> dict[str, Any]:
    """Fit a mixture to a store, or choose one where there are several numbers of components, and label the store by it.

    Parameters
    ----------
    store, folder : str
        Local paths or fsspec URLs: the samples, and where model.zarr and labels.zarr are written. A run with the same
        arguments goes on from where the last one was: give each period of data a folder of its own.
    n_components : int or list of int
    options : dict, optional
        More of the mixture's, or of the selection's, e.g. ``{"covariance_type": "diag", "tol": 1e-4}``.
    scheduler, workers, memory_limit
        Where to compute: a running Dask scheduler, or local workers.
    """
    place = {"scheduler": scheduler, "workers": workers, "memory_limit": memory_limit}
    found = select if isinstance(n_components, list) else fit
    model = found(store, f"{folder}/model.zarr", n_components=n_components, **place, **(options or {}))
    missing = {"missing": options["missing"]} if options and "missing" in options else {}
    labels = predict(model["output"], store, f"{folder}/labels.zarr", **place, **missing)
    return {"model": model, "labels": labels}
