"""Rows whose component is known, beside others: semi-supervised EM.

Nigam et al. 2000, Text Classification from Labeled and Unlabeled Documents using EM, Machine Learning 39. Of known rows
each responsibility is 0 or 1 whatever the parameters, so that in each pass they add the same moments, and to the
likelihood what follows from these: they are summed once, and no later pass looks at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.em.estep import Rows, coded, start_statistics
from daskgmm.em.stats import Stats
from daskgmm.families.base import Components
from daskgmm.families.coding import Coding
from daskgmm.families.frame import Array

Labelled = tuple[npt.NDArray[np.generic], Any]  # x (n, d) and weights (n,) or None, or a pair: these, and labels (n,)


def split(beside: Any) -> tuple[Array | None, npt.NDArray[Any] | None]:
    """Weights and labels, if there are any."""
    return beside if isinstance(beside, tuple) else (beside, None)


def others(pieces: Iterable[Labelled]) -> Iterator[Rows]:
    """The rows without a label: all of those that are not known."""
    for x, (weights, labels) in pieces:
        free = labels < 0
        if free.all():
            yield x, weights
        elif free.any():
            yield x[free], None if weights is None else weights[free]


def known_statistics(pieces: Iterable[Labelled], coding: Coding, blank: Components) -> tuple[Stats, ...]:
    """Moments of the rows with a label, each in its component."""
    total = nothing(blank)
    for x, (weights, labels) in pieces:
        for label in np.unique(labels[labels >= 0]).astype(np.intp):
            at = labels == label
            rows = [(x[at], None if weights is None else weights[at])]
            (stats,) = start_statistics(coded(rows, coding), blank.take(np.array([label])), _certain)
            total.moments[label] += stats.moments[0]
            total = replace(total, n=total.n + stats.n)
    return (total,)


def _certain(z: Array) -> Array:
    return np.ones((1, z.shape[1]))


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
