"""The E-step of a block: rows to sufficient statistics, labels or densities.

For every family a pass over a tile of rows is the same three lines, a product with φ, a softmax and a product with φ;
they are compiled, in `kernel`. Here stands which models they are made for, and where the sums go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.em import kernel
from daskgmm.em.softmax import normalize
from daskgmm.em.stats import Stats
from daskgmm.families.base import Components
from daskgmm.families.frame import Array, Frame

_STRIP_VALUES = 2**17  # 1 MiB as float64: what is converted at a time
_TILE_VALUES = 40_000  # 320 kB, well inside a core's second-level cache (measured: D = 4 … 64, K = 8 … 64)
# Rows of a tile. Not a power of two, for which all rows of φ would share one place in the cache.
_LARGEST_TILE = 1016
# OpenBLAS multiplies matrices of up to 100³ multiplications without copying them first: up to 1.9 times faster here, if
# the tile is not too small for that, and fastest with 16 columns. From so many values a row on, φ is wide.
_SMALL_PRODUCT, _LEAST_SMALL, _GROUP, _WIDE = 100**3, 72, 16, 100
_LOOP = 256  # values that are subtracted in one loop
# exp(-300) is nothing beside 1, and far from the denormals, which are 5 to 10 times slower to work with.
_DOUBLE = np.dtype(np.float64)
_LOG_FLOOR = {_DOUBLE: -300.0, np.dtype(np.float32): -60.0}
# γ below which a row is left out of a component's own sums, as another component holds it: less than rounding, and than
# what makes a component dead. A tight component's rows are so near beside all others that that may be too much.
_LEAST, _LEAST_TIGHT = {_DOUBLE: 1e-16, np.dtype(np.float32): 1e-12}, 1e-100
# Rows of a triangular factor that are multiplied at a time: 16 of 64 leave out 3/8 of the work, fewer gain no more.
_STEP = 16

Rows = tuple[npt.NDArray[np.generic], Array | None]  # x (n, d), weights (n,)


def statistics(
    pieces: Iterable[Rows],
    frame: Frame,
    models: Sequence[Components],
    dtype: np.dtype[np.floating] = _DOUBLE,
    pool: bool = True,
) -> tuple[Stats, ...]:
    """E-step and moments of a block under several models, which share the reading and φ.

    Parameters
    ----------
    pieces : iterable of (x, weights)
        x (n, d); weights (n,) or None. Rows with a value that is not finite are left out.
    frame : Frame
    models : sequence of Components
        All of one family.
    dtype : dtype
        Precision within a tile, double or single; sums over tiles are double.
    pool : bool
        Sum what lean models need once for all components; False: the caller knows it already.

    Returns
    -------
    tuple of Stats
        One a model; those of a lean model lack what `completed` adds to the total.
    """
    lean = [model.lean for model in models]
    groups = {which: _Sums([m for m in models if m.lean == which], frame, dtype, pool) for which in sorted(set(lean))}
    for x, weights in pieces:
        for x_strip, w_strip in strips(x, weights):
            for group in groups.values():
                group.add(x_strip, w_strip)
    stats = {which: iter(group.stats()) for which, group in groups.items()}
    return tuple(next(stats[which]) for which in lean)


class _Sums:
    """The sums of models that share φ."""

    def __init__(self, models: Sequence[Components], frame: Frame, dtype: np.dtype[np.floating], pool: bool) -> None:
        d, products = len(frame.shift), models[0].products
        none = products[0][:0], products[1][:0]
        self.models = models
        self.ends = np.cumsum([len(model.means) for model in models])
        direct = np.concatenate([model.direct for model in models])
        self.columns = np.flatnonzero(direct)
        lean = models[0].lean
        theta = np.concatenate([model.theta for model in models])  # (Σk, 1 + d + q)
        theta = theta[:, : 1 + d] if lean else theta
        diagonal = models[0].factors.ndim == 2
        k, p = theta.shape
        wide = p >= _WIDE
        groups = _groups(self.ends, wide)
        widest = int(np.diff(groups, prepend=0).max())
        tile = _tile(d if len(self.columns) == k else p)
        turn = np.empty((0, 0)) if frame.directions is None else frame.whitening.T
        self.arguments = (
            np.tile(frame.shift, -(-_LOOP // d)),
            np.tile(1 / frame.scale, -(-_LOOP // d)),
            np.ascontiguousarray(turn, dtype=dtype),
            none if lean else products,
            products if lean and pool else none,
            np.concatenate([part.T.ravel() for part in np.split(theta, groups[:-1])]).astype(dtype),
            groups,
            self.ends,
            (self.columns, *_direct(models, self.columns, dtype)),
            direct,
            np.concatenate([model.centres for model in models]).astype(dtype),
            tile,
            wide,
            wide and not diagonal and not lean,
            dtype.type(_LOG_FLOOR[dtype]),
            _LEAST_TIGHT if any(model.tight.any() for model in models) else _LEAST[dtype],
            kernel.workspace(tile, d, p, k, widest, dtype),
        )
        self.n = 0
        self.log_likelihoods = np.zeros(len(models))
        self.moments = np.zeros(theta.shape)  # (Σk, p)
        self.scatter = np.zeros(len(products[0]) if lean and pool else 0)

    def add(self, x: Array, weights: Array) -> None:
        sums = self.log_likelihoods, self.moments, self.scatter
        self.n += kernel.accumulate(x, weights, *self.arguments, *sums)

    def stats(self) -> Iterator[Stats]:
        starts = [0, *self.ends]
        for start, end, log_likelihood in zip(starts, self.ends, self.log_likelihoods, strict=False):
            yield Stats(self.n, float(log_likelihood), self.moments[start:end], self.scatter)


def completed(stats: Stats, model: Components, scatter: Array | None = None) -> Stats:
    """The total, with what a lean model's components share: from the stats themselves, or known from another pass."""
    if not model.lean:
        return stats
    scatter = stats.scatter if scatter is None else scatter
    # Only the sum over the components matters to the M-step: each has an equal share.
    share = np.tile(scatter / len(stats.moments), (len(stats.moments), 1))
    log_likelihood = stats.log_likelihood + float(model.theta[0, -len(scatter) :] @ scatter)
    return Stats(stats.n, log_likelihood, np.hstack([stats.moments, share]))


