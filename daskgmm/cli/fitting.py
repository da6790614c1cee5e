"""To fit a model, and to know before what that takes."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

import daskgmm
from daskgmm.cli.inputs import samples_in, workers_for
from daskgmm.console import (
    F,
    input_options,
    json_option,
    missing_option,
    output_option,
    overwrite_option,
    report,
    where_options,
)
from daskgmm.families import PRODUCTS

if TYPE_CHECKING:
    from daskgmm.planning import Plan

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
    help="Of the components; bayesian: Gaussian, and superfluous ones end without rows.",
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
@em_options(tol=1e-3)
def fit(
    store: str,
    family: str,
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
    """Fit a mixture to STORE and write the model.

    \b
      daskgmm fit patches.zarr --components 32 --workers 4 --memory-limit 512MiB --output model.zarr
      daskgmm fit answers.zarr --family categorical --missing skip --components 4 --n-init 10 --output classes.zarr
      daskgmm fit s3://bucket/ocean.zarr --variables temp,salt --missing drop --components 8 --output model.zarr
    """
    from daskgmm.data.write import check_free

    gm = _estimator(family, options)
    check_free(output, overwrite)
    seconds = fitted(gm, store, array, variables, scheduler, workers, memory_limit)
    gm.save(output, overwrite=overwrite)
    result = {
        "output": output,
        "n_samples": gm.n_samples_,
        "n_features": gm.n_features_in_,
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
    return mixture(random_state=options["random_state"], **{name: options[name] for name in given})


def fitted(
    estimator: Any,
    store: str,
    array: str | None,
    variables: str | None,
    scheduler: str | None,
    workers: int | None,
    memory_limit: str,
) -> float:
    """Fit an estimator to a store, with a bar, where the options say; returns the seconds."""
    samples = samples_in(store, array, variables, estimator.missing)
    begin = time.perf_counter()
    with workers_for(scheduler, workers, memory_limit):
        estimator.set_params(verbose=2).fit(samples)
    return round(time.perf_counter() - begin, 3)


@click.command()
@click.argument("store")
@components_option
@covariance_option
@reg_covar_option
@click.option("--workers", type=click.IntRange(1), help="Worker processes, of one thread each.  [default: one a core]")
@click.option("--remote", is_flag=True, help="The workers have cores of their own, as fast as this machine's.")
@click.option("--memory-limit", metavar="SIZE", help="Of each worker, e.g. 1GiB: refuse what does not fit.")
@click.option("--passes", type=click.IntRange(1), help="Passes of EM over all rows.  [default: 8; typical: 4 to 20]")
@click.option("--budget", type=click.FloatRange(0), default=3, show_default=True, help="Seconds of trying, about.")
@missing_option
@input_options
@json_option
def plan(
    store: str,
    n_components: int,
    covariance_type: str,
    reg_covar: float,
    workers: int | None,
    remote: bool,
    memory_limit: str | None,
    passes: int | None,
    budget: float,
    missing: str,
    array: str | None,
    variables: str | None,
    as_json: bool,
) -> None:
    """What a fit to STORE would take, from a few seconds of trying on it. Nothing is written.

    \b
      daskgmm plan patches.zarr --components 32 --workers 4 --memory-limit 512MiB
      daskgmm plan s3://bucket/ocean.zarr --variables temp,salt --components 8 --workers 1000 --remote
    """
    from dask.system import CPU_COUNT
    from dask.utils import parse_bytes

    from daskgmm.calibration import calibrate
    from daskgmm.families.covariance import MODELS
    from daskgmm.families.gaussian import Gaussian
    from daskgmm.passes import check_memory
    from daskgmm.planning import PASSES, Plan, Work

    samples = samples_in(store, array, variables, missing)
    if memory_limit is not None:
        check_memory(samples, parse_bytes(memory_limit))
    family = Gaussian(MODELS[covariance_type], reg_covar)
    workers = workers or CPU_COUNT
    at_once = CPU_COUNT if remote else min(workers, CPU_COUNT)
    rates, components = calibrate(samples, family, n_components, missing=missing, at_once=at_once, budget=budget)
    few, typical, many = (passes, passes, passes) if passes else PASSES
    planned = Plan(Work.of(samples, components), rates, workers, CPU_COUNT, remote, typical)
    report(_figures(planned, few, many) if as_json else _words(planned, few, many), as_json)


def _figures(plan: Plan, few: int, many: int) -> dict[str, Any]:
    """A plan with every term, in bytes and seconds."""
    terms = ("compute", "scheduling", "reduction", "broadcast", "one_pass", "last_pass", "survey", "sample")
    return {
        **asdict(plan),
        "most_workers": plan.most_workers,
        **{name: getattr(plan, name) for name in terms},
        "minutes": plan.seconds() / 60,
        "least_minutes": plan.seconds(few) / 60,
        "largest_minutes": plan.seconds(many) / 60,
        "core_hours": plan.seconds() * plan.at_once / 3600,
    }


def _words(plan: Plan, few: int, many: int) -> dict[str, str]:
    """The same, to read."""
    from dask.utils import format_bytes

    work, rates, at_once = plan.work, plan.rates, plan.at_once
    stored = "unknown" if work.stored_bytes is None else format_bytes(work.stored_bytes)
    where = "with cores of their own" if plan.remote else f"on {plan.cores} core{'s' if plan.cores > 1 else ''}"
    typical = "as given" if few == many else f"typical, from {few} to {many}"
    span = "" if few == many else f" (from {plan.seconds(few) / 60:.3g} to {plan.seconds(many) / 60:.3g})"
    per_row = f"{1e9 * rates.decode:.3g} ns to read and decode, {1e9 * rates.arithmetic:.3g} ns of arithmetic"
    return {
        "rows": f"{work.rows:,} of {work.features} features, {work.components} components",
        "bytes a pass": f"{format_bytes(work.decoded_bytes)}, stored: {stored}",
        "flops a pass": f"{work.flops:.3g}",
        "tasks a pass": f"{work.blocks:,} blocks, {work.sums:,} sums in {work.levels} levels",
        "memory a worker": f"{format_bytes(int(work.worker_bytes))} at least",
        "one core, a row": f"{per_row}, {1e9 * rates.scan:.3g} ns for the survey (measured)",
        "workers": f"{plan.workers:,} {where}; from {plan.most_workers:,} on, more change nothing",
        "compute": f"{plan.compute:.3g} s: {-(-work.blocks // at_once):,} blocks one after the other",
        "scheduling": f"{plan.scheduling:.3g} s meanwhile, after {rates.submit:.3g} s to submit",
        "reduction": f"{plan.reduction:.3g} s: messages of {format_bytes(work.message_bytes)}",
        "broadcast": f"{plan.broadcast:.3g} s",
        "M-step": f"{rates.maximize:.3g} s (measured)",
        "a pass": f"{plan.one_pass:.3g} s, the last one {plan.last_pass:.3g} s",
        "before": f"{rates.start:.3g} s to start, {plan.survey:.3g} s of survey, {plan.sample:.3g} s on a sample",
        "passes": f"{plan.passes} ({typical}), and the survey",
        "minutes": f"{plan.seconds() / 60:.3g}{span}",
        "core-hours": f"{plan.seconds() * at_once / 3600:.3g}",
    }
