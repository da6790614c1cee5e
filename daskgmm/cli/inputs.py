"""What the commands work on, and where."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from daskgmm.data.blocks import Samples


def workers_for(scheduler: str | None, n_workers: int | None, memory_limit: str) -> AbstractContextManager[Any]:
    from daskgmm.passes.cluster import workers

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

    names = _names(array, variables)
    return open_samples(store, array=array, variables=names, sample_weight=weights, labels=labels, missing=missing)


def model_and_samples(
    model: str, store: str, array: str | None, variables: str | None, missing: str | None
) -> tuple[Any, Samples]:
    from daskgmm.stages import load_with_samples

    return load_with_samples(model, store, array, _names(array, variables), missing)


def _names(array: str | None, variables: str | None) -> list[str] | None:
    if array and variables:
        raise click.UsageError("--array and --variables exclude each other: give one")
    return [name.strip() for name in variables.split(",")] if variables else None