def start_statistics(
    pieces: Iterable[Rows],
    frame: Frame,
    blank: Components,
    respond: Callable[[Array], Array],
) -> tuple[Stats, ...]:
    """Moments under responsibilities that no model gave: ``respond`` maps z (d, n) to (k, n)."""
    total = np.zeros((len(blank.means), 1 + len(frame.shift) + len(blank.products[0])))
    n = 0
    for z, w in framed(pieces, frame):
        total += soft_moments(z, respond(z) if w is None else respond(z) * w, blank)
        n += z.shape[1]
    return (Stats(n, 0.0, total),)


def soft_moments(z: Array, resp: Array, blank: Components) -> Array:
    """Σ γ φ about the centres of ``blank``, of rows z (d, n) and weighted responsibilities (k, n)."""
    left, right = blank.products
    moments = np.zeros((len(resp), 1 + len(z) + len(left)))
    for k, centre in enumerate(blank.centres):
        deviation = z - centre[:, None]
        weighted = deviation * resp[k]
        second = np.einsum("dn,dn->d", weighted, deviation) if blank.factors.ndim == 2 else weighted @ deviation.T
        moments[k, 0] = resp[k].sum()
        moments[k, 1 : 1 + len(z)] = weighted.sum(axis=1)
        moments[k, 1 + len(z) :] = second if blank.factors.ndim == 2 else second[left, right]
    return moments


def log_joint_of(x: npt.NDArray[np.generic], model: Components) -> Iterator[tuple[slice, Array]]:
    """Tile by tile, log weight + log p(x | k): (k, n), for each row of x (n, d) in the model's own units.

    Distances are taken to each component's own mean: exact for rows however far, seen before or not.
    """
    direct = _direct([model], np.arange(len(model.means)), _DOUBLE)
    means, transposed, constants, step = direct
    for at in _spans(len(x), _tile(x.shape[1])):
        yield at, kernel.log_joint(np.ascontiguousarray(x[at], dtype=np.float64), means, transposed, constants, step)


