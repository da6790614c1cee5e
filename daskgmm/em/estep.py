"""The E-step of a block: rows to sufficient statistics, labels or densities.

For every family a pass over a tile of rows is the same three lines, a product with φ, a softmax and a product with φ;
they are compiled, in `kernel`. Here stands which models they are made for, and where the sums go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.em import kernel
from daskgmm.em.kernel import normalize
from daskgmm.em.layout import DOUBLE, LEAST, SINGLE, KernelLayout, Precision, distance_inputs, prepare, tile_rows
from daskgmm.em.stats import Stats
from daskgmm.families.base import Components
from daskgmm.families.encoding import PLAIN, FeatureEncoding, spans, strip_rows
from daskgmm.families.frame import Array, Frame, Rows


def block_stats(pieces: Iterable[Rows], layouts: Sequence[KernelLayout]) -> tuple[Stats, ...]:
    """E-step and moments of a block under several models, which share the reading and φ.

    Parameters
    ----------
    pieces : iterable of (x, weights)
        x (n, d); weights (n,) or None. Rows with a value that is not finite are left out.
    layouts : sequence of KernelLayout

    Returns
    -------
    tuple of Stats
        One a model; those of a model that shares the quadratic part of θ lack what `completed` adds.
    """
    found = [layout.sums() for layout in layouts]
    arguments = [
        (layout.models, kernel.workspace(*layout.room), sums) for layout, sums in zip(layouts, found, strict=True)
    ]
    n = [0] * len(layouts)
    for x, weights in pieces:
        for x_strip, w_strip in strips(x, weights):
            strip = x_strip.reshape(-1).view(np.uint8), x_strip.dtype == SINGLE, w_strip
            for i, each in enumerate(arguments):
                n[i] += kernel.accumulate(*strip, *each)
    stats = {
        place: Stats(rows, float(log_likelihood), moments, sums.scatter, float(log_certainty))
        for layout, rows, sums in zip(layouts, n, found, strict=True)
        for place, log_likelihood, log_certainty, moments in zip(
            layout.places,
            sums.log_likelihoods,
            sums.log_certainties,
            np.split(sums.moments, layout.models.ends[:-1]),
            strict=True,
        )
    }
    return tuple(stats[place] for place in sorted(stats))


def block_stats_of_models(
    pieces: Iterable[Rows],
    models: Sequence[Components],
    dtype: Precision | Sequence[Precision] = DOUBLE,
) -> tuple[Stats, ...]:
    """Compute the `Stats` of a block under models that are not laid out yet."""
    return block_stats(pieces, prepare(models, dtype))


def completed(stats: Stats, model: Components, scatter: Array | None = None) -> Stats:
    """Add the scatter that all components of a model share, from the stats themselves or from an earlier pass."""
    if not model.shares_quadratic:
        return stats
    scatter = stats.scatter if scatter is None else scatter
    # Only the sum over the components matters to the M-step: each has an equal share.
    share = np.tile(scatter / len(stats.moments), (len(stats.moments), 1))
    log_likelihood = stats.log_likelihood + float(model.theta[0, -len(scatter) :] @ scatter)
    return replace(stats, log_likelihood=log_likelihood, moments=np.hstack([stats.moments, share]))


def stats_from_responsibilities(
    pieces: Iterable[Rows],
    blank: Components,
    respond: Callable[[Array], Array],
) -> tuple[Stats, ...]:
    """Moments under responsibilities that no model gave: ``respond`` maps z (d, n) to (k, n)."""
    total = np.zeros((len(blank.means), 1 + len(blank.frame.shift) + len(blank.products[0])))
    n = 0
    for z, w in framed(pieces, blank.frame):
        total += moments_from_responsibilities(z, respond(z) if w is None else respond(z) * w, blank)
        n += z.shape[1]
    return (Stats(n, 0.0, total),)


def moments_from_responsibilities(z: Array, resp: Array, blank: Components) -> Array:
    """Σ γ φ about the centres of ``blank``, of rows z (d, n) and weighted responsibilities (k, n)."""
    left, right = blank.products
    moments = np.zeros((len(resp), 1 + len(z) + len(left)))
    least = LEAST[DOUBLE] * resp.max(axis=0, initial=0)
    for k, centre in enumerate(blank.centres):
        held = np.flatnonzero(resp[k] > least)
        gammas = resp[k, held]
        deviation = z[:, held] - centre[:, None]
        weighted = deviation * gammas
        moments[k, 0] = gammas.sum()
        moments[k, 1 : 1 + len(z)] = weighted.sum(axis=1)
        if len(left):
            second = np.einsum("dn,dn->d", weighted, deviation) if blank.factors.ndim == 2 else weighted @ deviation.T
            moments[k, 1 + len(z) :] = second if blank.factors.ndim == 2 else second[left, right]
    return moments


def log_joint_of(
    x: npt.NDArray[np.generic], model: Components, least: float = 0.0, encoding: FeatureEncoding = PLAIN
) -> Iterator[tuple[slice, Array]]:
    """Tile by tile, log weight + log p(x | k): (k, n), for each row of x (n, d) in the model's own units.

    By a product with φ where that is linear, and loses nothing. Elsewhere distances are taken to each component's own
    mean: exact for rows however far, seen before or not. Responsibilities below the least that counts may come out
    larger than they are, but below it.
    """
    cut = -np.log(least) if least else np.inf
    width = len(model.frame.shift)
    inputs = None if model.linear else distance_inputs([model], np.arange(len(model.means)), DOUBLE)
    for at in spans(len(x), tile_rows(width)):
        rows = np.ascontiguousarray(encoding.encode(x[at]), dtype=np.float64)
        if inputs is None:
            yield at, model.theta[:, 1:] @ rows.T + model.theta[:, :1]
        else:
            yield at, kernel.log_joint(rows, inputs, cut)


def compile_statistics(models: Sequence[Components], dtypes: Sequence[Precision]) -> None:
    """Have the kernel compiled and cached in this process, for workers to load: to compile took one over 365 MiB."""
    block_stats_of_models([(np.zeros((1, len(models[0].frame.shift))), None)], models, dtypes)


def compile_prediction(model: Components) -> None:
    """Have the prediction of densities compiled and cached in this process, for workers to load."""
    for _, log_joint in log_joint_of(np.zeros((1, len(model.frame.shift))), model):
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


def e_step(components: Components, z: Array) -> tuple[Array, Array]:
    """Log joint densities (k, m) of rows z (d, m), and responsibilities."""
    log_joint = np.concatenate([tile for _, tile in log_joint_of(z.T, components, LEAST[DOUBLE])], axis=1)
    resp = log_joint.copy()
    log_densities(resp)
    return log_joint, resp


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

    What is not so already is copied to the same place strip after strip; what is has the same strips, so that bits do
    not depend on where rows were kept.
    """
    dtype = np.dtype(np.float32) if np.can_cast(x.dtype, np.float32) else DOUBLE  # small integers are exact, too
    ready = x.dtype == dtype and x.flags.carray  # for arrays that are read-only, all would be compiled once more
    rows = strip_rows(x.shape[1])
    buffer, none = np.empty((0 if ready else min(rows, len(x)), x.shape[1]), dtype), np.empty(0)
    for at in spans(len(x), rows):
        strip: Any = x[at]
        if not ready:
            strip = buffer[: len(strip)]
            strip[:] = x[at]
        w = none if weights is None else np.array(weights[at], dtype=np.float64)
        yield strip, w
