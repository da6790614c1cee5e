"""Prefect 3: the stages as tasks, which take and return store URLs and numbers.

A retry, or another run with the same arguments, goes on from the checkpoint. While a task runs, a progress artifact and
its log say how far it is; at its end there are a report and a table. Cancelling the run ends what runs on Dask.
"""

from __future__ import annotations

import time
from typing import Any

try:
    import httpx
    from prefect import get_run_logger, task
    from prefect.artifacts import (
        create_markdown_artifact,
        create_progress_artifact,
        create_table_artifact,
        update_progress_artifact,
    )
    from prefect.cache_policies import NO_CACHE
except ImportError as error:
    raise ImportError("daskgmm.integrations.prefect needs Prefect 3: pip install 'daskgmm[prefect]'") from error

from daskgmm import stages
from daskgmm.stages import Place, ProgressEvent, Result
from daskgmm.urls import presentable

_INTERVAL = 2.0  # seconds between two updates of an artifact, each of which is a request
# What is done is kept by checkpoints and outputs, which may have been removed: Prefect's cache would not know.
_stage = {"retries": 2, "retry_delay_seconds": 10, "cache_policy": NO_CACHE, "log_prints": False}


@task(name="daskgmm-fit", **_stage)
def fit(
    store: str,
    output: str,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    memory_limit: str = "auto",
    **options: Any,
) -> dict[str, Any]:
    """Fit a mixture to a store, and write the model.

    Parameters
    ----------
    store, output : str
        Local paths or fsspec URLs, which each attempt and each worker reaches; credentials are best in the environment.
    scheduler, workers, memory_limit
        As of :class:`daskgmm.stages.Place`.
    **options
        As of :func:`daskgmm.stages.fit`.

    Returns
    -------
    dict
        The "output", which other tasks take, and metrics.
    """
    said = _Said("fit")
    place = Place(scheduler, workers, memory_limit)
    return said.at_last(store, stages.fit(store, output, place=place, on_progress=said, **options))


@task(name="daskgmm-select", **_stage)
def select(
    store: str,
    output: str,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    memory_limit: str = "auto",
    **options: Any,
) -> dict[str, Any]:
    """Fit mixtures of many kinds and sizes to a store, and write the best.

    Parameters
    ----------
    store, output, scheduler, workers, memory_limit
        As of `fit`.
    **options
        As of :func:`daskgmm.stages.select`.

    Returns
    -------
    dict
        The "output", which other tasks take, and metrics.
    """
    said = _Said("select")
    place = Place(scheduler, workers, memory_limit)
    return said.at_last(store, stages.select(store, output, place=place, on_progress=said, **options))


@task(name="daskgmm-predict", **_stage)
def predict(
    model: str,
    store: str,
    output: str,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    memory_limit: str = "auto",
    **options: Any,
) -> dict[str, Any]:
    """Label each sample of a store by a model.

    Parameters
    ----------
    model, store, output, scheduler, workers, memory_limit
        As of `fit`.
    **options
        As of :func:`daskgmm.stages.predict`.

    Returns
    -------
    dict
        The "output", which other tasks take, and metrics.
    """
    said = _Said("predict")
    place = Place(scheduler, workers, memory_limit)
    return said.at_last(store, stages.predict(model, store, output, place=place, on_progress=said, **options))


class _Said:
    """What a stage says: to the log at once, and to artifacts now and then."""

    def __init__(self, stage: str) -> None:
        self._key, self._log, self._last = f"daskgmm-{stage}", get_run_logger(), 0.0
        self._progress = create_progress_artifact(0.0, key=f"{self._key}-progress", description="starting")

    def __call__(self, word: ProgressEvent) -> None:
        self._log.info(word.text)
        if time.monotonic() > self._last + _INTERVAL:
            self._update(word)

    def at_last(self, store: str, result: Result) -> dict[str, Any]:
        """The task's result, which the artifacts report."""
        self._update(ProgressEvent("done", 1.0))
        rows = [f"| {name} | {value} |" for name, value in result.metrics.items()]
        title = f"## {self._key}\n\n`{presentable(store)}` → `{presentable(result.output)}`\n"
        create_markdown_artifact("\n".join([title, "| | |", "|---|---|", *rows]), key=f"{self._key}-report")
        if result.table:
            create_table_artifact(result.table, key=f"{self._key}-table")
        return result.message()

    def _update(self, word: ProgressEvent) -> None:
        self._last = time.monotonic()
        try:
            update_progress_artifact(self._progress, progress=100 * word.share, description=word.text)
        except httpx.HTTPError as error:  # hours of work do not end for a picture of them
            self._log.warning("progress is not shown: %s", error)
