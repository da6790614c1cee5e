"""Moves to better optima: components are split in two, and as many pairs of others are merged.

EM cannot carry a component from where there are too many to where there are too few. The moves are those of Ueda,
Nakano, Ghahramani & Hinton 2000, SMEM Algorithm for Mixture Models, Neural Computation 12; here they are compared by
the bound, of which a move changes the parts of three components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import entr, xlogy

from daskgmm.em.estep import block_stats_of_models, completed, e_step, moments_from_responsibilities
from daskgmm.em.layout import Precision
from daskgmm.em.loop import EM, EMState, OnePass
from daskgmm.em.stats import Stats
from daskgmm.families.base import Components
from daskgmm.families.frame import Array, lost

_SPLIT_PASSES = 12  # over a component's rows; after 8 textbook ones, worse moves were chosen in two of 27 fits
# Where few splits are asked for: passes for all, and of how many times as many they decide which go on. On patches the
# best four were always among the best five after so few, of 32 components.
_FIRST_PASSES, _AHEAD = 3, 2
# Pairs a component that are merged: in four looks at patches, the best eight of all 496 were among the first 52.
_NEAREST = 3
_AT_ONCE = 2  # threads; more would wait for Python's lock
_LOST = 1e-4  # of a variance, at most, in moments about the origin: bounds are compared to about so many nats

Over = Callable[..., Iterator[Any]]  # as `map`


def moves(em: EM, parameters: Any, rows: Array, weights: Array, n: int, each: int | None = None) -> list[Any]:
    """Parameters of mixtures with some components split and as many pairs of others merged, the most promising first.

    None of less than three components, or where one is too narrow for moments about the origin.

    Parameters
    ----------
    em : EM
    parameters
        Of a mixture that EM has fitted to the rows, to the end or nearly, about the frame's shift.
    rows : ndarray of shape (m, d)
    weights : ndarray of shape (m,)
    n : int
        Pairs of a split and a merge that are considered.
    each : int, optional
        Splits and merges that are paired, at most so many of each: other splits are not looked at so closely.
    """
    components = em.family.components(parameters, em.frame)
    k = len(components.means)
    if k < 3 or (lost(components.centre_distance_in_sd) > _LOST).any():
        return []
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        seen = _Seen.of(em, components, rows, weights, threads.map)
        merges = _promising(seen.merges(em, components))
        splits = _promising(seen.splits(em, each, threads.map))

        def fit(changes: Sequence[Change]) -> tuple[float, Any]:
            kept = np.setdiff1d(np.arange(k), [gone for change in changes for gone in change.gone])
            found = reduce(add, (change.new for change in changes), seen.parts.take(kept))
            # Under a Dirichlet process the likeliest order is by size (Kurihara et al. 2007, IJCAI 20, §3).
            order = (
                np.arange(k) if em.family.restarts_empty_components else np.argsort(-found.moments[:, 0], kind="stable")
            )
            return found.take(order).fit(em)

        alone = [] if em.family.restarts_empty_components else [(_emptying(change),) for change in merges]
        fits = [*threads.map(fit, (*_pairs(merges[:each], splits[:each])[:n], *_several(merges, splits), *alone))]
    return [parameters for bound, parameters in sorted(fits, key=lambda fit: -fit[0]) if bound > -np.inf]


@dataclass(frozen=True)
class _Seen:
    """The rows, as the mixture has them."""

    rows: Array  # (m, d)
    z: Array  # (d, m) in the frame
    weights: Array  # (m,)
    log_joint: Array  # (k, m)
    resp: Array  # (k, m)
    parts: Parts

    @staticmethod
    def of(em: EM, components: Components, rows: Array, weights: Array, over: Over) -> _Seen:
        def look(rows: Array, weights: Array) -> tuple[Array, Array, Array, Parts]:
            z = em.frame.apply(rows)
            log_joint, resp = e_step(components, z)
            return z, log_joint, resp, Parts.of(em, z, resp, weights)

        *blocks, parts = zip(*over(look, *(np.array_split(a, _AT_ONCE) for a in (rows, weights))), strict=True)
        z, log_joint, resp = (np.concatenate(block, axis=1) for block in blocks)
        summed = Parts(sum(part.moments for part in parts), sum(part.entropies for part in parts))
        return _Seen(rows, z, weights, log_joint, resp, summed)

    def merges(self, em: EM, components: Components) -> Iterator[Change]:
        """Pairs as one: those that lose the least if the rows of one are given to the other as it is."""
        now, values = self.parts, self.parts.values(em)
        given = components.theta @ now.moments.T  # of component i's rows to j, at j, i: Σ γ log joint
        loss = given.diagonal() - given
        pairs = np.column_stack(np.triu_indices(len(loss), 1))
        least = np.minimum(loss, loss.T)[*pairs.T]
        for pair in pairs[np.argsort(least, kind="stable")[: _NEAREST * len(loss)]]:
            entropies = entr(self.resp[pair].sum(axis=0, keepdims=True)) @ self.weights
            new = Parts(now.moments[pair].sum(axis=0, keepdims=True), entropies)
            yield Change(tuple(pair.tolist()), new, float(new.values(em)[0] - values[pair].sum()))

    def splits(self, em: EM, each: int | None, over: Over) -> Iterator[Change]:
        """Components as two, after some EM: all, or those that are ahead after a few passes."""
        longest = replace(em, max_iter=_SPLIT_PASSES, single=True)
        first = longest if each is None else replace(longest, max_iter=_FIRST_PASSES)

        def halve(k: int) -> tuple[int, Halves]:
            resp, log_joint = self.resp[k], self.log_joint[k]
            return k, Halves.of(em, self.rows, self.z, self.weights, resp, log_joint).after(first)

        def split(found: tuple[int, Halves]) -> Change:
            k, halves = found
            return halves.after(longest).change(em, self.z, self.weights, k, self.parts, self.resp[k])

        best = sorted(over(halve, range(len(self.resp))), key=lambda found: -found[1].gain)
        return over(split, best[: each and _AHEAD * each])


def _emptying(merge: Change) -> Change:
    """A merge that leaves a component without rows, where one may be superfluous."""
    return replace(merge, new=merge.new + Parts(np.zeros_like(merge.new.moments), np.zeros(1)))


def _promising(changes: Iterable[Change]) -> list[Change]:
    return sorted((change for change in changes if change.gain > -np.inf), key=lambda change: -change.gain)


def _pairs(merges: Sequence[Change], splits: Sequence[Change]) -> list[tuple[Change, Change]]:
    """A merge and a split of another component, the most promising first."""
    pairs = (pair for pair in product(merges, splits) if set(pair[0].gone).isdisjoint(pair[1].gone))
    return sorted(pairs, key=lambda pair: -(pair[0].gain + pair[1].gain))


def _several(merges: Sequence[Change], splits: Sequence[Change]) -> Iterator[tuple[Change, ...]]:
    """Growing sets of moves that have no components in common, each of which raises the bound by itself."""
    chosen: tuple[Change, ...] = ()
    used: set[int] = set()
    for split in splits:
        taken = used.union(split.gone)
        merge = next((merge for merge in merges if taken.isdisjoint(merge.gone)), None)
        if used.isdisjoint(split.gone) and merge is not None and split.gain + merge.gain > 0:
            chosen += (split, merge)
            used = taken.union(merge.gone)
            if len(chosen) > 2:
                yield chosen


# -----------------------------------------------------------------------------
# Halves
# -----------------------------------------------------------------------------
#
# A component in two: EM on the rows that it holds.

_HELD = 0.01  # γ of a component from which its rows count


@dataclass(frozen=True)
class Halves:
    """Mixtures of two on the rows of a component: EM from two starts."""

    held: npt.NDArray[np.intp]  # (m,) these rows
    one_pass: OnePass  # over them
    states: list[EMState]  # of those that did not collapse
    weight: float  # Σ w γ
    whole: float  # the bound of one component

    @staticmethod
    def of(em: EM, rows: Array, z: Array, weights: Array, gammas: Array, densities: Array) -> Halves:
        """Starts of a component of γ (m,) and log joint densities (m,): along its longest axis, and inside out."""
        held = np.flatnonzero(gammas > _HELD)
        z, weights, densities = z[:, held], (weights * gammas)[held], densities[held]

        def one_pass(models: Sequence[Components], dtypes: Sequence[Precision]) -> list[Stats]:
            found = block_stats_of_models(
                [(rows[held], weights)], models, dtypes
            )  # kept, all components' would be many copies
            return [completed(s, m) for s, m in zip(found, models, strict=True)]

        if len(held) == 0:
            return Halves(held, one_pass, [], 0.0, 0.0)
        centred = z - np.average(z, axis=1, weights=weights)[:, None]
        longest = np.linalg.eigh((centred * weights) @ centred.T)[1][:, -1]
        whole = Parts.of(em, z, np.ones((1, len(held))), weights)
        states = []
        for upper in (longest @ centred > 0, densities > np.median(densities)):
            part = Parts.of(em, z, upper[None].astype(float), weights)
            parameters = (Parts(whole.moments - part.moments, part.entropies) + part).fit(em)[1]
            states += [] if parameters is None else [EMState(parameters)]
        return Halves(held, one_pass, states, float(weights.sum()), whole.fit(em)[0])

    def after(self, em: EM) -> Halves:
        """Run EM on the rows, up to ``max_iter`` passes from the start."""
        try:
            return replace(self, states=em.run(self.states, self.one_pass, lambda _: None))
        except ValueError:  # all collapsed
            return replace(self, states=[])

    @property
    def gain(self) -> float:
        """Of the bound, for these rows alone; -inf if the component cannot be two."""
        return max((state.lower_bound * self.weight - self.whole for state in self.states), default=-np.inf)

    def change(self, em: EM, z: Array, weights: Array, k: int, now: Parts, gammas: Array) -> Change:
        """Component k, of γ (m,), as the likelier two."""
        if not self.states:
            return Change((k,), now, -np.inf)
        best = max(self.states, key=lambda state: state.lower_bound)
        share = e_step(em.family.components(best.parameters, em.frame), z[:, self.held])[1][1]
        upper = np.zeros_like(gammas)
        upper[self.held] = share * gammas[self.held]
        part = Parts.of(em, z[:, self.held], upper[None, self.held], weights[self.held])
        lower = Parts(now.moments[k] - part.moments, np.array([entr(np.maximum(gammas - upper, 0)) @ weights]))
        new = lower + part
        return Change((k,), new, float(new.values(em).sum() - now.take([k]).values(em)[0]))


# -----------------------------------------------------------------------------
# The bound
# -----------------------------------------------------------------------------
#
# What a mixture could be at best, if its responsibilities were these: mixtures compared before EM has run for any of
# them.
#
# For any responsibilities γ, F(γ) = max over θ of Σ w γ (log joint − log γ) is not above the log-likelihood of that θ,
# and where EM has converged it is equal to it (Neal & Hinton 1998, A View of the EM Algorithm). As log joint = θ·φ, it
# takes no more than the moments of γ and their entropies.


@dataclass(frozen=True)
class Parts:
    """What the bound needs of responsibilities: sums over the rows."""

    moments: Array  # (k, p)  Σ w γ φ
    entropies: Array  # (k,)  −Σ w γ log γ

    @staticmethod
    def of(em: EM, z: Array, resp: Array, weights: Array) -> Parts:
        """Of responsibilities (k, m) for rows z (d, m)."""
        moments = moments_from_responsibilities(z, resp * weights, em.family.zero_components(len(resp), em.frame))
        return Parts(moments, entr(resp) @ weights)

    def __add__(self, other: Parts) -> Parts:
        """Both, side by side."""
        return Parts(np.concatenate([self.moments, other.moments]), np.concatenate([self.entropies, other.entropies]))

    def take(self, ks: Any) -> Parts:
        """These of them."""
        return Parts(self.moments[ks], self.entropies[ks])

    def fit(self, em: EM) -> tuple[float, Any]:
        """The bound, and the parameters that it belongs to."""
        try:
            parameters = em.family.maximize(em.family.zero_components(len(self.moments), em.frame), self.moments)
        except ValueError:  # a component collapsed
            return -np.inf, None
        theta = em.family.components(parameters, em.frame).theta
        log_prior = em.family.log_prior(parameters, em.frame)
        return float((theta * self.moments).sum() + self.entropies.sum() + log_prior), parameters

    def values(self, em: EM) -> Array:
        """What each adds to the bound, if it shares nothing with the others: (k,)."""
        fits = [Parts(m[None], e[None]).fit(em)[0] for m, e in zip(self.moments, self.entropies, strict=True)]
        return np.array(fits) + xlogy(self.moments[:, 0], self.moments[:, 0])  # their weights, but for Σw


@dataclass(frozen=True)
class Change:
    """Some components, and what takes their place."""

    gone: tuple[int, ...]
    new: Parts
    gain: float  # of the bound, about
