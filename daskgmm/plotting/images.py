"""Components that are colours, or small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from daskgmm.plotting import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAP = 1  # pixels between two patches


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
    figure = style.figure(10, 5 * height + 1.4)
    grid = figure.add_gridspec(n + 1, 2, height_ratios=[1] * n + [0.1])
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        for j, (pixels, what) in enumerate(((image, "photograph"), (lookup[label], f"{len(palette)} components"))):
            axes = figure.add_subplot(grid[i, j])
            axes.imshow(pixels, interpolation="nearest")
            axes.set_axis_off()
            name = f"{names[i]}: " if names is not None else ""
            axes.set_title(f"{name}{what}", loc="left", fontsize=10, color=style.INK)
    strip = figure.add_subplot(grid[n, :])
    left = 0.0
    for k in np.argsort(-share, kind="stable"):
        strip.barh(0, share[k], left=left, height=1, color=palette[k] / 255, edgecolor="white", linewidth=1.5)
        if share[k] > 0.03:
            ink = "white" if palette[k] @ [0.299, 0.587, 0.114] < 140 else style.INK  # luma, ITU-R BT.601
            strip.text(left + share[k] / 2, 0, f"{share[k]:.0%}", ha="center", va="center", color=ink, fontsize=9)
        left += share[k]
    strip.set(xlim=(0, left), ylim=(-0.5, 0.5))
    strip.set_axis_off()
    strip.set_title("weight of each component, in its mean colour", loc="left", fontsize=10, color=style.INK)
    style.title(figure, title)
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
    figure = style.figure(1.9 + 0.52 * n * shape[1] / max(shape), 1.15 + 0.52 * k * shape[0] / max(shape))
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
    right.set_ylabel(f"standard deviation{f' ({unit})' if unit else ''}", color=style.INK)
    for side in (axes, right):
        side.tick_params(length=0, labelsize=9, colors=style.INK)
        for spine in side.spines.values():
            spine.set_visible(False)
    style.title(figure, title)
    return figure


def _mosaic(patches: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Images (rows, columns, h, w) side by side as one, NaN between them."""
    rows, columns, h, w = patches.shape
    spaced = np.full((rows, columns, h + _GAP, w + _GAP), np.nan)
    spaced[:, :, :h, :w] = patches
    whole = spaced.transpose(0, 2, 1, 3).reshape(rows * (h + _GAP), columns * (w + _GAP))
    return whole[:-_GAP, :-_GAP]
