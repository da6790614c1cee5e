"""Where EM starts: scikit-learn's k-means on a sample in memory, k-means‖ in passes where there is none.

Distances are taken in the survey's robust standard deviations, so that a feature's unit does not decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from threadpoolctl import ThreadpoolController

from daskgmm.data.blocks import Block
from daskgmm.em.estep import Rows, framed, stats_from_responsibilities
from daskgmm.em.labelled import Known
from daskgmm.em.layout import Precision
from daskgmm.em.loop import look_again
from daskgmm.em.stats import Stats
from daskgmm.families.base import Components, Family
from daskgmm.families.frame import Array, Frame
from daskgmm.passes.graph import gather, total
from daskgmm.passes.reader import Reader
from daskgmm.storage.serialize import pack

# Rounds, and candidates a round and component, of k-means‖ (Bahmani et al. 2012, Scalable K-Means++, §5: 5 and 2).
_ROUNDS = 5
_OVERSAMPLING = 2
# From so many features on, bounds on distances take less time than all distances, for the same centres (measured: 64
# features, 32 clusters 3.2 in place of 5.9 s; 16 features 0.75 and 0.6).
_ELKAN_FEATURES = 32


@dataclass(frozen=True)
class Start:
    """What a user knows of the start: some of the family's parameters by their names, about the origin."""

    known: Mapping[str, Array] = field(default_factory=dict)
    complete: Any = None  # the parameters, if all are known
    previous_bound: float = -np.inf

    @property
    def ordered(self) -> bool:
        """Does the user know one component from another?"""
        return bool(self.known) or self.complete is not None

    @property
    def digest(self) -> str | None:
        """A fingerprint of what is known; None if nothing is."""
        return hashlib.sha256(pack((*self.known.items(), self.complete))).hexdigest() if self.ordered else None

    def parameters(self, frame: Frame) -> Any:
        """The start, about the frame's shift; None if it is not complete."""
        return None if self.complete is None else self.complete.moved(-frame.shift)

    def replace_in(self, parameters: Any, frame: Frame) -> Any:
        """Parameters about the frame's shift, with what is known put in its place."""
        parameters = replace(parameters, **self.known)
        return parameters.moved(-frame.shift) if "means" in self.known else parameters


def given(k: int, d: int, weights: Any, means: Any) -> dict[str, Array]:
    """Weights and means that a user gives, checked; those that are None are not among them.

    Raises
    ------
    ValueError
        A shape is wrong, or the weights do not sum to one.
    """
    known = {}
    if weights is not None:
        tolerance = 1e-6 if np.asarray(weights).dtype == np.float32 else 1e-8  # scikit-learn's
        known["weights"] = weights = shaped("weights", weights, (k,))
        if np.any(weights < 0) or np.any(weights > 1):
            raise ValueError(
                "The parameter 'weights' should be in the range [0, 1], "
                f"but got max value {weights.max():.5f}, min value {weights.min():.5f}"
            )
        if not np.isclose(weights.sum(), 1, rtol=0, atol=tolerance):
            raise ValueError(
                f"The parameter 'weights' should be normalized, but got sum(weights) = {weights.sum():.5f}"
            )
    if means is not None:
        known["means"] = shaped("means", means, (k, d))
    return known


def shaped(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"The parameter '{name}' contains NaN or infinity: give finite values")
    return array


def centres(method: str, rows: Array, weights: Array, k: int, rng: np.random.RandomState) -> Array:
    """Centres (k, d) among or between weighted rows (m, d), by scikit-learn's methods of these names."""
    seed = int(rng.randint(2**31 - 1))
    if method == "random_from_data":
        return rows[np.random.RandomState(seed).choice(len(rows), k, replace=False, p=weights / weights.sum())]
    from sklearn.cluster import KMeans, kmeans_plusplus

    # Its sums are taken thread by thread: one thread gives the same bits each time. What holds around a
    # fit limits BLAS, not OpenMP.
    with _libraries().limit(limits=1):
        if method == "k-means++":
            found: Array = kmeans_plusplus(rows, k, sample_weight=weights, random_state=seed)[0]
        else:
            algorithm = "elkan" if rows.shape[1] >= _ELKAN_FEATURES else "lloyd"
            kmeans = KMeans(k, n_init=1, random_state=seed, algorithm=algorithm)
            found = kmeans.fit(rows, sample_weight=weights).cluster_centers_
    return found


