"""Which candidate of a search is best, and by how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskgmm.plotting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = 5  # models that are few enough for a line each


def plot_selection(results: Any, *, title: str = "") -> Figure:
    """An information criterion over the number of components and the covariance model.

    Parameters
    ----------
    results : xarray.Dataset
        `daskgmm.GaussianMixtureIC.results_`.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
        Up to five models: a line each, that of the best candidate in colour; a gap where one failed. More: a field of
        how far candidates are from the best, in colours of a logarithmic scale; blank where one failed. The best of all
        is marked.
    """
    from matplotlib.ticker import MaxNLocator

    name = results.attrs["criterion"]
    values = results[name].transpose("covariance_type", "n_components").values
    ks, models = results["n_components"].values, results["covariance_type"].values
    best = np.unravel_index(np.nanargmin(values), values.shape)
    figure = style.figure(7.5, 4.5)
    axes = figure.subplots()
    (_draw_lines if len(models) <= _LINES else _draw_field)(axes, ks, models, values, best, name.upper())
    axes.set_xlabel("number of components")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    at_best = f"{models[best[0]]}, {ks[best[1]]} components"
    style.title(figure, title or f"{at_best}: {name.upper()} {style.number(float(values[best]))}")
    return figure


def _draw_lines(axes: Axes, ks: Any, models: Any, values: Any, best: tuple[Any, ...], name: str) -> None:
    from scipy.optimize import isotonic_regression

    colours = [style.STAGES["data"] if i == best[0] else style.FAINT for i in range(len(values))]
    for line, colour in zip(values, colours, strict=True):
        axes.plot(ks, line, color=colour, marker="o", markersize=4, zorder=2 + (colour != style.FAINT))
    axes.plot(ks[best[1]], values[best], marker="o", markersize=11, markerfacecolor="none", color=style.STAGES["data"])
    low, high = axes.get_ylim()
    known = [line[np.isfinite(line)] for line in values]
    named = sorted((i for i, line in enumerate(known) if len(line)), key=lambda i: known[i][-1])
    # Names of lines that end close stand one above the other, as near to the ends as that allows.
    apart = 0.045 * (high - low) * np.arange(len(named))
    places = apart + isotonic_regression([known[i][-1] for i in named] - apart).x
    for i, place in zip(named, places, strict=True):
        axes.text(
            1.01, place, str(models[i]), color=colours[i], fontsize=9, va="center",
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    axes.set_ylabel(f"{name} (lower is better)")
    style.bare(axes)


def _draw_field(axes: Axes, ks: Any, models: Any, values: Any, best: tuple[Any, ...], name: str) -> None:
    from matplotlib.colors import LogNorm

    behind = values - values[best]
    others = behind[behind > 0]
    scale = LogNorm(others.min(), others.max(), clip=True) if len(others) else None
    field = axes.pcolormesh(ks, np.arange(len(models)), behind, cmap="Blues_r", norm=scale)
    axes.plot(ks[best[1]], best[0], marker="o", markersize=8, markerfacecolor="none", color=style.STAGES["sample"])
    axes.set_yticks(np.arange(len(models)), models)
    axes.invert_yaxis()
    bar = axes.figure.colorbar(field, ax=axes)
    bar.set_label(f"{name} above the best", color=style.INK)
    for side in (axes, bar.ax):
        side.tick_params(length=0, labelsize=9, colors=style.INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
