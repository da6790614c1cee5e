"""What the commands share: errors of one line, options, and results as text or JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import click

from daskgmm.urls import presentable

F = TypeVar("F", bound=Callable[..., Any])


class Group(click.Group):
    """Commands whose errors are one line on stderr and a non-zero exit."""

    def invoke(self, ctx: click.Context) -> Any:
        warnings.showwarning = _show_warning
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:  # whatever it is, a person reads it
            if ctx.params.get("debug"):
                raise
            text = presentable(" ".join(str(error).split())) or type(error).__name__
            click.echo(f"Error: {text}", err=True)
            ctx.exit(1)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Warning: {presentable(' '.join(str(message).split()))}", err=True)


def input_options(command: F) -> F:
    command = click.option("--variables", metavar="A,B,C", help="Variables that are the features.")(command)
    return click.option("--array", metavar="NAME", help="Array of a group, with the features last.")(command)


def where_options(command: F) -> F:
    for option in (
        click.option("--memory-limit", default="auto", show_default=True, help="Of each local worker, e.g. 1GiB."),
        click.option(
            "--workers",
            type=click.IntRange(0),
            help="Local worker processes, of one thread each; 0: threads of this process.  [default: one a core]",
        ),
        click.option("--scheduler", metavar="ADDRESS", help="A running Dask scheduler, e.g. tcp://10.0.0.1:8786."),
    ):
        command = option(command)
    return command


missing_option = click.option(
    "--missing",
    type=click.Choice(["raise", "drop", "skip", "fill"]),
    default="raise",
    show_default=True,
    help="NaN or infinity: refuse it, leave out its row, or only itself (not in Gaussian families). "
    "fill: chunks that the store lacks hold its fill value.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what daskgmm wrote at the output before.")
output_option = click.option("--output", required=True, metavar="PATH", help="Local path or fsspec URL.")


def as_text(result: Any) -> str:
    """JSON, which knows no NaN and no infinities: null in their place."""
    found = json.loads(json.dumps(result), parse_constant=lambda constant: None)
    return json.dumps(found)


def report(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(as_text(result))
        return
    width = max(map(len, result))
    for name, value in result.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        click.echo(f"{name:{width}}  {value:,}" if is_number else f"{name:{width}}  {value}")
