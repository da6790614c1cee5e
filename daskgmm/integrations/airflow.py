"""Airflow 3: the stages as operators, and as functions for the TaskFlow way of writing.

XCom carries store URLs and numbers. A retry goes on from the checkpoint; a task that is killed, cancelled or timed out
ends what it runs on Dask. Local workers are processes of their own, which a LocalExecutor's task can start.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

try:
    from airflow.sdk import BaseOperator
except ImportError as error:
    raise ImportError(
        "daskgmm.integrations.airflow needs Airflow 3: install apache-airflow by its constraints file"
    ) from error

from daskgmm import stages
from daskgmm.stages import Place, ProgressEvent, Result


class Cancelled(KeyboardInterrupt):
    """By Airflow: all that cleans up after Ctrl-C does so after `on_kill`."""


class StageOperator(BaseOperator):
    """What the operators share.

    Parameters
    ----------
    store, output_url : str
        Local paths or fsspec URLs, which each attempt and each worker reaches. They are templates, and end up in XCom:
        credentials belong into the environment.
    scheduler, workers, memory_limit
        As of :class:`daskgmm.stages.Place`; templates.
    options : dict, optional
        More of the stage's; templates, of other types than text with ``render_template_as_native_obj=True``.
    **kwargs
        Of every operator, e.g. ``task_id`` and ``retries``.
    """

    template_fields: Sequence[str] = ("store", "output_url", "scheduler", "workers", "memory_limit", "options")
    template_fields_renderers = {"options": "json"}  # noqa: RUF012
    ui_color = "#dbe9f6"

    def __init__(
        self,
        *,
        store: str,
        output_url: str,
        scheduler: str | None = None,
        workers: int | str | None = None,
        memory_limit: str = "auto",
        options: dict[str, Any] | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"multiple_outputs": True, **kwargs})  # each key of the message is an XCom by itself
        self.store = store
        self.output_url = output_url  # `output` is Airflow's: the task's XCom
        self.scheduler = scheduler
        self.workers = workers
        self.memory_limit = memory_limit
        self.options = options
        self._running = False

    @abstractmethod
    def stage(self, place: Place, options: dict[str, Any]) -> Result:
        """Run it."""

    def execute(self, context: Any) -> dict[str, Any]:
        options = self.options or {}
        if isinstance(options, str):
            raise TypeError(f"options is the text {options!r}: give its DAG render_template_as_native_obj=True")
        workers = None if self.workers is None else int(self.workers)
        self._running = True
        try:
            result = self.stage(Place(self.scheduler, workers, self.memory_limit), dict(options))
        finally:
            self._running = False
        return result.message()

    def on_kill(self) -> None:
        """Leave the stage, which Airflow's handler of SIGTERM interrupts, by way of all that cleans up."""
        if self._running:
            raise Cancelled("the task is cancelled: what runs on Dask ends, and another attempt goes on from here")

    def on_progress(self, word: ProgressEvent) -> None:
        self.log.info(word.text)


class FitOperator(StageOperator):
    """Fit a mixture: :func:`daskgmm.stages.fit`."""

    def stage(self, place: Place, options: dict[str, Any]) -> Result:
        return stages.fit(self.store, self.output_url, place=place, on_progress=self.on_progress, **options)


class SelectOperator(StageOperator):
    """Fit mixtures of many kinds and sizes, and keep the best: :func:`daskgmm.stages.select`."""

    def stage(self, place: Place, options: dict[str, Any]) -> Result:
        return stages.select(self.store, self.output_url, place=place, on_progress=self.on_progress, **options)


class PredictOperator(StageOperator):
    """Label the samples of a store: :func:`daskgmm.stages.predict`.

    Parameters
    ----------
    model : str
        Local path or fsspec URL; a template, or another task's ``output["output"]``.
    """

    template_fields: Sequence[str] = ("model", *StageOperator.template_fields)

    def __init__(self, *, model: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model

    def stage(self, place: Place, options: dict[str, Any]) -> Result:
        return stages.predict(
            self.model, self.store, self.output_url, place=place, on_progress=self.on_progress, **options
        )


def fit(store: str, output: str, *, task_id: str = "fit", **arguments: Any) -> Any:
    """A task that fits a mixture; what it returns stands for its "output" and metrics, as in TaskFlow.

    Parameters
    ----------
    store, output : str
        Local paths or fsspec URLs; templates.
    task_id : str
    **arguments
        As of `FitOperator`.

    Returns
    -------
    XComArg
        ``["output"]`` of it is what `predict` takes.
    """
    return FitOperator(task_id=task_id, store=store, output_url=output, **arguments).output


def select(store: str, output: str, *, task_id: str = "select", **arguments: Any) -> Any:
    """Add a task that chooses among mixtures, and return its output as `fit` does."""
    return SelectOperator(task_id=task_id, store=store, output_url=output, **arguments).output


def predict(model: Any, store: str, output: str, *, task_id: str = "predict", **arguments: Any) -> Any:
    """Add a task that labels the samples of a store by a model, which may be the output of another task."""
    return PredictOperator(task_id=task_id, model=model, store=store, output_url=output, **arguments).output