def further(method: str, rows: Array, weights: Array, taken: Array, n: int, rng: np.random.RandomState) -> Array:
    """Centres (n, d) among or between weighted rows (m, d), beside those that are taken (c, d), and far from them.

    As in k-means++, each is drawn with a probability proportional to the squared distance from all before.
    """
    if method == "random_from_data":
        return centres(method, rows, weights, n, rng)
    drawn, found = np.random.RandomState(int(rng.randint(2**31 - 1))), taken
    distances = cdist(rows, taken, "sqeuclidean").min(axis=1)
    for _ in range(n):
        chances = weights * distances if distances.any() else weights
        row = rows[drawn.choice(len(rows), p=chances / chances.sum())][None]
        distances = np.minimum(distances, cdist(rows, row, "sqeuclidean")[:, 0])
        found = np.concatenate([found, row])
    if method == "kmeans" and len(rows) >= len(found):
        from sklearn.cluster import KMeans

        with _libraries().limit(limits=1):
            kmeans = KMeans(len(found), init=found, n_init=1)
            found = kmeans.fit(rows, sample_weight=weights).cluster_centers_
    return found[len(taken) :]


@cache  # to look for them takes as long as a small fit
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def spread_candidates(
    reader: Reader, frame: Frame, first: Array, k: int, rng: np.random.RandomState
) -> tuple[Array, Array, int]:
    """Candidates for centres from all rows, the weight of the rows nearest to each, and the passes: k-means‖.

    Each round draws 2k rows with probabilities proportional to their squared distance from the candidates
    so far; by exponential keys (Efraimidis & Spirakis 2006), so that a round is one pass.
    """
    found = first  # (c, d), standardized
    for _ in range(_ROUNDS):
        seed = int(rng.randint(2**31 - 1))
        kernel = partial(_far_rows, frame=frame, found=found, size=_OVERSAMPLING * k, seed=seed)
        drawn = gather(reader, kernel)
        keys = np.concatenate([key for key, _ in drawn])
        rows = np.concatenate([row for _, row in drawn])
        nearest_keys = np.argsort(keys, kind="stable")[: _OVERSAMPLING * k]
        found = np.concatenate([found, rows[nearest_keys[np.isfinite(keys[nearest_keys])]]])
    (counts,) = total(reader, partial(_nearest_counts, frame=frame, found=found))
    return found[counts > 0], counts[counts > 0], _ROUNDS + 1


def first_m_step(
    reader: Reader,
    family: Family,
    blank: Components,
    found: Array | None,
    rng: np.random.RandomState,
    known: Known | None = None,
) -> tuple[Any, int]:
    """Parameters from a first M-step, and the passes: rows belong to the nearest of ``found``, or at random.

    Those whose component is known are not among the samples: what they add is.
    """
    kernel = partial(_start, found=found, seed=int(rng.randint(2**31 - 1)))
    n_passes = 0

    def one_pass(blanks: Sequence[Components], dtypes: Sequence[Precision] = ()) -> list[Stats]:
        nonlocal n_passes
        n_passes += 1
        stats = [total(reader, partial(kernel, blank=blank))[0] for blank in blanks]
        return [s if known is None else known.beside(s, blank) for s, blank in zip(stats, blanks, strict=True)]

    (blank,), (stats,) = look_again([blank], one_pass([blank]), one_pass)
    return family.maximize(blank, stats.moments), n_passes


def _start(
    block: Block, pieces: Iterator[Rows], blank: Components, found: Array | None, seed: int
) -> tuple[Stats, ...]:
    k = len(blank.means)
    rng = np.random.default_rng([seed, block.index])

    def at_random(z: Array) -> Array:
        resp = rng.random((k, z.shape[1]))
        return resp / resp.sum(axis=0)

    def nearest(z: Array) -> Array:
        return np.eye(k)[:, np.argmin(cdist(found, blank.frame.standardized(z).T, "sqeuclidean"), axis=0)]

    respond: Callable[[Array], Array] = at_random if found is None else nearest
    return stats_from_responsibilities(pieces, blank, respond)


def _far_rows(
    block: Block, pieces: Iterator[Rows], frame: Frame, found: Array, size: int, seed: int
) -> tuple[Array, Array]:
    """The block's ``size`` smallest exponential keys, rate w d², and their rows (standardized)."""
    rng = np.random.default_rng([seed, block.index])
    keys, rows = np.empty(0), np.empty((0, found.shape[1]))
    for z, w in framed(pieces, frame):
        y = frame.standardized(z).T
        rate = cdist(found, y, "sqeuclidean").min(axis=0) * (1.0 if w is None else w)
        with np.errstate(divide="ignore"):  # a row on a candidate: never
            keys = np.concatenate([keys, rng.standard_exponential(len(y)) / rate])
        rows = np.concatenate([rows, y])
        kept = np.argsort(keys, kind="stable")[:size]
        keys, rows = keys[kept], rows[kept]
    return keys, rows


def _nearest_counts(
    block: Block, pieces: Iterator[Rows], frame: Frame, found: Array
) -> tuple[npt.NDArray[np.float64], ...]:
    counts = np.zeros(len(found))
    for z, w in framed(pieces, frame):
        y = frame.standardized(z).T
        counts += np.bincount(cdist(found, y, "sqeuclidean").argmin(axis=0), w, len(found))
    return (counts,)
