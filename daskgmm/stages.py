"""The stages of a pipeline, whatever runs it: from stores to a store, and numbers about what was found.

A stage that is killed goes on when it is run again with the same arguments, and one that was finished changes nothing:
outputs that daskgmm wrote there before are replaced by the same bits. So whatever schedules them may repeat them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import daskgmm
from daskgmm.data.blocks import Samples
from daskgmm.data.open import open_samples
from daskgmm.em.info import Info
from daskgmm.estimators.mixture import load
from daskgmm.passes.cluster import workers
from daskgmm.prediction.predict import LABELS, LOG_DENSITY, PROBA
from daskgmm.prediction.write import write_predictions
from daskgmm.urls import presentable

Row = dict[str, Any]
Scalar = str | int | float | bool
_FEATURES = 8  # in a table that people read


@dataclass(frozen=True)
class ProgressEvent:
    """What a stage says of itself while it runs."""

    text: str
    share: float  # done, from 0 to 1, of the most that there is to do


@dataclass(frozen=True)
class Result:
    """What a stage ends with."""

    output: str  # the store's URL, as it was given
    metrics: Mapping[str, Scalar]
    table: list[Row] = field(default_factory=list)  # for people: components, or candidates

    def message(self) -> dict[str, Scalar]:
        """What goes from stage to stage: the output's URL and the metrics, as JSON knows them."""
        return {"output": self.output, **self.metrics}


@dataclass(frozen=True)
class Place:
    """Where to compute, as on the command line.

    Parameters
    ----------
    scheduler : str, optional
        Address of a running Dask scheduler.
    workers : int, optional
        Without one: local worker processes, of one thread each; None: one a core; 0: threads of this process.
    memory_limit : str
        Of each local worker, e.g. "1GiB".
    """

    scheduler: str | None = None
    workers: int | None = None
    memory_limit: str = "auto"

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """The client is this thread's alone: stages may run beside each other in one process."""
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(workers(self.scheduler, self.workers, self.memory_limit))
            if client is not None:
                stack.enter_context(client.as_current())
            yield


OnProgress = Callable[[ProgressEvent], None]
HERE = Place()


def _silent(word: ProgressEvent) -> None:
    pass


def fit(
    store: str,
    output: str,
    *,
    mixture: str = "GaussianMixture",
    checkpoint: str | None = None,
    array: str | None = None,
    variables: Sequence[str] | None = None,
    sample_weight: str | None = None,
    labels: str | None = None,
    place: Place = HERE,
    on_progress: OnProgress = _silent,
    **options: Any,
) -> Result:
    """Fit a mixture to a store, and write the model.

    Parameters
    ----------
    store, output : str
        Local paths or fsspec URLs: samples, and the model.
    mixture : str
        One of ``daskgmm.MIXTURES``.
    checkpoint : str, optional
        Where the state of the fit is kept; default: beside the output, with ".checkpoint" after its name.
    array, variables, sample_weight, labels
        What is in the store, as of ``daskgmm.open_samples``.
    place : Place
    on_progress : callable
        Told of each pass.
    **options
        Of the mixture. ``random_state`` is 0 unless given.

    Raises
    ------
    ValueError
        The mixture is not known, the data cannot be fitted, or the checkpoint is of another fit.
    FileExistsError
        There is something at the output that daskgmm did not write.
    """
    if mixture not in daskgmm.MIXTURES:
        raise ValueError(f"mixture {mixture!r} is not known: give one of {', '.join(daskgmm.MIXTURES)}")
    samples = daskgmm.open_samples(
        store,
        array=array,
        variables=variables,
        sample_weight=sample_weight,
        labels=labels,
        missing=options.get("missing", "raise"),
    )
    gm, seconds = _fitted(getattr(daskgmm, mixture), samples, output, checkpoint, place, on_progress, options)
    gm.save(output, overwrite=True)
    metrics = {
        "n_samples": int(gm.n_samples_),
        "n_features": int(gm.n_features_in_),
        "converged": bool(gm.converged_),
        "n_iter": int(gm.n_iter_),
        "n_passes": int(gm.n_passes_),
        "lower_bound": float(gm.lower_bound_),
        "seconds": seconds,
    }
    return Result(output, metrics, _components(gm))


def select(
    store: str,
    output: str,
    *,
    checkpoint: str | None = None,
    array: str | None = None,
    variables: Sequence[str] | None = None,
    place: Place = HERE,
    on_progress: OnProgress = _silent,
    **options: Any,
) -> Result:
    """Fit Gaussian mixtures of many kinds and sizes to a store, in passes that they share, and write the best.

    Parameters
    ----------
    store, output, checkpoint, array, variables, place, on_progress
        As of `fit`.
    **options
        Of ``daskgmm.GaussianMixtureIC``. ``random_state`` is 0 unless given.

    Raises
    ------
    ValueError
        No candidate can be fitted, or the checkpoint is of another fit.
    FileExistsError
        There is something at the output that daskgmm did not write.
    """
    missing = options.get("missing", "raise")
    samples = daskgmm.open_samples(store, array=array, variables=variables, missing=missing)
    search, seconds = _fitted(daskgmm.GaussianMixtureIC, samples, output, checkpoint, place, on_progress, options)
    search.best_estimator_.save(output, overwrite=True)
    metrics: dict[str, Scalar] = {
        "n_components": int(search.best_params_["n_components"]),
        "covariance_type": str(search.best_params_["covariance_type"]),
        search.criterion: float(search.best_score_),
        "n_samples": int(search.n_samples_),
        "n_passes": int(search.n_passes_),
        "seconds": seconds,
    }
    candidates = search.results_.to_dataframe().reset_index()
    rows = candidates.astype(object).where(candidates.notna(), None).to_dict("records")
    return Result(output, metrics, rows)


