"""The command line. Wiring only; what a command needs is imported when it runs, so that it starts fast."""

from __future__ import annotations

import json
import sys
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from daskgmm.console import (
    Group,
    input_options,
    json_option,
    missing_option,
    output_option,
    overwrite_option,
    report,
    where_options,
)

if TYPE_CHECKING:
    from daskgmm.data.blocks import Samples


@click.group(cls=Group, name="gmm", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="daskgmm", prog_name="daskgmm")
def main(debug: bool) -> None:
    """Gaussian mixtures by EM, on Zarr stores larger than memory.

    STORE is a Zarr array or group: a local path or an fsspec URL.

    \b
      daskgmm fit profiles.zarr --variables temperature,salinity --components 8 --output model.zarr
      daskgmm predict model.zarr profiles.zarr --output labels.zarr
    """


@main.command()
@click.argument("store")
@click.option("--components", "n_components", type=click.IntRange(1), required=True, help="Number of components.")
@click.option(
    "--covariance",
    "covariance_type",
    type=click.Choice(["full", "tied", "diag", "spherical"]),
    default="full",
    show_default=True,
)
@click.option("--tol", type=click.FloatRange(0), default=1e-3, show_default=True, help="Least gain a pass, per sample.")
@click.option("--max-iter", type=click.IntRange(0), default=100, show_default=True, help="Most passes of EM.")
@click.option(
    "--n-init", type=click.IntRange(1), default=1, show_default=True, help="Starts, of which the best is kept."
)
@click.option(
    "--init",
    "init_params",
    type=click.Choice(["kmeans", "k-means++", "random", "random_from_data"]),
    default="kmeans",
    show_default=True,
)
@click.option("--reg-covar", type=click.FloatRange(0), default=1e-6, show_default=True, help="Added to variances.")
@click.option(
    "--subsample", type=click.IntRange(0), default=100_000, show_default=True, help="Rows to start on; 0: all."
)
@click.option("--seed", "random_state", type=click.IntRange(0), default=0, show_default=True)
@missing_option
@input_options
@where_options
@output_option
@overwrite_option
@json_option
def fit(
    store: str,
    array: str | None,
    variables: str | None,
    output: str,
    overwrite: bool,
    as_json: bool,
    scheduler: str | None,
    workers: int | None,
    memory_limit: str,
    subsample: int,
    **options: Any,
) -> None:
    """Fit a mixture to STORE and write the model.

    \b
      daskgmm fit patches.zarr --components 32 --workers 4 --memory-limit 512MiB --output model.zarr
      daskgmm fit s3://bucket/ocean.zarr --variables temp,salt --missing drop --components 8 --output model.zarr
    """
    from daskgmm.data.write import check_free
    from daskgmm.estimators.gaussian import GaussianMixture

    check_free(output, overwrite)
    gm = GaussianMixture(subsample=subsample or None, verbose=2, **options)
    samples = _samples(store, array, variables, gm.missing)
    begin = time.perf_counter()
    with _workers(scheduler, workers, memory_limit):
        gm.fit(samples)
    gm.save(output, overwrite=overwrite)
    result = {
        "output": output,
        "n_samples": gm.n_samples_,
        "n_features": gm.n_features_in_,
        "converged": gm.converged_,
        "n_iter": gm.n_iter_,
        "n_passes": gm.n_passes_,
        "lower_bound": gm.lower_bound_,
        "seconds": round(time.perf_counter() - begin, 3),
    }
    report(result, as_json)


