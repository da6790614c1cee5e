"""Rows whose component is known, beside others: semi-supervised EM.

Nigam et al. 2000, Text Classification from Labeled and Unlabeled Documents using EM, Machine Learning 39. Of known rows
each responsibility is 0 or 1 whatever the parameters, so that in each pass they add the same moments, and to the
likelihood what follows from these: they are summed once, and no later pass looks at them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from daskgmm.em.stats import Stats
from daskgmm.families.base import Components
from daskgmm.families.frame import Array


def nothing(model: Components) -> Stats:
    """The statistics of no rows."""
    return Stats(0, 0.0, np.zeros((len(model.means), 1 + model.means.shape[1] + len(model.products[0]))))


def shifted(moments: Array, by: Array, products: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]) -> Array:
    """Moments (k, p) of rows, each of which is moved by as much (k, d)."""
    (left, right), d = products, by.shape[1]
    count, sums, found = moments[:, :1], moments[:, 1 : 1 + d], moments.copy()
    found[:, 1 : 1 + d] += count * by
    found[:, 1 + d :] += sums[:, left] * by[:, right] + by[:, left] * sums[:, right]
    found[:, 1 + d :] += count * by[:, left] * by[:, right]
    return found


@dataclass(frozen=True)
class Known:
    """The rows whose component is known."""

    n: int
    moments: Array  # (k, p)
    blank: Components  # whose centres they are about
    alone: bool  # are there no others?

    def beside(self, stats: Stats, model: Components) -> Stats:
        """The statistics of the other rows, and of these."""
        return replace(
            stats,
            n=stats.n + self.n,
            moments=stats.moments + self._about(model.centres),
            log_likelihood=stats.log_likelihood + self._log_likelihood(model),
        )

    def _log_likelihood(self, model: Components) -> float:
        """Σ w log p(x, k), each row with its own k; about the means, where no digits are lost."""
        held = self.moments[:, 0] > 0  # zero times the logarithm of a weight of zero is nothing
        if model.linear:
            return float((model.theta * self.moments)[held].sum())
        moments = self._about(model.means)[held]
        quadratic = 1 + model.means.shape[1]
        products = model.theta[held, quadratic:] * moments[:, quadratic:]
        return float(model.constants[held] @ moments[:, 0] + products.sum())

    def _about(self, centres: Array) -> Array:
        return shifted(self.moments, self.blank.centres - centres, self.blank.products)
