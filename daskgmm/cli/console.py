"""What the commands share: errors of one line, options, and results as text or JSON."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from daskgmm.urls import presentable

_ARGUMENT = re.compile(r"\b(missing)='(\w+)'")  # what is an option here
_AGAIN = 1.0  # s in which another signal is the same one: `timeout` sends two
F = TypeVar("F", bound=Callable[..., Any])


class Stopped(KeyboardInterrupt):
    """By a signal: all that cleans up after Ctrl-C does so after SIGTERM."""


class Group(click.Group):
    """Commands whose errors are one line on stderr and a non-zero exit; stopped by a signal, 128 and its number."""

    def invoke(self, ctx: click.Context) -> Any:
        warnings.showwarning = _show_warning
        try:
            with _signals():
                return super().invoke(ctx)
        except Stopped as stopped:
            number: signal.Signals = stopped.args[0]
            click.echo(
                f"\nStopped by {number.name}: the output is not written, or not complete; run the same command again, "
                "which goes on from a --checkpoint",
                err=True,
            )
            ctx.exit(128 + number)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:  # whatever it is, a person reads it
            if ctx.params.get("debug"):
                raise
            text = presentable(" ".join(str(error).split())) or type(error).__name__
            text = _ARGUMENT.sub(r"--\1 \2", text)
            click.echo(f"Error: {text}", err=True)
            ctx.exit(1)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM stop what runs, and it cleans up."""
    before = {}
    last = -math.inf

    def stop(number: int, _: Any) -> None:
        nonlocal last
        now = time.monotonic()
        last, again = now, now - last < _AGAIN
        if not again:
            raise Stopped(signal.Signals(number))

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # not one that is ignored
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Warning: {presentable(' '.join(str(message).split()))}", err=True)


def input_options(command: F) -> F:
    command = click.option("--variables", metavar="A,B,C", help="Variables that are the features.")(command)
    return click.option("--array", metavar="NAME", help="Array of a group, with the features last.")(command)


def _worker_timeout(ctx: click.Context, option: click.Parameter, value: str | None) -> None:
    """For as long as the command runs, of Dask's configuration."""
    if value is None:
        return
    import dask
    from dask.utils import parse_timedelta

    try:
        seconds = parse_timedelta(value)
    except (LookupError, ValueError):
        seconds = 0
    if not seconds > 0:
        raise click.BadParameter(f"{value!r} is not a time: write 90, 90s or 5m", ctx, option)
    ctx.with_resource(dask.config.set({"daskgmm.worker-timeout": seconds}))


def where_options(command: F) -> F:
    for option in (
        click.option(
            "--worker-timeout",
            metavar="TIME",
            callback=_worker_timeout,
            expose_value=False,
            help="Give up where no worker has worked for so long.  [default: 10m]",
        ),
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


def _missing_option(default: str | None, otherwise: str) -> Callable[[F], F]:
    return click.option(
        "--missing",
        type=click.Choice(["raise", "drop", "skip", "fill"]),
        default=default,
        show_default=default is not None,
        help="NaN or infinity: refuse it, leave out its row, or only itself (not in Gaussian families). "
        f"fill: chunks that the store lacks hold its fill value.{otherwise}",
    )


missing_option = _missing_option("raise", "")
missing_as_fitted_option = _missing_option(None, "  [default: as the model was fitted]")
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
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        click.echo(f"{name:{width}}  {value:,}" if is_number else f"{name:{width}}  {value}")