@main.command()
@click.argument("model")
@click.argument("store")
@click.option("--proba", is_flag=True, help="Write the responsibilities too.")
@click.option("--log-density", is_flag=True, help="Write the log-densities too.")
@missing_option
@input_options
@where_options
@output_option
@overwrite_option
def predict(
    model: str,
    store: str,
    proba: bool,
    log_density: bool,
    missing: str,
    array: str | None,
    variables: str | None,
    scheduler: str | None,
    workers: int | None,
    memory_limit: str,
    output: str,
    overwrite: bool,
) -> None:
    """Label each sample of STORE by MODEL, in a Zarr group with the coordinates of STORE.

    The output opens when it is complete. A run that was killed is finished by the same command.

    \b
      daskgmm predict model.zarr ocean.zarr --output labels.zarr
    """
    from tqdm.auto import tqdm

    from daskgmm.labelling import write_predictions
    from daskgmm.prediction import LABELS, LOG_DENSITY, PROBA

    gm, samples = _model_and_samples(model, store, array, variables, missing)
    outputs = [LABELS, *([PROBA] if proba else []), *([LOG_DENSITY] if log_density else [])]
    origin = json.dumps([store, array, list(samples.names or ())])
    with _workers(scheduler, workers, memory_limit), tqdm(desc="predict", unit="row", unit_scale=True) as bar:

        def watch(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        write_predictions(
            samples,
            gm._components(),
            outputs,
            output,
            missing=missing,
            origin=origin,
            overwrite=overwrite,
            watch=watch,
        )
    click.echo(f"{output}: {', '.join(o.name for o in outputs)} of {samples.n:,} samples")


@main.command()
@click.argument("model")
@click.argument("store")
@missing_option
@input_options
@where_options
@json_option
def score(
    model: str,
    store: str,
    missing: str,
    array: str | None,
    variables: str | None,
    scheduler: str | None,
    workers: int | None,
    memory_limit: str,
    as_json: bool,
) -> None:
    """Mean log-density of STORE under MODEL, and BIC, AIC and ICL (lower is better)."""
    gm, samples = _model_and_samples(model, store, array, variables, missing)
    with _workers(scheduler, workers, memory_limit):
        report(gm.scores(samples), as_json)


@main.command()
@click.argument("model")
@click.option("--rows", "n_samples", type=click.IntRange(1), required=True, help="Samples to draw.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@where_options
@output_option
@overwrite_option
def sample(
    model: str,
    n_samples: int,
    seed: int,
    scheduler: str | None,
    workers: int | None,
    memory_limit: str,
    output: str,
    overwrite: bool,
) -> None:
    """Draw samples from MODEL into a Zarr group: `samples` (sample, feature) and `component`."""
    from daskgmm.estimators.gaussian import load
    from daskgmm.labelling import write_samples

    gm = load(model)
    with _workers(scheduler, workers, memory_limit):
        write_samples(gm._family(), gm._parameters(), n_samples, seed, output, overwrite=overwrite)
    click.echo(f"{output}: {n_samples:,} samples of {gm.n_features_in_} features")


@main.command()
@click.argument("model")
@json_option
def show(model: str, as_json: bool) -> None:
    """What MODEL is, and how it was fitted."""
    import pandas as pd

    from daskgmm.persistence import read

    ds = read(model)
    fitted = json.loads(ds.attrs["fit"])
    if as_json:
        values = {name: ds[name].values.tolist() for name in ("weights", "means", "covariances")}
        click.echo(json.dumps({**json.loads(ds.attrs["params"]), **fitted, **values}))
        return
    click.echo(f"{ds.attrs['title']} ({json.loads(ds.attrs['params'])['covariance_type']} covariances)")
    report(fitted, False)
    table = pd.DataFrame(ds["means"].values, columns=ds["feature"].values)
    table.index.name = "component"
    table.insert(0, "weight", ds["weights"].values)
    click.echo(table.to_string(float_format="{:.6g}".format, max_cols=10))


@main.command()
@click.option("--output", default="daskgmm-demo", show_default=True, metavar="DIR", help="Where to put everything.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--memory-limit", default="256MiB", show_default=True, help="Of each worker.")
def demo(output: str, workers: int, memory_limit: str) -> None:
    """Fit 1.6 million image patches, larger than a worker's memory, and draw what was found."""
    from daskgmm.demo import run

    run(output, click.echo, workers=workers, memory_limit=memory_limit)


def _workers(scheduler: str | None, n_workers: int | None, memory_limit: str) -> AbstractContextManager[Any]:
    from daskgmm.cluster import workers

    return workers(scheduler, n_workers, memory_limit)


def _samples(store: str, array: str | None, variables: str | None, missing: str) -> Samples:
    from daskgmm.data.open import open_samples

    if array and variables:
        raise click.UsageError("--array and --variables exclude each other: give one")
    names = variables.split(",") if variables else None
    return open_samples(store, array=array, variables=names, missing=missing)


def _model_and_samples(
    model: str, store: str, array: str | None, variables: str | None, missing: str
) -> tuple[Any, Samples]:
    from daskgmm.estimators.gaussian import load

    gm = load(model).set_params(missing=missing)
    if array is None and variables is None and hasattr(gm, "feature_names_in_"):
        variables = ",".join(gm.feature_names_in_)
    samples = _samples(store, array, variables, missing)
    gm._open(samples)  # do its features fit the model?
    return gm, samples


if __name__ == "__main__":
    sys.exit(main())
