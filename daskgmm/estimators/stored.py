"""Models and samples that are in stores: what the command line and the stages of pipelines do with both."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from daskgmm.data.blocks import Samples
from daskgmm.data.open import open_samples
from daskgmm.estimators.mixture import load
from daskgmm.labelling import write_predictions
from daskgmm.prediction import LABELS, LOG_DENSITY, PROBA


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
        gm._coded(samples),
        gm._components(),
        outputs,
        output,
        missing=gm.missing,
        origin=json.dumps([*origin, list(samples.names or ())]),
        overwrite=overwrite,
        watch=watch,
    )
    return [each.name for each in outputs]
