"""To fit a model."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

import daskgmm
from daskgmm.cli.console import (
    F,
    input_options,
    json_option,
    missing_option,
    output_option,
    overwrite_option,
    report,
    where_options,
)
from daskgmm.cli.inputs import samples_in, workers_for
from daskgmm.families import PRODUCTS
from daskgmm.urls import presentable

_MIXTURES = {
    "gaussian": "GaussianMixture",
    "bayesian": "BayesianGaussianMixture",
    **{name: f"{family}Mixture" for name, family in PRODUCTS.items()},
}
# The names in `families.covariance`, which imports NumPy.
COVARIANCES = [
    *("full", "tied", "diag", "spherical"),
    *("EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV"),
]
components_option = click.option(
    "--components", "n_components", type=click.IntRange(1), required=True, help="Number of components."
)
covariance_option = click.option(
    "--covariance",
    "covariance_type",
    type=click.Choice(COVARIANCES),
    default="full",
    show_default=True,
)
reg_covar_option = click.option(
    "--reg-covar", type=click.FloatRange(0), default=1e-6, show_default=True, help="Added to variances."
)
# How to fit, which store, where, and to which output.
_em_options = (
    click.option("--max-iter", type=click.IntRange(0), default=100, show_default=True, help="Most passes of EM."),
    click.option("--n-init", type=click.IntRange(1), default=1, show_default=True, help="Starts: the best is kept."),
    click.option(
        "--init",
        "init_params",
        type=click.Choice(["kmeans", "k-means++", "random", "random_from_data"]),
        default="kmeans",
        show_default=True,
    ),
    reg_covar_option,
    click.option(
        "--prior",
        type=click.Choice(["none", "default"]),
        default="none",
        show_default=True,
        callback=lambda ctx, option, value: None if value == "none" else value,
        help="Of weights, means and covariances; default: mclust's.",
    ),
    click.option(
        "--subsample",
        type=click.IntRange(0),
        default=100_000,
        show_default=True,
        callback=lambda ctx, option, value: value or None,
        help="Rows to start on; 0: all.",
    ),
    click.option("--seed", "random_state", type=click.IntRange(0), default=0, show_default=True),
    click.option(
        "--persist/--stream",
        default=None,
        callback=lambda ctx, option, value: "auto" if value is None else value,
        help="Keep the decoded rows in the workers' memory, or read them each time.  [default: keep them if they fit]",
    ),
    click.option(
        "--checkpoint",
        metavar="DIR",
        help="Keep the state of the fit there after each pass: the same command again goes on from it.",
    ),
    missing_option,
    input_options,
    where_options,
    output_option,
    overwrite_option,
    json_option,
)


def em_options(tol: float) -> Callable[[F], F]:
    """What the commands that fit have in common."""
    least = click.option(
        "--tol", type=click.FloatRange(0), default=tol, show_default=True, help="Least gain, per sample."
    )

    def decorate(command: F) -> F:
        for option in reversed((least, *_em_options)):
            command = option(command)
        return command

    return decorate


@click.command()
@click.argument("store")
@click.option(
    "--family",
    type=click.Choice(list(_MIXTURES)),
    default="gaussian",
    show_default=True,
    help="Of the components; bayesian: Gaussian, superfluous ones end without rows, and --tol is 1e-05 by default.",
)
@components_option
@covariance_option
@click.option("--alpha", type=click.FloatRange(0), default=0, help="Smoothing, of families that are not Gaussian.")
@click.option(
    "--weight-concentration",
    "weight_concentration_prior",
    type=click.FloatRange(0, min_open=True),
    help="Bayesian: the smaller, the fewer components have rows.  [default: 1 / components]",
)
@click.option(
    "--weights", metavar="NAME", help="Array of the store, perhaps along some dimensions: how often each row counts."
)
@click.option("--labels", metavar="NAME", help="Array of the store: the component of each row, -1 where not known.")
@em_options(tol=1e-3)
def fit(
    store: str,
    family: str,
    weights: str | None,
    labels: str | None,
    array: str | None,
    variables: str | None,
    output: str,
    overwrite: bool,
    as_json: bool,
    scheduler: str | None,
    workers: int | None,
    memory_limit: str,
    **options: Any,
) -> None:
    """Fit a mixture to STORE, a Zarr store or a NetCDF file, and write the model.

    \b
      daskgmm fit patches.zarr --components 32 --workers 4 --memory-limit 512MiB --output model.zarr
      daskgmm fit answers.zarr --family categorical --missing skip --components 4 --n-init 10 --output classes.zarr
      daskgmm fit s3://bucket/ocean.zarr --variables temp,salt --missing drop --components 8 --output model.zarr
    """
    from daskgmm.storage.groups import check_free

    gm = _estimator(family, options)
    check_free(output, overwrite)
    seconds = fitted(gm, store, array, variables, scheduler, workers, memory_limit, weights, labels)
    gm.save(output, overwrite=overwrite)
    result = {
        "output": presentable(output),
        "n_samples": gm.n_samples_,
        "n_features": gm.n_features_in_,
        **({"features": list(gm.feature_names_in_)} if hasattr(gm, "feature_names_in_") else {}),
        "converged": gm.converged_,
        "n_iter": gm.n_iter_,
        "n_passes": gm.n_passes_,
        "lower_bound": gm.lower_bound_,
        "seconds": seconds,
    }
    if hasattr(gm, "n_components_effective_"):
        result["n_components_effective"] = gm.n_components_effective_
    report(result, as_json)


def _estimator(family: str, options: dict[str, Any]) -> Any:
    """The mixture of a family, with the options that the user gives: its own defaults for others."""
    mixture = getattr(daskgmm, _MIXTURES[family])
    ctx = click.get_current_context()
    given = [name for name in options if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
    taken = inspect.signature(mixture).parameters
    for option in (param for param in ctx.command.params if param.name in given and param.name not in taken):
        raise click.UsageError(f"{option.opts[0]} is not for --family {family}: leave it out")
    return mixture(**{name: options[name] for name in ("random_state", *given)})


def fitted(
    estimator: Any,
    store: str,
    array: str | None,
    variables: str | None,
    scheduler: str | None,
    workers: int | None,
    memory_limit: str,
    weights: str | None = None,
    labels: str | None = None,
) -> float:
    """Fit an estimator to a store, with a bar, where the options say; returns the seconds."""
    samples = samples_in(store, array, variables, estimator.missing, weights, labels)
    begin = time.perf_counter()
    with workers_for(scheduler, workers, memory_limit):
        estimator.set_params(verbose=2).fit(samples)
    return round(time.perf_counter() - begin, 3)
