"""DAGs over the tasks of daskgmm: from a store of samples to a model, and to a label for each sample.

A run's parameters say which store and where to; `options` are the mixture's or the selection's, e.g.
{"n_components": 8, "covariance_type": "diag"}. A run into the folder of another one goes on from where that was: give
each period of data a folder of its own, as "s3://bucket/models/{{ ds }}" does in a scheduled DAG.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag

from daskgmm.integrations.airflow import fit, predict, select

STORE, FOLDER, OPTIONS = "{{ params.store }}", "{{ params.folder }}", "{{ params.options }}"
PLACE = {"scheduler": "{{ params.scheduler }}", "workers": "{{ params.workers }}"}
SHARED: dict[str, Any] = {
    "schedule": None,
    "catchup": False,
    "render_template_as_native_obj": True,  # options are no text
    "default_args": {"retries": 2, "retry_delay": timedelta(seconds=10)},
}
# Without a scheduler: local workers, None for one a core.
PARAMS = {"store": "samples.zarr", "folder": "models", "scheduler": None, "workers": None}


@dag(params={**PARAMS, "options": {"n_components": 8}}, **SHARED)
def daskgmm_label() -> None:
    """Fit one mixture, and label the store by it."""
    model = fit(STORE, f"{FOLDER}/model.zarr", options=OPTIONS, **PLACE)
    predict(model["output"], STORE, f"{FOLDER}/labels.zarr", **PLACE)


@dag(params={**PARAMS, "options": {"n_components": [2, 4, 8]}}, **SHARED)
def daskgmm_choose() -> None:
    """Choose a mixture, and label the store by it."""
    model = select(STORE, f"{FOLDER}/model.zarr", options=OPTIONS, **PLACE)
    predict(model["output"], STORE, f"{FOLDER}/labels.zarr", **PLACE)


label, choose = daskgmm_label(), daskgmm_choose()
