"""Figures of a report that `daskgmm.plotting` has not: what the pass over the data found, beside the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from daskgmm.families.frame import Array
from daskgmm.plotting.style import FAINT, INK, STAGES, bare, figure
from daskgmm.reporting.grid import Grid
from daskgmm.reporting.seen import UNCERTAINTIES, Counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HELD = 0.9  # of a component, by its ellipse
_NUMBERED = 12  # components that are few enough for numbers
_LEAST = 1e-4  # weight of a component that is drawn
_DATA, _MODEL = STAGES["data"], STAGES["sample"]
SIZE = (4.2, 3.3)  # inches: what a phone shows without making letters small


def plot_pair(
    weights: Array,
    means: Array,
    covariances: Array,
    edges: Array,
    counts: Counts | None,
    names: tuple[str, str],
) -> Figure:
    """Components as ellipses over the rows' density in the plane of two features.

    Parameters
    ----------
    weights : ndarray (k,)
    means : ndarray (k, 2)
    covariances : ndarray (k, 2, 2)
    edges : ndarray (2, bins + 1)
    counts : ndarray (bins, bins), optional
        Rows in each bin, the first feature along the first axis.
    names : tuple of str
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.patches import Ellipse

    drawn = figure(*SIZE)
    axes = drawn.subplots()
    if counts is not None and counts.any():
        # From nothing to the colour, so that the page's own background shows; the root lets thin regions show too.
        colours = LinearSegmentedColormap.from_list("rows", [_DATA + "00", _DATA + "ff"])
        axes.imshow(
            counts.T, origin="lower", extent=(*edges[0, [0, -1]], *edges[1, [0, -1]]), aspect="auto",
            cmap=colours, norm=PowerNorm(0.5, 0, counts.max()), interpolation="none",
        )  # fmt: skip
    few = len(weights) <= _NUMBERED
    radius = np.sqrt(-2 * np.log(1 - HELD))  # of a Gaussian in two features
    for k in np.flatnonzero(weights > _LEAST):
        variances, axes_of = np.linalg.eigh(covariances[k])
        widths = 2 * radius * np.sqrt(np.maximum(variances, 0))
        turn = np.degrees(np.arctan2(axes_of[1, 1], axes_of[0, 1]))
        axes.add_patch(
            Ellipse(
                means[k], widths[1], widths[0], angle=turn, fill=False, edgecolor=_MODEL, linewidth=1.3 if few else 0.9
            )
        )
        if few:
            axes.annotate(str(k), means[k], ha="center", va="center", color=INK, fontsize=9, fontweight="bold")
        else:
            axes.plot(*means[k], marker="o", markersize=2.5, color=_MODEL)
    axes.set(xlim=edges[0, [0, -1]], ylim=edges[1, [0, -1]], xlabel=names[0], ylabel=names[1])
    _finish(axes)
    axes.grid(False)
    return drawn


def plot_marginal(
    weights: Array, means: Array, deviations: Array, edges: Array, counts: Counts | None, n: int, name: str
) -> Figure:
    """The density of a feature: of the rows, of the mixture and of its components, (k,) each."""
    drawn = figure(*SIZE)
    axes = drawn.subplots()
    width = np.diff(edges)
    if counts is not None and n:
        axes.stairs(counts / (n * width), edges, fill=True, color=_DATA, alpha=0.45, label="rows", linewidth=0)
    # Of each bin, as the rows are counted: a component narrower than a bin is drawn as those would be.
    shares = weights[:, None] * np.diff(ndtr((edges - means[:, None]) / deviations[:, None]), axis=1) / width
    centres = (edges[1:] + edges[:-1]) / 2
    for share in shares[weights > _LEAST]:
        axes.plot(centres, share, color=FAINT, linewidth=0.8)
    axes.plot(centres, shares.sum(axis=0), color=_MODEL, linewidth=1.6, label="model")
    axes.set(xlim=edges[[0, -1]], xlabel=name, ylabel="density")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=False)
    _finish(axes)
    return drawn


def plot_uncertainty(uncertainty: Counts) -> Figure:
    """Rows by one less their largest responsibility: (bins,)."""
    drawn = figure(*SIZE)
    axes = drawn.subplots()
    axes.stairs(uncertainty, UNCERTAINTIES, fill=True, color=_DATA, alpha=0.8)
    last = np.flatnonzero(uncertainty).max(initial=0) + 1
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.set_xlim(0, float(UNCERTAINTIES[max(last, 5)]))
    axes.set(xlabel="1 \N{MINUS SIGN} largest responsibility", ylabel="rows")
    _finish(axes)
    return drawn


def pair_of(grid: Grid, pair: int, covariances: Array) -> tuple[list[int], Array]:
    """The two features of a pair, and the components' covariances in their plane: (k, 2, 2)."""
    features = [grid.features[i] for i in grid.pairs[pair]]
    if covariances.ndim == 2:
        return features, np.einsum("ki,ij->kij", covariances[:, features], np.eye(2))
    return features, covariances[:, np.array(features)[:, None], features]


def _finish(axes: Axes) -> None:
    bare(axes)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
