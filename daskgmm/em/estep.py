"""The block kernel: tiles of rows to sufficient statistics, labels or densities.

For every family a pass over a tile is the same three lines, a product with φ, a softmax and a product
with φ. Tiles are small enough that φ stays in cache, and features come first in them: each of φ's rows
is then one contiguous vector operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from daskgmm.em.stats import Stats
from daskgmm.families.base import Components
from daskgmm.families.frame import Array, Frame

_TILE_VALUES = 2**18  # of φ; 2 MB, what a core's second-level cache holds (measured: D = 4 … 64, K = 8 … 64)
# exp(-300) is nothing beside 1, and far from the denormals, which are 5 to 10 times slower to work with.
_LOG_FLOOR = -300.0
_WIDE = 256  # rows; any full tile has as many

Rows = tuple[npt.NDArray[np.generic], Array | None]  # x (n, d), weights (n,)


def statistics(pieces: Iterable[Rows], frame: Frame, models: Sequence[Components]) -> tuple[Stats, ...]:
    """E-step and moments of a block under several models, which share the reading and φ.

    Parameters
    ----------
    pieces : iterable of (x, weights)
        x (n, d); weights (n,) or None. Rows with a value that is not finite are left out.
    frame : Frame
    models : sequence of Components
        All of one family.

    Returns
    -------
    tuple of Stats
        One a model.
    """
    theta = np.concatenate([model.theta for model in models])  # (Σk, p)
    ends = np.cumsum([len(model.theta) for model in models])
    slices = [slice(end - len(model.theta), end) for model, end in zip(models, ends, strict=True)]
    loose = not all(model.tight.all() for model in models)
    moments = np.zeros_like(theta)
    log_likelihood = np.zeros(len(models))
    n = 0
    with np.errstate(all="ignore"):  # what is not finite is found in the sums, by the loop
        for x, weights in pieces:
            for z, w in tiles(x, weights, frame, theta.shape[1]):
                n += z.shape[1]
                if loose:
                    phi = models[0].phi(z)  # (p, n)
                    log_joint = _product(theta, phi, slices, z.shape[1])  # (Σk, n)
                else:
                    log_joint = np.empty((len(theta), z.shape[1]))
                for m, (model, at) in enumerate(zip(models, slices, strict=True)):
                    _refine(model, z, log_joint[at])
                    log_density = softmax(log_joint[at])  # log_joint now holds the responsibilities
                    if w is not None:
                        log_joint[at] *= w
                        log_density = log_density * w
                    log_likelihood[m] += log_density.sum()
                resp = log_joint
                tile_moments = _product(resp, phi.T, slices, z.shape[1]) if loose else np.empty_like(theta)  # (Σk, p)
                for model, at in zip(models, slices, strict=True):
                    for k in np.flatnonzero(model.tight):
                        tile_moments[at][k] = _moments_about_mean(model, k, z, resp[at][k])
                moments += tile_moments
    return tuple(Stats(n, float(ll), moments[at]) for ll, at in zip(log_likelihood, slices, strict=True))


def start_statistics(
    pieces: Iterable[Rows],
    frame: Frame,
    blank: Components,
    respond: Callable[[Array], Array],
) -> tuple[Stats, ...]:
    """Moments under responsibilities that no model gave: ``respond`` maps z (d, n) to (k, n)."""
    total: Array | float = 0.0
    n = 0
    for x, weights in pieces:
        for z, w in tiles(x, weights, frame, blank.phi(np.zeros((x.shape[1], 1))).shape[0]):
            resp = respond(z)
            if w is not None:
                resp = resp * w
            if blank.tight.any():
                moments = np.stack([_moments_about_mean(blank, k, z, r) for k, r in enumerate(resp)])
            else:
                moments = resp @ blank.phi(z).T
            total = total + moments
            n += z.shape[1]
    return (Stats(n, 0.0, np.asarray(total)),)


def log_joint_of(x: npt.NDArray[np.generic], model: Components) -> Iterator[tuple[slice, Array]]:
    """Tile by tile, log weight + log p(x | k): (k, n), for each row of x (n, d) in the model's own units.

    Distances are taken to each component's own mean: exact for rows however far, seen before or not.
    """
    with np.errstate(all="ignore"):
        for at in _spans(len(x), _TILE_VALUES // (4 * max(1, x.shape[1]))):
            z = x[at].T.astype(np.float64)
            yield at, np.stack([model.log_joint_about_mean(k, z) for k in range(len(model.tight))])


def labels(log_joint: Array) -> npt.NDArray[np.intp]:
    """The likeliest component of each row: (n,)."""
    return log_joint.argmax(axis=0)


def probabilities(log_joint: Array) -> Array:
    """Responsibilities: (n, k)."""
    softmax(log_joint)
    return log_joint.T


def log_densities(log_joint: Array) -> Array:
    """log p(x): (n,)."""
    return softmax(log_joint)


def log_certainties(log_joint: Array) -> Array:
    """log of the largest responsibility: (n,)."""
    softmax(log_joint)
    largest: Array = np.log(log_joint.max(axis=0))
    return largest


def tiles(
    x: npt.NDArray[np.generic], weights: Array | None, frame: Frame, p: int
) -> Iterator[tuple[Array, Array | None]]:
    """Tiles z (d, n) in the frame, of the rows of x that are finite and weigh something, and their weights."""
    for at in _spans(len(x), _TILE_VALUES // p):
        z = frame.apply(x[at])
        w = None if weights is None else weights[at].astype(np.float64)
        # One sum tells whether anything is not finite; the places are looked for only then.
        if not np.isfinite(z.sum()) or (w is not None and not w.all()):
            good = np.isfinite(z).all(axis=0)
            if w is not None:
                good &= w > 0
                w = w[good]
            z = z[:, good]
        yield z, w


def softmax(log_joint: Array) -> Array:
    """Turn log_joint (k, n) into responsibilities, in place; return the log densities (n,)."""
    top = log_joint.max(axis=0)
    log_joint -= top
    np.maximum(log_joint, _LOG_FLOOR, out=log_joint)
    np.exp(log_joint, out=log_joint)
    total = log_joint.sum(axis=0)
    log_joint /= total
    log_density: Array = np.log(total, out=total)
    log_density += top
    return log_density


def _product(left: Array, right: Array, models: Sequence[slice], n: int) -> Array:
    """left (Σk, …) @ right, for all models at once where the tile has rows enough for that to pay.

    Else model by model: few rows then give a model the same bits in any company, as BLAS rounds by shape.
    """
    return left @ right if n >= _WIDE else np.concatenate([left[at] @ right for at in models])


def _refine(model: Components, z: Array, log_joint: Array) -> None:
    for k in np.flatnonzero(model.tight):
        log_joint[k] = model.log_joint_about_mean(int(k), z)


def _moments_about_mean(model: Components, k: int | np.intp, z: Array, resp: Array) -> Array:
    held = resp > 1e-100  # the rows that the component really holds: most of a tight one's γ are exp(-300)
    return model.moments_about_mean(int(k), z[:, held], resp[held])


def _spans(n: int, rows: int) -> Iterator[slice]:
    rows = min(max(rows, 256), 4096)
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))
