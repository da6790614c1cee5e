"""A component in two: EM on the rows that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from daskgmm.em.bound import Change, Parts
from daskgmm.em.estep import completed, e_step, statistics
from daskgmm.em.loop import EM, EMState, OnePass
from daskgmm.em.prepared import Precision
from daskgmm.em.stats import Stats
from daskgmm.families.base import Components
from daskgmm.families.frame import Array

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
            found = statistics([(rows[held], weights)], models, dtypes)  # kept, all components' would be many copies
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
        """The same after passes over the rows, ``max_iter`` of them from the start."""
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
