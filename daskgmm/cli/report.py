"""A page about a model."""

from __future__ import annotations

import contextlib

import click

from daskgmm.cli.console import input_options, missing_as_fitted_option, overwrite_option, where_options
from daskgmm.cli.inputs import model_and_samples, workers_for
from daskgmm.urls import presentable


@click.command()
@click.argument("model")
@click.argument("store", required=False)
@missing_as_fitted_option
@input_options
@where_options
@click.option(
    "-o", "--output", default="report.html", show_default=True, metavar="PATH", help="Local path or fsspec URL."
)
@overwrite_option
def report(
    model: str,
    store: str | None,
    missing: str | None,
    array: str | None,
    variables: str | None,
    scheduler: str | None,
    workers: int | None,
    memory_limit: str,
    output: str,
    overwrite: bool,
) -> None:
    """Write a page about MODEL: what was fitted, how it converged, its components.

    With STORE also how the data lie in it, from one pass over all of them: histograms, uncertainty, the rows that it
    explains worst. The page is one file, which needs no network.

    \b
      daskgmm report model.zarr ocean.zarr --output report.html
      daskgmm report model.zarr s3://bucket/ocean.zarr --scheduler tcp://10.0.0.1:8786
    """
    from daskgmm.reporting.output import check_free, write
    from daskgmm.reporting.page import page

    check_free(output, overwrite)
    samples = None if store is None else model_and_samples(model, store, array, variables, missing)[1]
    # Without data there is nothing for workers to do.
    with contextlib.nullcontext() if samples is None else workers_for(scheduler, workers, memory_limit):
        text = page(model, samples, store or "", missing)
    write(output, text)
    click.echo(f"{presentable(output)}: {len(text.encode()) / 2**10:,.0f} KiB")
