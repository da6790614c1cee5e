"""The pass of EM over all rows, with sums over labelled rows added, and a check that the data stay as they were.

The check rests on sums that no parameters decide. The γ of a row sum to 1, so Σ_k Σ γ φ is Σ φ, whatever the model: in
each pass the rows, their weight and their mean are those of the survey.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from daskgmm.data.blocks import Block, Samples
from daskgmm.em.estep import block_stats, compile_statistics, completed
from daskgmm.em.labelled import Known, nothing
from daskgmm.em.layout import KernelLayout, Precision, kind, prepare
from daskgmm.em.loop import OnePass
from daskgmm.em.stats import Stats
from daskgmm.families.base import Components
from daskgmm.families.frame import Array, Frame, Rows
from daskgmm.fitting.survey import Survey
from daskgmm.passes.graph import total
from daskgmm.passes.reader import Reader


class EMPass:
    """E-step and moments over all samples: what `daskgmm.em.loop.EM.run` calls once an iteration."""

    def __init__(self, reader: Reader, n: int = 0) -> None:
        self.n = n  # passes made
        self._reader = reader
        self._compiled: set[Any] = set()
        self._scatter: dict[Any, Array] = {}  # of models that share the quadratic part of θ: equal in each pass

    def __call__(self, models: Sequence[Components], dtypes: Sequence[Precision]) -> list[Stats]:
        kinds = [(*kind(model), dtype) for model, dtype in zip(models, dtypes, strict=True)]
        if not self._compiled.issuperset(kinds):
            compile_statistics(models, dtypes)
            self._compiled.update(kinds)
        self.n += 1
        lean = {kind for kind, model in zip(kinds, models, strict=True) if model.shares_quadratic}
        pool = not lean.issubset(self._scatter)
        kernel = partial(_block_stats, layouts=prepare(models, dtypes, pool))
        stats = total(self._reader, kernel)
        if pool:
            self._scatter |= {k: s.scatter for k, m, s in zip(kinds, models, stats, strict=True) if m.shares_quadratic}
        return [completed(s, m, self._scatter.get(k)) for k, m, s in zip(kinds, models, stats, strict=True)]


def _block_stats(block: Block, pieces: Iterator[Rows], layouts: Sequence[KernelLayout]) -> tuple[Stats, ...]:
    return block_stats(pieces, layouts)


class LabelledPass:
    """An `EMPass` over the other rows, with what is known added; over none, it reads nothing."""

    def __init__(self, others: EMPass, known: Known) -> None:
        self._others, self._known = others, known

    def __call__(self, models: Sequence[Components], dtypes: Sequence[Precision]) -> list[Stats]:
        stats = [nothing(model) for model in models] if self._known.alone else self._others(models, dtypes)
        return [self._known.beside(s, model) for s, model in zip(stats, models, strict=True)]


# What sums lose, as multiples of what a number is rounded by: of the weight, and of the farthest row or the offset. 51
# and 13 were seen, over offsets to 1e8, outliers to 1e7, sorted rows and weights.
_OF_WEIGHT, _OF_MEAN = 1000, 100


class ConsistencyCheckedPass:
    """A pass that refuses data which are not those of the survey.

    Parameters
    ----------
    one_pass : OnePass
    reader : Reader
    survey : Survey
    look_again : callable
        Surveys the samples once more.
    """

    def __init__(self, one_pass: OnePass, reader: Reader, survey: Survey, look_again: Callable[[], Survey]) -> None:
        self._one_pass, self._reader, self._survey, self._look_again = one_pass, reader, survey, look_again
        self._first: dict[int, tuple[Frame, Array, Any]] = {}  # means in each frame, where the survey tells none

    def __call__(self, models: Sequence[Components], dtypes: Sequence[Precision]) -> Sequence[Stats]:
        found = self._one_pass(models, dtypes)
        for stats, model, dtype in zip(found, models, dtypes, strict=True):
            if not self._same(stats, model, dtype):
                check_data_unchanged(self._reader.samples, self._survey, self._look_again())
                raise ValueError(
                    f"a pass found {stats.n} rows of weight {stats.weight:g}, the survey {self._survey.n} of "
                    f"{self._survey.weight:g}, or others in their place: the data change while they are fitted, or a "
                    "worker reads others; fit them again once nothing writes to them"
                )
        return found

    def _same(self, stats: Stats, model: Components, dtype: Precision) -> bool:
        survey, frame, eps = self._survey, model.frame, np.finfo(dtype).eps
        if stats.n != survey.n or not np.isclose(stats.weight, survey.weight, rtol=_OF_WEIGHT * eps):
            return stats.n == survey.n and not np.isfinite(stats.moments).all()  # the loop says why
        d = model.means.shape[1]
        mean = (stats.moments[:, 1 : 1 + d] + stats.moments[:, :1] * model.centres).sum(axis=0) / stats.weight
        if self._reader.encoding.plain:
            expected = frame.means_in(survey.sums / survey.weight - frame.shift)
        else:
            _, expected, coarser = self._first.get(id(frame), (frame, mean, eps))
            if coarser >= eps:
                self._first[id(frame)] = frame, mean, eps
            eps = max(eps, coarser)
        rounding = eps * frame.radius + np.finfo(np.float64).eps * frame.reach(frame.shift)
        return not (np.abs(mean - expected) > _OF_MEAN * rounding).any()


def check_data_unchanged(samples: Samples, before: Survey, now: Survey) -> None:
    """Refuse data of which a survey differs from one before.

    Raises
    ------
    ValueError
        Names the first block that differs.
    """
    same = (before.blocks == now.blocks) | (np.isnan(before.blocks) & np.isnan(now.blocks))
    if not same.all():
        block = samples.blocks[int(np.argmin(same.all(axis=1)))]
        first, last = samples.locator(block, 0, None), samples.locator(block, block.n - 1, None)
        raise ValueError(
            f"the data changed since they were surveyed, first between {first} and {last} ({(~same).any(axis=1).sum()} "
            f"of {len(same)} blocks): fit them from the start, once nothing writes to them"
        )
