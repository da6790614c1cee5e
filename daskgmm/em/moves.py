"""Moves to better optima: components are split in two, and as many pairs of others are merged.

EM cannot carry a component from where there are too many to where there are too few. The moves are those of Ueda,
Nakano, Ghahramani & Hinton 2000, SMEM Algorithm for Mixture Models, Neural Computation 12; here they are compared by a
bound. For any responsibilities γ, F(γ) = max over θ of Σ w γ (log joint − log γ) is not above the log-likelihood of
that θ, and where EM has converged it is equal to it (Neal & Hinton 1998, A View of the EM Algorithm). As
log joint = θ·φ, it takes no more than the moments of γ and their entropies, of which a move changes three.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import combinations, product, repeat
from operator import add
from typing import Any

import numpy as np
from scipy.special import entr, xlogy

from daskgmm.em.estep import completed, log_densities, log_joint_of, soft_moments, statistics
from daskgmm.em.loop import EM, EMState
from daskgmm.em.prepared import DOUBLE, LEAST, Precision
from daskgmm.em.stats import Stats
from daskgmm.families.base import Components
from daskgmm.families.frame import Array, lost

_HELD = 0.01  # γ of a component from which its rows count when it is split
_SPLIT_PASSES = 12  # over these rows, after 8 textbook ones, worse moves were chosen in two of 27 fits
_AT_ONCE = 2  # splits; more threads would wait for Python's lock
_LOST = 1e-4  # of a variance, at most, in moments about the origin: bounds are compared to about so many nats


@dataclass(frozen=True)
class _Parts:
    """What the bound needs of responsibilities: sums over the rows."""

    moments: Array  # (k, p)  Σ w γ φ
    entropies: Array  # (k,)  −Σ w γ log γ

    @staticmethod
    def of(em: EM, z: Array, resp: Array, weights: Array) -> _Parts:
        """Of responsibilities (k, m) for rows z (d, m)."""
        moments = soft_moments(z, resp * weights, em.family.blank(len(resp), em.frame))
        return _Parts(moments, entr(resp) @ weights)

    def __add__(self, other: _Parts) -> _Parts:
        """Both, side by side."""
        return _Parts(np.concatenate([self.moments, other.moments]), np.concatenate([self.entropies, other.entropies]))

    def take(self, ks: Any) -> _Parts:
        """These of them."""
        return _Parts(self.moments[ks], self.entropies[ks])

    def fit(self, em: EM) -> tuple[float, Any]:
        """The bound, and the parameters that it belongs to."""
        try:
            parameters = em.family.maximize(em.family.blank(len(self.moments), em.frame), self.moments)
        except ValueError:  # a component collapsed
            return -np.inf, None
        theta = em.family.components(parameters, em.frame).theta
        log_prior = em.family.log_prior(parameters, em.frame)
        return float((theta * self.moments).sum() + self.entropies.sum() + log_prior), parameters

    def values(self, em: EM) -> Array:
        """What each adds to the bound, if it shares nothing with the others: (k,)."""
        fits = [_Parts(m[None], e[None]).fit(em)[0] for m, e in zip(self.moments, self.entropies, strict=True)]
        return np.array(fits) + xlogy(self.moments[:, 0], self.moments[:, 0])  # their weights, but for Σw


@dataclass(frozen=True)
class _Change:
    """Some components, and what takes their place."""

    gone: tuple[int, ...]
    new: _Parts
    gain: float  # of the bound, about


def moves(em: EM, parameters: Any, rows: Array, weights: Array, n: int, each: int | None = None) -> list[Any]:
    """Parameters of mixtures with some components split and as many pairs of others merged, the most promising first.

    None of less than three components, or where one is too narrow for moments about the origin.

    Parameters
    ----------
    em : EM
    parameters
        Of a mixture that EM has fitted to the rows, about the frame's shift.
    rows : ndarray of shape (m, d)
    weights : ndarray of shape (m,)
    n : int
        Pairs of a split and a merge that are considered.
    each : int, optional
        Splits and merges that are paired, at most so many of each.
    """
    components = em.family.components(parameters, em.frame)
    k = len(components.means)
    if k < 3 or (lost(components.own_reach) > _LOST).any():
        return []
    z = em.frame.apply(rows)
    log_joint, resp = _e_step(components, z)
    now = _Parts.of(em, z, resp, weights)
    split = partial(_split, replace(em, max_iter=_SPLIT_PASSES, single=True), rows, z, weights)
    merges = _promising(_merges(em, now, resp, weights))
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        splits = _promising(threads.map(split, range(k), repeat(now), resp, log_joint))
    alone = [] if em.family.reseeds else [(_emptying(change),) for change in merges]
    fits = []
    for changes in (*_pairs(merges[:each], splits[:each])[:n], *_several(merges, splits), *alone):
        kept = np.setdiff1d(np.arange(k), [c for change in changes for c in change.gone])
        found = reduce(add, (change.new for change in changes), now.take(kept))
        # Under a Dirichlet process the likeliest order is by size (Kurihara et al. 2007, IJCAI 20, §3).
        order = np.arange(k) if em.family.reseeds else np.argsort(-found.moments[:, 0], kind="stable")
        fits.append(found.take(order).fit(em))
    return [parameters for bound, parameters in sorted(fits, key=lambda fit: -fit[0]) if bound > -np.inf]


def _emptying(merge: _Change) -> _Change:
    """A merge that leaves a component without rows, where one may be superfluous."""
    return replace(merge, new=merge.new + _Parts(np.zeros_like(merge.new.moments), np.zeros(1)))


def _promising(changes: Iterable[_Change]) -> list[_Change]:
    return sorted((change for change in changes if change.gain > -np.inf), key=lambda change: -change.gain)


def _pairs(merges: Sequence[_Change], splits: Sequence[_Change]) -> list[tuple[_Change, _Change]]:
    """A merge and a split of another component, the most promising first."""
    pairs = (pair for pair in product(merges, splits) if set(pair[0].gone).isdisjoint(pair[1].gone))
    return sorted(pairs, key=lambda pair: -(pair[0].gain + pair[1].gain))


def _several(merges: Sequence[_Change], splits: Sequence[_Change]) -> Iterator[tuple[_Change, ...]]:
    """Growing sets of moves that have no components in common, each of which raises the bound by itself."""
    chosen: tuple[_Change, ...] = ()
    used: set[int] = set()
    for split in splits:
        taken = used.union(split.gone)
        merge = next((merge for merge in merges if taken.isdisjoint(merge.gone)), None)
        if used.isdisjoint(split.gone) and merge is not None and split.gain + merge.gain > 0:
            chosen += (split, merge)
            used = taken.union(merge.gone)
            if len(chosen) > 2:
                yield chosen


def _merges(em: EM, now: _Parts, resp: Array, weights: Array) -> Iterator[_Change]:
    """Pairs as one, twice as many as there are components: their entropies cost more, and mostly decide less."""
    values = now.values(em)

    def merge(pair: tuple[int, ...]) -> _Change:
        new = _Parts(*(sums[list(pair)].sum(axis=0, keepdims=True) for sums in (now.moments, now.entropies)))
        return _Change(pair, new, float(new.values(em)[0] - values[list(pair)].sum()))

    merges = [merge(pair) for pair in combinations(range(len(resp)), 2)]
    for change in sorted(merges, key=lambda change: -change.gain)[: 2 * len(resp)]:
        entropies = entr(resp[list(change.gone)].sum(axis=0, keepdims=True)) @ weights
        gain = change.gain + float(entropies[0] - change.new.entropies[0])
        yield _Change(change.gone, replace(change.new, entropies=entropies), gain)


def _split(
    em: EM, rows: Array, z: Array, weights: Array, k: int, now: _Parts, gammas: Array, densities: Array
) -> _Change:
    """Component k as two, likeliest after some EM on its rows: of those γ (m,) and log joint densities (m,)."""
    held = np.flatnonzero(gammas > _HELD)
    share = _upper(em, rows[held], z[:, held], (weights * gammas)[held], densities[held])
    if share is None:
        return _Change((k,), now, -np.inf)
    upper = np.zeros_like(gammas)
    upper[held] = share * gammas[held]
    part = _Parts.of(em, z[:, held], upper[None, held], weights[held])
    lower = _Parts(now.moments[k] - part.moments, np.array([entr(np.maximum(gammas - upper, 0)) @ weights]))
    new = lower + part
    return _Change((k,), new, float(new.values(em).sum() - now.take([k]).values(em)[0]))


def _e_step(components: Components, z: Array) -> tuple[Array, Array]:
    """Log joint densities (k, m) of rows z (d, m), and responsibilities."""
    log_joint = np.concatenate([tile for _, tile in log_joint_of(z.T, components, LEAST[DOUBLE])], axis=1)
    resp = log_joint.copy()
    log_densities(resp)
    return log_joint, resp


def _upper(em: EM, x: Array, z: Array, weights: Array, densities: Array) -> Array | None:
    """Responsibilities (m,) of one of two components for weighted rows that had one."""
    if len(x) == 0:
        return None
    centred = z - np.average(z, axis=1, weights=weights)[:, None]
    longest = np.linalg.eigh((centred * weights) @ centred.T)[1][:, -1]
    whole = _Parts.of(em, z, np.ones((1, len(x))), weights)

    def one_pass(models: Sequence[Components], dtypes: Sequence[Precision]) -> list[Stats]:
        found = statistics([(x, weights)], models, dtypes)
        return [completed(s, m) for s, m in zip(found, models, strict=True)]

    fits: list[EMState] = []
    for upper in (longest @ centred > 0, densities > np.median(densities)):  # along the longest axis, or inside out
        part = _Parts.of(em, z, upper[None].astype(float), weights)
        parameters = (_Parts(whole.moments - part.moments, part.entropies) + part).fit(em)[1]
        if parameters is not None:
            with suppress(ValueError):  # collapsed
                fits += em.run([EMState(parameters)], one_pass, lambda _: None)
    if not fits:
        return None
    best = max(fits, key=lambda state: state.lower_bound)
    return _e_step(em.family.components(best.parameters, em.frame), z)[1][1]
