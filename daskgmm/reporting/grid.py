"""Where rows are counted: chosen from the model alone, so that one pass over the data is enough."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from daskgmm.families.frame import Array

BINS = 64
_TAIL = 5e-4  # of the mixture on each side of what is drawn
_PAIRS = 4
_CANDIDATES = 64  # features, at most, that pairs are made of
_HALVINGS = 60  # of an interval, until nothing is left of it in double precision


@dataclass(frozen=True)
class Grid:
    """Bins of some features, and pairs of these."""

    features: tuple[int, ...]  # f of them
    edges: Array  # (f, bins + 1)
    pairs: tuple[tuple[int, int], ...]  # of places among the features


NO_GRID = Grid((), np.empty((0, BINS + 1)), ())


def grid_of(weights: Array, means: Array, covariances: Array, dtype: npt.DTypeLike = np.float64) -> Grid:
    """The pairs of features that tell the components of a Gaussian mixture apart, and where the mixture lies in them.

    Parameters
    ----------
    weights : ndarray (k,)
    means : ndarray (k, d)
    covariances : ndarray (k, d, d) or (k, d)
        Matrices, or the diagonals of such.
    dtype : dtype
        Of the data: of whole numbers, each bin holds equally many.
    """
    d = means.shape[1]
    variances = covariances if covariances.ndim == 2 else np.einsum("kii->ki", covariances)
    pairs = telling_pairs(weights, means, covariances) if d > 1 else []
    features = tuple(sorted({feature for pair in pairs for feature in pair})) or (0,)
    whole = np.dtype(dtype).kind in "biu"
    edges = np.array([_edges(weights, means[:, i], np.sqrt(variances[:, i]), whole) for i in features])
    return Grid(features, edges, tuple((features.index(i), features.index(j)) for i, j in pairs))


def telling_pairs(weights: Array, means: Array, covariances: Array) -> list[tuple[int, int]]:
    """Pairs of features by how far they separate the components, those first that show a feature not yet shown.

    By Wilks' lambda in the plane of the two: the determinant of what is within components over that of all.
    """
    deviations = means - weights @ means
    diagonal = np.einsum("kii->ki", covariances) if covariances.ndim == 3 else covariances
    total = weights @ (diagonal + deviations**2)  # (d,)
    chosen = np.sort(np.argsort(weights @ diagonal / total, kind="stable")[:_CANDIDATES])
    scale = np.sqrt(total[chosen])
    some = deviations[:, chosen] / scale
    between = (weights[:, None] * some).T @ some
    if covariances.ndim == 3:
        within = np.einsum("k,kij->ij", weights, covariances[:, chosen[:, None], chosen]) / np.outer(scale, scale)
    else:
        within = np.diag(weights @ diagonal[:, chosen] / scale**2)
    ranked = sorted(
        combinations(range(len(chosen)), 2),
        key=lambda pair: _determinant(within, *pair) / max(_determinant(within + between, *pair), 1e-300),
    )
    found: list[tuple[int, int]] = []
    while ranked and len(found) < _PAIRS:
        shown = {feature for pair in found for feature in pair}
        best = next((pair for pair in ranked if not shown.issuperset(pair)), ranked[0])
        ranked.remove(best)
        found.append(best)
    return [(int(chosen[i]), int(chosen[j])) for i, j in found]


def quantile(share: float, weights: Array, means: Array, deviations: Array) -> float:
    """Of a mixture of Gaussians in one feature, (k,) each: below it lies that share."""
    reach = 40 * deviations  # where the distribution function is 0 or 1 in double precision
    low, high = float((means - reach).min()), float((means + reach).max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = weights @ ndtr((middle - means) / deviations)
        low, high = (middle, high) if below < share else (low, middle)
    return (low + high) / 2


def _determinant(matrix: Array, i: int, j: int) -> float:
    return float(matrix[i, i] * matrix[j, j] - matrix[i, j] * matrix[j, i])


def _edges(weights: Array, means: Array, deviations: Array, whole: bool) -> Array:
    low, high = (quantile(share, weights, means, deviations) for share in (_TAIL, 1 - _TAIL))
    margin = 0.04 * (high - low)
    low, high = low - margin, high + margin
    if not whole:
        return np.linspace(low, high, BINS + 1)
    step = np.ceil((high - low) / BINS)
    return np.floor(low) - 0.5 + step * np.arange(BINS + 1)
