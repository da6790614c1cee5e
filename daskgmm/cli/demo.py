"""The demonstration."""

from __future__ import annotations

import click


@click.command()
@click.option("--output", default="daskgmm-demo", show_default=True, metavar="DIR", help="Where to put everything.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--memory-limit", default="384MiB", show_default=True, help="Of each worker.")
def demo(output: str, workers: int, memory_limit: str) -> None:
    """Fit 1.6 million image patches, larger than a worker's memory, and draw what was found."""
    from daskgmm.demo.run import run

    run(output, click.echo, workers=workers, memory_limit=memory_limit)
