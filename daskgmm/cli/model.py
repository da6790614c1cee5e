"""What a fitted model is for."""

from __future__ import annotations

import json

import click

from daskgmm.cli.console import (
    as_text,
    input_options,
    json_option,
    missing_as_fitted_option,
    output_option,
    overwrite_option,
    report,
    where_options,
)
from daskgmm.cli.inputs import model_and_samples, workers_for
from daskgmm.urls import presentable


@click.command()
@click.argument("model")
@click.argument("store")
@click.option("--proba", is_flag=True, help="Write the responsibilities too.")
@click.option("--log-density", is_flag=True, help="Write the log-densities too.")
@missing_as_fitted_option
@input_options
@where_options
@output_option
@overwrite_option
def predict(
    model: str,
    store: str,
    proba: bool,
    log_density: bool,
    missing: str | None,
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

    from daskgmm.stages import label

    gm, samples = model_and_samples(model, store, array, variables, missing)
    with workers_for(scheduler, workers, memory_limit), tqdm(desc="predict", unit="row", unit_scale=True) as bar:

        def watch(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        names = label(
            gm,
            samples,
            (store, array),
            output,
            proba=proba,
            log_density=log_density,
            overwrite=overwrite,
            watch=watch,
        )
    click.echo(f"{presentable(output)}: {', '.join(names)} of {samples.n:,} samples")


@click.command()
@click.argument("model")
@click.argument("store")
@missing_as_fitted_option
@input_options
@where_options
@json_option
def score(
    model: str,
    store: str,
    missing: str | None,
    array: str | None,
    variables: str | None,
    scheduler: str | None,
    workers: int | None,
    memory_limit: str,
    as_json: bool,
) -> None:
    """Mean log-density of STORE under MODEL, and BIC, AIC and ICL (lower is better)."""
    gm, samples = model_and_samples(model, store, array, variables, missing)
    with workers_for(scheduler, workers, memory_limit):
        report(gm.scores(samples), as_json)


@click.command()
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
    from daskgmm.estimators.mixture import load
    from daskgmm.prediction.write import write_samples

    gm = load(model)
    with workers_for(scheduler, workers, memory_limit):
        write_samples(gm._fitted(), gm._parameters(), n_samples, seed, output, overwrite=overwrite)
    click.echo(f"{presentable(output)}: {n_samples:,} samples of {gm.n_features_in_} features")


@click.command()
@click.argument("model")
@json_option
def show(model: str, as_json: bool) -> None:
    """What MODEL is, and how it was fitted."""
    from daskgmm.estimators.tables import components
    from daskgmm.storage.models import read

    ds = read(model)
    fitted = json.loads(ds.attrs["fit"])
    if as_json:
        hidden = ("precisions_cholesky", "lower_bounds")
        values = {name: ds[name].values.tolist() for name in ds.data_vars if name not in hidden}
        click.echo(as_text({**json.loads(ds.attrs["params"]), **fitted, **values}))
        return
    model = json.loads(ds.attrs["params"]).get("covariance_type")
    click.echo(ds.attrs["title"] + (f" ({model} covariances)" if model else ""))
    report({name: value for name, value in fitted.items() if not isinstance(value, list)}, False)
    names = list(ds[ds["means"].dims[1]].values)
    if "units" in ds and ds["means"].dims[1] == "feature":
        names = [f"{name} ({units})" if units else name for name, units in zip(names, ds["units"].values, strict=True)]
    table = components(ds["weights"].values, ds["means"].values, names)
    click.echo(table.to_string(float_format="{:.6g}".format, max_cols=10))
