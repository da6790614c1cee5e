"""Ten problems of at least 200,000 rows: five mixtures that overlap, and five views of two photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daskgmm.demo.photographs import Photographs

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    name: str
    n_components: int
    make: Callable[[], Array]


def overlapping(n: int, d: int, k: int, separation: float, seed: int) -> Array:
    """Correlated groups of unequal sizes, whose means lie ``separation`` standard deviations from the centre."""
    rng = np.random.default_rng(seed)
    sizes = rng.multinomial(n, rng.dirichlet(np.full(k, 3.0)))
    groups = []
    for size in sizes:
        direction = rng.normal(size=d)
        shape = np.linalg.qr(rng.normal(size=(d, d)))[0] * rng.uniform(0.4, 1.6, size=d)
        groups.append(rng.normal(size=(size, d)) @ shape + separation * direction / np.linalg.norm(direction))
    return rng.permutation(np.concatenate(groups))


def patches(n: int, side: int = 8, seed: int = 0) -> Array:
    """Some of the photographs' patches, each colour by itself, with the noise of rounding: (n, side²)."""
    images = Photographs.bundled().images
    views = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(1, 2))
    views = views.transpose(0, 3, 1, 2, 4, 5)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(int(np.prod(views.shape[:4])), n, replace=False))
    found = views[np.unravel_index(rows, views.shape[:4])].reshape(n, side * side).astype(float)
    return found + rng.uniform(-0.5, 0.5, size=found.shape)


def principal(x: Array, n_features: int) -> Array:
    """The first principal components."""
    centred = x - x.mean(axis=0)
    return centred @ np.linalg.eigh(centred.T @ centred)[1][:, : -n_features - 1 : -1]


def pixels(position: bool) -> Array:
    """Red, green and blue of one photograph's pixels, with the noise of rounding; and perhaps row and column."""
    image = Photographs.bundled().images[0]
    rows = image.reshape(-1, 3).astype(float)
    rows += np.random.default_rng(0).uniform(-0.5, 0.5, size=rows.shape)
    return np.hstack([rows, np.indices(image.shape[:2]).reshape(2, -1).T]) if position else rows


PROBLEMS = (
    Problem("overlapping, 2 features", 6, lambda: overlapping(200_000, 2, 6, 1.5, 1)),
    Problem("overlapping, 4 features", 8, lambda: overlapping(200_000, 4, 8, 2.0, 2)),
    Problem("overlapping, 8 features", 8, lambda: overlapping(200_000, 8, 8, 1.5, 3)),
    Problem("overlapping, 8 features, 16 components", 16, lambda: overlapping(200_000, 8, 16, 2.0, 4)),
    Problem("overlapping, 16 features", 10, lambda: overlapping(200_000, 16, 10, 1.5, 5)),
    Problem("patches 8 x 8", 12, lambda: patches(200_000)),
    Problem("patches, 16 principal components", 12, lambda: principal(patches(300_000), 16)),
    Problem("pixels", 10, lambda: pixels(position=False)),
    Problem("pixels with position", 12, lambda: pixels(position=True)),
    Problem("patches 4 x 4", 10, lambda: patches(300_000, side=4)),
)