def predict(
    model: str,
    store: str,
    output: str,
    *,
    proba: bool = False,
    log_density: bool = False,
    missing: str | None = None,
    array: str | None = None,
    variables: Sequence[str] | None = None,
    place: Place = HERE,
    on_progress: OnProgress = _silent,
) -> Result:
    """Label each sample of a store, in a Zarr group with the store's coordinates.

    Parameters
    ----------
    model, store, output : str
        Local paths or fsspec URLs.
    proba, log_density : bool
        Write the responsibilities, or the log-densities, too.
    missing : {"raise", "drop", "skip", "fill"}, optional
        Default: as the model was fitted.
    array, variables
        What is in the store; default: the features that the model was fitted to, where these have names.
    place : Place
    on_progress : callable
        Told of every few blocks.

    Raises
    ------
    ValueError
        The samples do not fit the model, or one is not finite where ``missing`` is "raise".
    FileExistsError
        There is something at the output that daskgmm did not write.
    """
    begin = time.perf_counter()
    gm, samples = load_with_samples(model, store, array, variables, missing)

    def watch(done: int, of: int) -> None:
        on_progress(ProgressEvent(f"{done:,} of {of:,} samples are written", done / max(of, 1)))

    with place.opened():
        label(gm, samples, (store, array), output, proba=proba, log_density=log_density, overwrite=True, watch=watch)
    return Result(output, {"n_samples": int(samples.n), "seconds": round(time.perf_counter() - begin, 3)})


def _fitted(
    estimator: Callable[..., Any],
    samples: Any,
    output: str,
    checkpoint: str | None,
    place: Place,
    on_progress: OnProgress,
    options: dict[str, Any],
) -> tuple[Any, float]:
    """A fitted estimator, and the seconds that it took."""
    from daskgmm.storage.groups import check_free

    check_free(output, overwrite=True)

    def watch(info: Info) -> None:
        where = "a sample" if info.stage == "sample" else "the data"
        on_progress(
            ProgressEvent(
                f"EM on {where}, pass {info.n_iter} of at most {info.max_iter}: log-likelihood {info.lower_bound:.6g}, "
                f"change {info.change:.2g}, {info.samples_per_second:,.0f} rows/s",
                0.0 if info.stage == "sample" else info.n_iter / info.max_iter,
            )
        )

    begin = time.perf_counter()
    kept = checkpoint or f"{os.fspath(output).rstrip('/')}.checkpoint"
    fitting = estimator(**{"random_state": 0, **options}, checkpoint=kept, callbacks=[watch])
    on_progress(ProgressEvent(f"the state of the fit is kept in {presentable(kept)}", 0.0))
    with place.opened():
        fitting.fit(samples)
    return fitting, round(time.perf_counter() - begin, 3)


def _components(gm: Any) -> list[Row]:
    """Weights and means of the components, the heaviest first, and of features the first ones."""
    names = [str(name) for name in getattr(gm, "feature_names_in_", range(gm.n_features_in_))]
    shown = names[:_FEATURES] if gm.means_.shape[1] == len(names) else []  # levels have more columns
    return [
        {"component": int(k), "weight": float(gm.weights_[k])}
        | {name: float(gm.means_[k, j]) for j, name in enumerate(shown)}
        for k in (-gm.weights_).argsort(kind="stable")
    ]


def load_with_samples(
    model: str, store: str, array: str | None, variables: Sequence[str] | None, missing: str | None
) -> tuple[Any, Samples]:
    """A model, and the features of a store that it was fitted to, or those that are named.

    ``missing``: None as the model was fitted.

    Raises
    ------
    ValueError
        There is no model or no such store, or the features do not fit the model.
    """
    gm = load(model)
    if missing is not None:
        gm.set_params(missing=missing)
    if array is None and variables is None and hasattr(gm, "feature_names_in_"):
        variables = [str(name) for name in gm.feature_names_in_]
    samples = open_samples(store, array=array, variables=variables, missing=gm.missing)
    gm._open(samples)  # do its features fit the model?
    return gm, samples


def label(
    gm: Any,
    samples: Samples,
    origin: tuple[str, str | None],
    output: str,
    *,
    proba: bool,
    log_density: bool,
    overwrite: bool,
    watch: Callable[[int, int], None],
) -> list[str]:
    """Write what `predict` finds, and if asked more, of samples of a store and an array in it; the names of both."""
    outputs = [LABELS, *([PROBA] if proba else []), *([LOG_DENSITY] if log_density else [])]
    write_predictions(
        samples,
        gm._components(),
        outputs,
        output,
        missing=gm.missing,
        encoding=gm._encoding(),
        origin=json.dumps([*origin, list(samples.names or ())]),
        overwrite=overwrite,
        watch=watch,
    )
    return [each.name for each in outputs]
