"""To know before a fit what it takes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from daskgmm.cli.console import input_options, json_option, missing_option, report
from daskgmm.cli.fitting import components_option, covariance_option, reg_covar_option
from daskgmm.cli.inputs import samples_in

if TYPE_CHECKING:
    from daskgmm.planning.plan import Plan


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

    from daskgmm.families.covariance import MODELS
    from daskgmm.families.gaussian import Gaussian
    from daskgmm.passes.memory import check_memory
    from daskgmm.planning.measure import calibrate
    from daskgmm.planning.plan import PASSES, Plan, Work

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
    """Format the plan as text."""
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
