"""The command line. Wiring only; what a command needs is imported when it runs, so that it starts fast."""

from __future__ import annotations

import click

from daskgmm.cli import demo, fitting, model, planning, report, selection
from daskgmm.cli.console import Group


@click.group(cls=Group, name="gmm", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="daskgmm", prog_name="daskgmm")
def main(debug: bool) -> None:
    """Mixtures by EM, on Zarr stores larger than memory.

    STORE is a Zarr array or group: a local path or an fsspec URL.

    \b
      daskgmm fit profiles.zarr --variables temperature,salinity --components 8 --output model.zarr
      daskgmm predict model.zarr profiles.zarr --output labels.zarr
    """


for command in (
    fitting.fit,
    planning.plan,
    selection.select,
    model.predict,
    model.score,
    model.sample,
    model.show,
    report.report,
    demo.demo,
):
    main.add_command(command)
