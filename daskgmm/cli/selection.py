"""To choose a model."""

from __future__ import annotations

from typing import Any

import click

from daskgmm.cli.console import report
from daskgmm.cli.fitting import COVARIANCES, em_options, fitted
from daskgmm.urls import presentable


class Numbers(click.ParamType[list[int]]):
    """Numbers of components: 4, 2,4,8 or 1:10, the last one included."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found: list[int] = []
        try:
            for part in value.split(","):
                first, _, last = part.partition(":")
                found += range(int(first), int(last or first) + 1)
        except ValueError:
            found = []
        if not found or min(found) < 1:
            self.fail(f"{value!r} is not a number, a list 2,4,8 or a range 1:10 of numbers from 1 on", param, ctx)
        return found


class Names(click.ParamType[list[str]]):
    """Covariance models, with commas between them."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        names = value.split(",")
        for name in names:
            if name not in COVARIANCES:
                self.fail(f"{name!r} is not one of {', '.join(COVARIANCES)}", param, ctx)
        return names


@click.command()
@click.argument("store")
@click.option("--components", "n_components", type=Numbers(), default="1:10", show_default=True, metavar="1:10|2,4,8")
@click.option(
    "--covariances",
    "covariance_type",
    type=Names(),
    default="full,tied,diag,spherical",
    show_default=True,
    metavar="A,B,C",
    help="scikit-learn's names, or mclust's codes EII to VVV.",
)
@click.option("--criterion", type=click.Choice(["bic", "aic", "icl"]), default="bic", show_default=True)
@em_options(tol=1e-5)
def select(
    store: str,
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
    """Fit mixtures of many kinds and sizes to STORE, in passes that they share, and write the best.

    \b
      daskgmm select ocean.zarr --components 1:10 --covariances VVV,EEE,VEV --output best.zarr

    The criterion is lower for the better model, as in scikit-learn; mclust's is its negative.
    """
    from daskgmm.estimators.selection import GaussianMixtureIC
    from daskgmm.storage.groups import check_free

    check_free(output, overwrite)
    search = GaussianMixtureIC(**options)
    seconds = fitted(search, store, array, variables, scheduler, workers, memory_limit)
    search.save(output, overwrite=overwrite)
    rows = search.results_.to_dataframe().reset_index()
    result = {
        "output": presentable(output),
        **search.best_params_,
        search.criterion: search.best_score_,
        "n_samples": search.n_samples_,
        "n_passes": search.n_passes_,
        "seconds": seconds,
    }
    if as_json:
        result["candidates"] = rows.astype(object).where(rows.notna(), None).to_dict("records")
    else:
        table = rows.pivot(index="n_components", columns="covariance_type", values=search.criterion)
        click.echo(table[search.results_["covariance_type"].values].to_string(float_format="{:,.6g}".format))
        for row in rows[rows["failure"] != ""].itertuples():
            click.echo(f"{row.covariance_type} with {row.n_components}: {row.failure}", err=True)
    report(result, as_json)
