"""Pictures of what a pass costs, as PNG files.

python tests/benchmarks/pictures.py pictures            # a quarter of an hour
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import click
import numpy as np
import peers
import zarr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from passes import ours, plain
from peers import in_memory, mixture, on_workers, our_pass, write_store
from problems import PROBLEMS
from sklearn.datasets import load_digits

from daskgmm import BernoulliMixture
from daskgmm.data.blocks import joined
from daskgmm.data.open import open_samples

_AXES = {  # (rows, features, components), of which one varies
    "rows": [(n, 16, 16) for n in (25_000, 50_000, 100_000, 200_000, 400_000)],
    "features": [(100_000, d, 16) for d in (4, 8, 16, 32, 64)],
    "components": [(100_000, 16, k) for k in (4, 8, 16, 32, 64)],
}
_PEERS = ("daskgmm", "oneDAL", "scikit-learn")
# Okabe & Ito 2008
_COLOURS = {"daskgmm": "#0072B2", "oneDAL": "#D55E00", "scikit-learn": "#009E73", "plain EM": "#CC79A7"}
_PROBLEMS, _LIMIT, _NEAR = (3, 6, 8), 600, 1e-6  # of those in problems.py; passes; nats a row, taken as none
_SIZES = (300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000)
_FAINT = "#8a8a8a"

Draw = Callable[[float], Figure]


def draw_shapes(share: float) -> Figure:
    """Seconds of a pass over rows, features and components, beside those of other libraries."""
    figure, panels = _figure(12, 4, len(_AXES), "Seconds for one EM iteration, in memory, in double precision")
    for i, (axes, (name, shapes)) in enumerate(zip(panels, _AXES.items(), strict=True)):
        shapes = [(_rows(n, share), d, k) for n, d, k in shapes]
        at = [shape[i] for shape in shapes]
        for library, times in zip(_PEERS, zip(*map(_iteration, shapes), strict=True), strict=True):
            axes.loglog(at, times, marker="o", markersize=4, color=_COLOURS[library], label=library)
        fixed = zip(_AXES, shapes[0], strict=True)
        _label(axes, name, "seconds" if i == 0 else "", at)
        axes.set_title(", ".join(f"{value:,} {other}" for other, value in fixed if other != name), fontsize=10)
    panels[0].legend(frameon=False)
    return figure


def draw_growth(share: float) -> Figure:
    """Seconds of a pass from a store, as its rows grow."""
    figure, (axes,) = _figure(7.5, 4.5, 1, "Cost as rows grow: 8 features, 8 components, Zarr, 2 workers")
    sizes = [_rows(n, share) for n in _SIZES]
    with tempfile.TemporaryDirectory() as folder:
        times = [taken for taken, _, _ in peers.scaled(Path(folder) / "data.zarr", sizes, 8, 8, 3)]
    axes.loglog(sizes, times, marker="o", color=_COLOURS["daskgmm"], label="a pass")
    axes.loglog(sizes, times[-1] * np.array(sizes) / sizes[-1], color=_FAINT, linestyle=":", label="in proportion")
    _label(axes, "rows", "seconds", sizes)
    axes.legend(frameon=False)
    return figure


def draw_places(share: float) -> Figure:
    """Seconds of a pass with one and two workers, and on the threads of one process from a store and from memory."""
    n, d, k = _rows(2_000_000, share), 16, 64
    figure, (axes,) = _figure(7.5, 4.5, 1, f"Seconds for one pass: {n:,} rows, {d} features, {k} components")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.zarr"
        start = write_store(path, n, d, k)
        times = {
            "1 worker,\nstore": on_workers(path, start, 1),
            "2 workers,\nstore": on_workers(path, start, 2),
            "threads,\nstore": our_pass(joined(open_samples(path)), start)(),
            "threads,\nmemory": our_pass(in_memory(zarr.open_array(path, mode="r")[:]), start)(),
        }
    bars = axes.bar(list(times), list(times.values()), width=0.6, color=_COLOURS["daskgmm"])
    axes.bar_label(bars, fmt="%.3g s", padding=2)
    axes.set_ylabel("seconds")
    return figure


def draw_passes(share: float) -> Figure:
    """How far from the best likelihood known a fit is after so many passes, and after so many seconds."""
    title = "Distance to the best likelihood found, nats a row: plain EM from k-means on all rows, and daskgmm"
    figure, panels = _figure(12, 7, len(_PROBLEMS), title, rows=2)
    for i, problem in enumerate(PROBLEMS[number] for number in _PROBLEMS):
        X = problem.make()
        X = X[: _rows(len(X), share)]
        courses = {
            "plain EM": plain(X, problem.n_components, _LIMIT, 0),
            "daskgmm": ours(X, problem.n_components, 0),
        }
        best = max(course.bounds.max() for course in courses.values())
        for axes, name in ((panels[i], "passes"), (panels[i + len(_PROBLEMS)], "seconds")):
            for label, course in courses.items():
                left = np.maximum(best - course.bounds, _NEAR)
                axes.loglog(getattr(course, name), left, color=_COLOURS[label], label=label, marker=".", markersize=3)
            axes.set_xlabel(name)
        panels[i].set_title(f"{problem.name}, K = {problem.n_components}", fontsize=10)
    panels[0].legend(frameon=False)
    return figure


def draw_digits(share: float) -> Figure:
    """The probabilities of ink of ten Bernoulli components, of scikit-learn's digits as black and white."""
    digits = load_digits()
    gm = BernoulliMixture(10, alpha=1, n_init=10, random_state=0).fit(digits.images.reshape(-1, 64) > 7)
    title = f"{len(digits.images):,} digits, black and white: the components of a Bernoulli mixture, and their weights"
    figure, panels = _figure(12, 3.2, 5, title, rows=2)
    for axes, k in zip(panels, np.argsort(-gm.weights_), strict=True):
        axes.imshow(gm.means_[k].reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(f"{gm.weights_[k]:.0%}", fontsize=10)
        axes.set_axis_off()
    return figure


def _iteration(shape: tuple[int, int, int]) -> Iterator[float]:
    """Seconds of ours, oneDAL and scikit-learn; NaN for one that is not installed."""
    X, start = mixture(*shape)
    yield our_pass(in_memory(X), start)()
    for peer, rounds in ((peers.onedal, 3), (peers.sklearn, 1)):
        try:
            yield median(peer(X, start) for _ in range(rounds))
        except ImportError:
            yield float("nan")


def _rows(n: int, share: float) -> int:
    return max(1000, round(n * share))


def _figure(width: float, height: float, n: int, title: str, rows: int = 1) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    panels = figure.subplots(rows, n, squeeze=False, sharey=True).ravel()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def _label(axes: Axes, x: str, y: str, ticks: Sequence[int]) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
    axes.minorticks_off()


PICTURES: dict[str, Draw] = {
    "shapes": draw_shapes,
    "passes": draw_passes,
    "growth": draw_growth,
    "places": draw_places,
    "digits": draw_digits,
}


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--only", default=",".join(PICTURES), show_default=True, help="Pictures, with commas between them.")
@click.option("--quick", is_flag=True, help="A tenth of the rows.")
@click.option("--share", default=1.0, hidden=True, help="Of the rows.")
def main(directory: Path, only: str, quick: bool, share: float) -> None:
    names = only.split(",")
    if unknown := set(names) - set(PICTURES):
        raise click.BadParameter(f"there is no picture {', '.join(sorted(unknown))}", param_hint="--only")
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = directory / f"{name}.png"
        PICTURES[name](share / 10 if quick else share).savefig(path, dpi=150)
        click.echo(path)


if __name__ == "__main__":
    main()
