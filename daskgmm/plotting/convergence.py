"""How the likelihood grew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskgmm.em.info import Info
from daskgmm.plotting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FALL = 4.0  # a first pass that lies so many times deeper than the rest is tall would flatten it to a line


def plot_convergence(fit: Any, *, tol: float | None = None, title: str = "Log-likelihood of each pass") -> Figure:
    """The log-likelihood of each pass, and how much it changed.

    Parameters
    ----------
    fit : estimator, sequence of Info or sequence of float
        A fitted mixture, its ``history_`` or its ``lower_bounds_``.
    tol : float, optional
        The change at which EM stops, to be drawn beside the changes; default: the estimator's.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
        The log-likelihood above, its change below; passes over a sample and over all data in colours of their own.
    """
    from matplotlib.ticker import MaxNLocator

    tol = getattr(fit, "tol", None) if tol is None else tol
    stages = _by_stage(getattr(fit, "history_", None) or getattr(fit, "lower_bounds_", fit))
    figure = style.figure(7.5, 5.5)
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 2]})
    start = 0
    for stage, (bounds, label) in stages.items():
        passes = np.arange(start + 1, start + len(bounds) + 1)
        line = {"color": style.STAGES[stage], "marker": "o", "markersize": 4, "linewidth": 1.6, "label": label}
        above.plot(passes, bounds, **line)
        change = np.abs(np.diff(bounds))
        below.plot(passes[1:], np.where(change > 0, change, np.nan), **line)
        above.annotate(
            style.number(bounds[-1]), (passes[-1], bounds[-1]), (0, 7), textcoords="offset points",
            ha="center", color=style.STAGES[stage], fontsize=9,
        )  # fmt: skip
        start += len(bounds)
    _focus(above, [bounds for bounds, _ in stages.values()], 10 * (tol or 0))
    above.ticklabel_format(useOffset=False)
    if len(stages) > 1:
        above.legend(frameon=False, loc="lower right", labelcolor="linecolor", handlelength=1.2)
    if any(np.diff(bounds).any() for bounds, _ in stages.values()):
        below.set_yscale("log")
    if tol:
        below.axhline(tol, color=style.FAINT, linewidth=1, linestyle=(0, (4, 3)))
        below.annotate(
            f"tol = {tol:g}", (0, tol), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="left", va="bottom", color=style.FAINT, fontsize=9,
        )  # fmt: skip
    above.set_ylabel("log-likelihood\n(nats per sample)")
    below.set_ylabel("change in a pass\n(nats per sample)")
    gap = any((np.diff(bounds) == 0).any() for bounds, _ in stages.values())
    below.set_xlabel("pass (a gap: it changed nothing)" if gap else "pass")
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in (above, below):
        style.bare(axes)
    figure.align_ylabels()
    style.title(figure, title)
    return figure


def _by_stage(history: Iterable[Any]) -> dict[str, tuple[list[float], str]]:
    """Log-likelihoods, and what they are of, stage by stage in their order."""
    stages: dict[str, list[Any]] = {}
    for entry in history:
        stages.setdefault(entry.stage if isinstance(entry, Info) else "data", []).append(entry)
    return {
        stage: (
            [float(e.lower_bound if isinstance(e, Info) else e) for e in entries],
            f"on a sample of {entries[0].n_samples:,} rows"
            if stage == "sample"
            else (f"on all {entries[0].n_samples:,} rows" if isinstance(entries[0], Info) else "all rows"),
        )
        for stage, entries in stages.items()
    }


def _focus(axes: Axes, series: Sequence[Sequence[float]], least: float) -> None:
    """Leave out of the axis a first pass so deep that the rest would be a line, and say so; show no less than that.

    What rounding does to passes in single precision, far below the tolerance, would look like a fall.
    """
    rest = [bound for bounds in series for bound in (bounds[1:] if len(bounds) > 2 else bounds)]
    everything = [bound for bounds in series for bound in bounds]
    if not rest or not np.isfinite(everything).all():
        return
    low, high = min(rest), max(rest)
    if (short := least - (high - low)) > 0:
        low, high = low - short / 2, high + short / 2
    if high > low and low - min(everything) > _FALL * (high - low):
        margin = 0.06 * (high - low)
        axes.set_ylim(low - margin, high + 2 * margin)
        axes.annotate(
            f"from {style.number(min(everything))}", (2, 0), (8, 4), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="left", va="bottom", color=style.FAINT, fontsize=9,
        )  # fmt: skip
    elif short > 0:
        axes.set_ylim(low, high)
