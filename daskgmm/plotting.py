"""Pictures of a fit, as matplotlib figures: save them with ``figure.savefig(path)``, or show them in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from daskgmm import drawing
from daskgmm.em.info import Info

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP = 1  # pixels between two patches
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
    figure = drawing.figure(7.5, 5.5)
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 2]})
    start = 0
    for stage, (bounds, label) in stages.items():
        passes = np.arange(start + 1, start + len(bounds) + 1)
        style = {"color": drawing.STAGES[stage], "marker": "o", "markersize": 4, "linewidth": 1.6, "label": label}
        above.plot(passes, bounds, **style)
        change = np.abs(np.diff(bounds))
        below.plot(passes[1:], np.where(change > 0, change, np.nan), **style)
        above.annotate(
            drawing.number(bounds[-1]), (passes[-1], bounds[-1]), (0, 7), textcoords="offset points",
            ha="center", color=drawing.STAGES[stage], fontsize=9,
        )  # fmt: skip
        start += len(bounds)
    _focus(above, [bounds for bounds, _ in stages.values()])
    if len(stages) > 1:
        above.legend(frameon=False, loc="lower right", labelcolor="linecolor", handlelength=1.2)
    if any(np.diff(bounds).any() for bounds, _ in stages.values()):
        below.set_yscale("log")
    if tol:
        below.axhline(tol, color=drawing.FAINT, linewidth=1, linestyle=(0, (4, 3)))
        below.annotate(
            f"tol = {tol:g}", (0, tol), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="left", va="bottom", color=drawing.FAINT, fontsize=9,
        )  # fmt: skip
    above.set_ylabel("log-likelihood\n(nats per sample)")
    below.set_ylabel("change in a pass\n(nats per sample)")
    gap = any((np.diff(bounds) == 0).any() for bounds, _ in stages.values())
    below.set_xlabel("pass (a gap: it changed nothing)" if gap else "pass")
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in (above, below):
        drawing.bare(axes)
    figure.align_ylabels()
    drawing.title(figure, title)
    return figure


def plot_selection(results: Any, *, title: str = "") -> Figure:
    """An information criterion over the number of components, for each covariance model.

    Parameters
    ----------
    results : xarray.Dataset
        `daskgmm.GaussianMixtureIC.results_`.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
        A line a model, that of the best candidate in colour and the candidate itself marked; a gap where one failed.
    """
    from matplotlib.ticker import MaxNLocator

    name = results.attrs["criterion"]
    values = results[name].transpose("covariance_type", "n_components").values
    ks, best = results["n_components"].values, np.unravel_index(np.nanargmin(values), values.shape)
    figure = drawing.figure(7.5, 4.5)
    axes = figure.subplots()
    colours = [drawing.STAGES["data"] if i == best[0] else drawing.FAINT for i in range(len(values))]
    for line, colour in zip(values, colours, strict=True):
        axes.plot(ks, line, color=colour, marker="o", markersize=4, zorder=2 + (colour != drawing.FAINT))
    axes.plot(
        ks[best[1]], values[best], marker="o", markersize=11, markerfacecolor="none", color=drawing.STAGES["data"]
    )
    (low, high), at = axes.get_ylim(), -np.inf
    known = [line[np.isfinite(line)] for line in values]
    named = [i for i, line in enumerate(known) if len(line)]
    for i in sorted(named, key=lambda i: known[i][-1]):  # names of lines that end close stand one above the other
        at = max(known[i][-1], at + 0.045 * (high - low))
        model = str(results["covariance_type"].values[i])
        axes.text(1.01, at, model, color=colours[i], fontsize=9, va="center", transform=axes.get_yaxis_transform())
    axes.set_xlabel("number of components")
    axes.set_ylabel(f"{name.upper()} (lower is better)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    drawing.bare(axes)
    model, k = results["covariance_type"].values[best[0]], ks[best[1]]
    drawing.title(figure, title or f"{model}, {k} components: {name.upper()} {drawing.number(float(values[best]))}")
    return figure


def plot_segmentation(
    images: Sequence[npt.NDArray[np.uint8]],
    labels: Sequence[npt.NDArray[np.integer[Any]]],
    colours: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    names: Sequence[str] | None = None,
    title: str = "Each pixel in the mean colour of its component",
) -> Figure:
    """Images beside their segmentation by colour, and the components' colours below.

    Parameters
    ----------
    images : sequence of ndarray (rows, columns, 3)
        0 to 255.
    labels : sequence of ndarray (rows, columns)
        The component of each pixel; -1 where there is none.
    colours : array-like (n_components, 3)
        Mean red, green and blue of each component, 0 to 255.
    weights : array-like (n_components,)
    names : sequence of str, optional
        Of the images.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
        A row an image: as it was, and in its components' colours; then the colours, as wide as their weights.
    """
    palette = np.clip(np.rint(np.asarray(colours, dtype=np.float64)), 0, 255).astype(np.uint8)
    share = np.asarray(weights, dtype=np.float64)
    lookup = np.concatenate([palette, [[255, 255, 255]]]).astype(np.uint8)  # -1 is the last: white
    n = len(images)
    height = sum(image.shape[0] / image.shape[1] for image in images)
    figure = drawing.figure(10, 5 * height + 1.4)
    grid = figure.add_gridspec(n + 1, 2, height_ratios=[1] * n + [0.1])
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        for j, (pixels, what) in enumerate(((image, "photograph"), (lookup[label], f"{len(palette)} components"))):
            axes = figure.add_subplot(grid[i, j])
            axes.imshow(pixels, interpolation="nearest")
            axes.set_axis_off()
            name = f"{names[i]}: " if names is not None else ""
            axes.set_title(f"{name}{what}", loc="left", fontsize=10, color=drawing.INK)
    strip = figure.add_subplot(grid[n, :])
    left = 0.0
    for k in np.argsort(-share, kind="stable"):
        strip.barh(0, share[k], left=left, height=1, color=palette[k] / 255, edgecolor="white", linewidth=1.5)
        if share[k] > 0.03:
            ink = "white" if palette[k] @ [0.299, 0.587, 0.114] < 140 else drawing.INK  # luma, ITU-R BT.601
            strip.text(left + share[k] / 2, 0, f"{share[k]:.0%}", ha="center", va="center", color=ink, fontsize=9)
        left += share[k]
    strip.set(xlim=(0, left), ylim=(-0.5, 0.5))
    strip.set_axis_off()
    strip.set_title("weight of each component, in its mean colour", loc="left", fontsize=10, color=drawing.INK)
    drawing.title(figure, title)
    return figure


def plot_eigenvectors(
    weights: npt.ArrayLike,
    covariances: npt.ArrayLike,
    shape: tuple[int, int],
    *,
    n: int = 12,
    unit: str = "",
    title: str = "Leading eigenvectors of the components' covariances",
) -> Figure:
    """The directions in which the components vary most, drawn as the small images that they are.

    Parameters
    ----------
    weights : array-like (n_components,)
    covariances : array-like (n_components, n_features, n_features)
    shape : tuple of int
        Rows and columns of one sample as an image; their product is n_features.
    n : int
        Eigenvectors of each component.
    unit : str
        Of the features.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
        A row a component, the heaviest first, with its weight at the left and at the right the root mean square
        of its features' standard deviations; eigenvectors from the largest eigenvalue to the right.
    """
    share = np.asarray(weights, dtype=np.float64)
    order = np.argsort(-share, kind="stable")
    matrices = np.asarray(covariances, dtype=np.float64)[order]  # (k, d, d)
    k, d = matrices.shape[:2]
    n = min(n, d)
    vectors = np.linalg.eigh(matrices)[1][:, :, : -n - 1 : -1]  # (k, d, n)
    # The sign of an eigenvector means nothing: bright is where most of it points.
    vectors = vectors * np.where(vectors.sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    mosaic = _mosaic(vectors.transpose(0, 2, 1).reshape(k, n, *shape))
    figure = drawing.figure(1.9 + 0.52 * n * shape[1] / max(shape), 1.15 + 0.52 * k * shape[0] / max(shape))
    axes = figure.subplots()
    reach = float(np.nanpercentile(np.abs(mosaic), 99))  # one pixel must not take the contrast from all others
    axes.imshow(mosaic, cmap="gray", vmin=-reach, vmax=reach, interpolation="nearest")
    rows = (np.arange(k) * (shape[0] + _GAP) + (shape[0] - 1) / 2).tolist()
    columns = (np.arange(n) * (shape[1] + _GAP) + (shape[1] - 1) / 2).tolist()
    axes.set_yticks(rows, [f"{w:.1%}" for w in share[order]])
    axes.set_xticks(columns, [str(i + 1) for i in range(n)])
    axes.set_ylabel("weight of the component")
    axes.set_xlabel("eigenvector, by size of its eigenvalue (mid-grey is 0, white and black the two signs)")
    deviation = np.sqrt(np.trace(matrices, axis1=1, axis2=2) / d)
    right = axes.secondary_yaxis("right")
    right.set_yticks(rows, [f"{s:#.3g}" for s in deviation])
    right.set_ylabel(f"standard deviation{f' ({unit})' if unit else ''}", color=drawing.INK)
    for side in (axes, right):
        side.tick_params(length=0, labelsize=9, colors=drawing.INK)
        for spine in side.spines.values():
            spine.set_visible(False)
    drawing.title(figure, title)
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


def _focus(axes: Axes, series: Sequence[Sequence[float]]) -> None:
    """Leave out of the axis a first pass so deep that the rest would be a line; say so in words."""
    rest = [bound for bounds in series for bound in (bounds[1:] if len(bounds) > 2 else bounds)]
    everything = [bound for bounds in series for bound in bounds]
    if not rest or not np.isfinite(everything).all():
        return
    low, high = min(rest), max(rest)
    if high > low and low - min(everything) > _FALL * (high - low):
        margin = 0.06 * (high - low)
        axes.set_ylim(low - margin, high + 2 * margin)
        axes.annotate(
            f"from {drawing.number(min(everything))}", (2, 0), (8, 4), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="left", va="bottom", color=drawing.FAINT, fontsize=9,
        )  # fmt: skip


def _mosaic(patches: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Images (rows, columns, h, w) side by side as one, NaN between them."""
    rows, columns, h, w = patches.shape
    spaced = np.full((rows, columns, h + _GAP, w + _GAP), np.nan)
    spaced[:, :, :h, :w] = patches
    whole = spaced.transpose(0, 2, 1, 3).reshape(rows * (h + _GAP), columns * (w + _GAP))
    return whole[:-_GAP, :-_GAP]