def compile_statistics(
    frame: Frame, models: Sequence[Components], dtype: np.dtype[np.floating], stored: np.dtype[Any] = _DOUBLE
) -> None:
    """Have the kernel compiled and cached in this process, for workers to load: to compile took one over 365 MiB.

    For rows ``stored`` in some precision.
    """
    statistics([(np.zeros((1, len(frame.shift)), stored), None)], frame, models, dtype)


def compile_prediction(model: Components) -> None:
    """The same, for what a model says of rows."""
    for _, log_joint in log_joint_of(np.zeros((1, model.means.shape[1])), model):
        log_densities(log_joint)


def labels(log_joint: Array) -> npt.NDArray[np.intp]:
    """The likeliest component of each row: (n,)."""
    return log_joint.argmax(axis=0)


def probabilities(log_joint: Array) -> Array:
    """Responsibilities: (n, k)."""
    log_densities(log_joint)
    return log_joint.T


def log_densities(log_joint: Array) -> Array:
    """log p(x): (n,); log_joint then holds the responsibilities."""
    found = np.empty(log_joint.shape[1])
    normalize(log_joint, found)
    return found


def log_certainties(log_joint: Array) -> Array:
    """log of the largest responsibility: (n,)."""
    largest: Array = np.log(probabilities(log_joint).max(axis=1))
    return largest


def framed(pieces: Iterable[Rows], frame: Frame) -> Iterator[tuple[Array, Array | None]]:
    """Strips z (d, n) in the frame, of the rows of x that are finite and weigh something, and their weights."""
    for x, weights in pieces:
        for strip, w in strips(x, weights):
            good = np.isfinite(strip).all(axis=1)
            if weights is not None:
                good &= w > 0
            yield frame.apply(strip[good]), None if weights is None else w[good]


def strips(x: npt.NDArray[np.generic], weights: Array | None) -> Iterator[tuple[Array, Array]]:
    """Some rows at a time, as double precision or, if x is so, single; the weights are empty where there are none.

    What is not so already is copied to the same place strip after strip.
    """
    rows = max(_LARGEST_TILE, _STRIP_VALUES // max(1, x.shape[1]))
    dtype = np.dtype(np.float32) if x.dtype == np.float32 else _DOUBLE
    ready = x.dtype == dtype and x.flags.carray  # for arrays that are read-only, all would be compiled once more
    buffer, none = np.empty((0 if ready else min(rows, len(x)), x.shape[1]), dtype), np.empty(0)
    for at in _spans(len(x), rows):
        strip: Any = x[at]
        if not ready:
            strip = buffer[: len(strip)]
            strip[:] = x[at]
        w = none if weights is None else np.array(weights[at], dtype=np.float64)
        yield strip, w


def _direct(
    models: Sequence[Components], columns: npt.NDArray[np.intp], dtype: np.dtype[np.floating]
) -> tuple[Array, Array, Array, int]:
    """Means, Fᵀ and constants of some components, and the step in which Fᵀ is multiplied."""
    factors = np.concatenate([model.factors for model in models])[columns]
    triangular = factors.ndim == 3 and not np.tril(factors, -1).any()
    means, constants = (
        np.concatenate([getattr(model, name) for model in models])[columns].astype(dtype)
        for name in ("means", "constants")
    )
    transposed = np.ascontiguousarray(np.swapaxes(factors, 1, -1), dtype=dtype)
    return means, transposed, constants, _STEP if triangular else means.shape[1]


def _tile(p: int) -> int:
    """Rows of a tile with p values a row."""
    rows = min(_TILE_VALUES // p, _LARGEST_TILE, max(_SMALL_PRODUCT // (p * _GROUP), _LEAST_SMALL))
    rows = max(rows // 8 * 8, _LEAST_SMALL)
    return rows - 8 * (rows & (rows - 1) == 0)


def _groups(ends: npt.NDArray[np.intp], wide: bool) -> npt.NDArray[np.intp]:
    """Where groups of components end that φ is multiplied with at a time: all of a model, or some if φ is wide."""
    found: list[int] = []
    for start, end in zip([0, *ends], ends, strict=False):
        # A group of less than a quarter is better done with the one before it.
        found += [*range(start + _GROUP, end - _GROUP // 4 + 1, _GROUP), end] if wide else [end]
    return np.array(found)


def _spans(n: int, rows: int) -> Iterator[slice]:
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))
