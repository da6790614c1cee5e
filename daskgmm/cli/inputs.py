"""What the commands work on, and where."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from daskgmm.data.blocks import Samples


def workers_for(scheduler: str | None, n_workers: int | None, memory_limit: str) -> AbstractContextManager[Any]:
    from daskgmm.cluster import workers

    return workers(scheduler, n_workers, memory_limit)


def samples_in(
    store: str,
    array: str | None,
    variables: str | None,
    missing: str,
    weights: str | None = None,
    labels: str | None = None,
) -> Samples:
    from daskgmm.data.open import open_samples

    if array and variables:
        raise click.UsageError("--array and --variables exclude each other: give one")
    names = variables.split(",") if variables else None
    return open_samples(store, array=array, variables=names, sample_weight=weights, labels=labels, missing=missing)


def model_and_samples(
    model: str, store: str, array: str | None, variables: str | None, missing: str
) -> tuple[Any, Samples]:
    """A model, and the features of a store that it was fitted to."""
    from daskgmm.estimators.mixture import load

    gm = load(model).set_params(missing=missing)
    if array is None and variables is None and hasattr(gm, "feature_names_in_"):
        variables = ",".join(gm.feature_names_in_)
    samples = samples_in(store, array, variables, missing)
    gm._open(samples)  # do its features fit the model?
    return gm, samples
