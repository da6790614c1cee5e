"""What it takes to go on with fits that were left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from daskgmm.em.info import Info
from daskgmm.em.labelled import Known
from daskgmm.em.loop import EM, EMState


@dataclass(frozen=True)
class Begun:
    """Where the passes of EM start, for one candidate."""

    states: tuple[EMState, ...]
    history: tuple[Info, ...]  # of the sample
    n_passes: int  # over all of the data
    rows_known: Known | None  # those whose component is


@dataclass(frozen=True)
class Progress:
    """How far the passes of EM are."""

    states: tuple[EMState, ...]
    history: tuple[Info, ...]
    n_passes: int
    tol: float  # under which states have converged

    def under(self, tol: float) -> Progress:
        """The same under another tolerance: what has converged goes on, if that is less."""
        if tol >= self.tol:
            return replace(self, tol=tol)
        return replace(self, tol=tol, states=tuple(replace(state, converged=False) for state in self.states))


def check_states(ems: Sequence[EM], states: Sequence[EMState], ks: Sequence[int]) -> None:
    """Refuse states that are not of mixtures of so many components.

    Raises
    ------
    ValueError
    """
    if len(ems) != len(states) or not all(map(_sound, ems, states, ks)):
        raise ValueError("the checkpoint holds what is not of this mixture: begin the fit in another directory")


def _sound(em: EM, state: EMState, k: int) -> bool:
    blank = em.family.blank(k, em.frame)
    try:
        thetas = [em.family.components(some.parameters, em.frame).theta for some in (state, state.settled)]
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError):
        return False
    moments = (*state.mixing.points, *state.mixing.images, *([] if state.point is None else [state.point]))
    sound = (array.size == blank.theta.size and np.isfinite(array).all() for array in moments)
    return all(theta.shape == blank.theta.shape and (theta < np.inf).all() for theta in thetas) and all(sound)
