"""A bound of the log-likelihood, by which mixtures are compared before EM has run for any of them.

For any responsibilities γ, F(γ) = max over θ of Σ w γ (log joint − log γ) is not above the log-likelihood of that θ,
and where EM has converged it is equal to it (Neal & Hinton 1998, A View of the EM Algorithm). As log joint = θ·φ, it
takes no more than the moments of γ and their entropies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import entr, xlogy

from daskgmm.em.estep import soft_moments
from daskgmm.em.loop import EM
from daskgmm.families.frame import Array


@dataclass(frozen=True)
class Parts:
    """What the bound needs of responsibilities: sums over the rows."""

    moments: Array  # (k, p)  Σ w γ φ
    entropies: Array  # (k,)  −Σ w γ log γ

    @staticmethod
    def of(em: EM, z: Array, resp: Array, weights: Array) -> Parts:
        """Of responsibilities (k, m) for rows z (d, m)."""
        moments = soft_moments(z, resp * weights, em.family.blank(len(resp), em.frame))
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
            parameters = em.family.maximize(em.family.blank(len(self.moments), em.frame), self.moments)
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
