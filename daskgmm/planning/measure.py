"""How fast a pass goes here: a few seconds of trying on blocks spread over the data."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from daskgmm.data.blocks import BLOCK_VALUES, Block, Samples, of_numpy, region_size
from daskgmm.em.estep import block_stats, block_stats_of_models, completed
from daskgmm.em.layout import DOUBLE, SINGLE, Precision, prepare
from daskgmm.em.loop import EM, EMState
from daskgmm.em.stats import Stats
from daskgmm.families.base import Components, Family
from daskgmm.families.frame import Array, Rows
from daskgmm.fitting.em_pass import EMPass
from daskgmm.fitting.starts import first_m_step
from daskgmm.fitting.survey import merge, survey_block
from daskgmm.passes.graph import FAN_IN
from daskgmm.passes.reader import Reader, not_finite_error
from daskgmm.planning.plan import Rates
from daskgmm.process import single_blas

_TRIALS = 12  # blocks, at most
_THREADS = 4  # at most: more of them would wait for Python's lock, which workers do not share
_STEPS = 3  # of EM, after which responsibilities look like those of a fit
_ROWS_A_PARAMETER = 10  # below which such steps would find covariances that a fit does not have
_FEW = 1024  # rows, to know how many there is time for


def calibrate(
    samples: Samples, family: Family, k: int, *, missing: str = "raise", at_once: int = 1, budget: float = 3.0
) -> tuple[Rates, Components]:
    """Measure the rates on a few blocks, spread over samples in a store, and the components they hold for.

    Data that the operating system holds in memory are read as fast in the trial, and as slowly those it does not hold.

    Parameters
    ----------
    samples : Samples
    family : Family
    k : int
        Number of components.
    missing : str
        As in a fit.
    at_once : int
        Workers on this machine, which have its memory and its caches to share: as many threads try.
    budget : float
        Seconds, about; two blocks are tried in any case, if there are.

    Raises
    ------
    ValueError
        The data cannot be fitted: too few rows, or a value that is not finite.
    """
    if samples.n < k:
        raise ValueError(
            f"Expected n_samples >= n_components but got n_components = {k}, n_samples = {samples.n}: "
            "lower n_components"
        )
    end = time.perf_counter() + budget
    rng = np.random.RandomState(0)
    spread = np.unique(np.linspace(0, len(samples.blocks) - 1, _TRIALS).astype(int))
    heads = [_head(samples, samples.blocks[i]) for i in rng.permutation(spread)]
    threads = min(at_once, len(spread), _THREADS)
    with single_blas(), ThreadPoolExecutor(threads) as pool:
        components = _typical(samples, family, k, heads, missing, rng)
        few = list(_cut(_read(samples, heads[0]), _FEW))
        kinds = [prepare([components], kind, pool=False) for kind in (_most(components), DOUBLE)]
        for prepared in kinds * 2:  # the first call loads compiled code
            _, seconds = _timed(block_stats, few, prepared)
        (stats,) = block_stats_of_models(few, [components])
        rows = max(_FEW, int(_n(few) / seconds * budget / _TRIALS / len(kinds)))
        _, maximize = _timed(_maximize, family, components, stats)
        _, combine = _timed(_combine, [pickle.dumps(stats)] * FAN_IN)

        def attempt(i: int, head: Block) -> Array:
            """Seconds and rows, of reading, of both kinds of arithmetic and of the survey."""
            if i >= max(2, threads) and time.perf_counter() > end:
                return np.zeros((2, 4))
            pieces, decode = _timed(_read, samples, head)
            few = list(_cut(pieces, rows))
            times = [_timed(block_stats, few, prepared)[1] for prepared in kinds]
            _, scan = _timed(survey_block, head, iter(pieces), np.empty(0, dtype=np.int64))
            return np.array([(decode, *times, scan), (head.n, _n(few), _n(few), head.n)])

        seconds, done = np.sum(list(pool.map(attempt, range(_TRIALS), [*heads[1:], heads[0]])), axis=0)
    decode, arithmetic, exact, scan = (seconds / done).tolist()
    return Rates(decode, arithmetic, exact, scan, maximize, combine), components


def _most(components: Components) -> Precision:
    """The precision of most passes."""
    return SINGLE if components.float32_suffices else DOUBLE


def _typical(
    samples: Samples,
    family: Family,
    k: int,
    heads: Sequence[Block],
    missing: str,
    rng: np.random.RandomState,
) -> Components:
    """Components about as wide as those of a fit, and where the rows suffice, after a few steps of EM.

    Of rows from several places: those of one are more alike than all.
    """
    places = [replace(head, regions=head.regions[:1]) for head in heads]
    survey = merge([survey_block(at, iter(_read(samples, at)), np.arange(at.start, at.start + at.n)) for at in places])
    if survey.bad is not None and missing != "drop":
        position, feature, value = survey.bad
        raise not_finite_error(samples.locate(position, feature), value, "pass missing='drop' to leave such rows out")
    if not survey.n:
        raise ValueError(
            f"none of the {sum(at.n for at in places)} rows that were looked at is finite, so nothing can be tried: "
            "leave out the variables that are missing there"
        )
    rows = survey.sample
    frame = family.frame(rows, survey.low, survey.high)
    rows = rng.permutation(rows)[: max(10_000, _ROWS_A_PARAMETER * k * rows.shape[1])]
    seeded = Reader(of_numpy([rows], rows.shape[:1], rows.shape[1]))
    one, _ = first_m_step(seeded, family, family.zero_components(1, frame), None, rng)
    narrower = k ** (1 / rows.shape[1])
    parameters = replace(
        one,
        weights=np.full(k, 1 / k),
        means=rows[rng.choice(len(rows), k, replace=len(rows) < k)] - frame.shift,
        covariances=np.repeat(one.covariances / narrower**2, k, axis=0),
        factors=np.repeat(one.factors * narrower, k, axis=0),
    )
    if len(rows) >= _ROWS_A_PARAMETER * k * rows.shape[1]:
        em = EM(family, frame, rows - frame.shift, 0, _STEPS, accelerate=False)
        with suppress(ValueError):  # a component without rows: the start has to do
            parameters = em.run([EMState(parameters)], EMPass(seeded), lambda info: None)[0].parameters
    tight = family.components(parameters, frame).ill_conditioned
    if tight.any() and not tight.all():  # of few rows yet: as wide as the largest of the others
        largest = int(np.argmax(np.where(tight, 0, parameters.weights)))
        for values in (parameters.covariances, parameters.factors):
            values[tight] = values[largest]
    return family.components(parameters, frame)


def _read(samples: Samples, block: Block) -> list[Rows]:
    return [samples.source.read(region) for region in block.regions]


def _combine(messages: Sequence[bytes]) -> Stats:
    return reduce(add, map(pickle.loads, messages))


def _maximize(family: Family, components: Components, stats: Stats) -> None:
    with suppress(ValueError):  # a component without rows takes as long
        family.maximize(components, completed(stats, components).moments)


def _head(samples: Samples, block: Block) -> Block:
    """The first regions of a block: as much as a task of a small data set has."""
    n = max(1, BLOCK_VALUES // (samples.n_features * region_size(block.regions[0])))
    return replace(block, regions=block.regions[:n])


def _cut(pieces: Sequence[Rows], rows: int) -> Iterator[Rows]:
    for x, w in pieces:
        if rows > 0:
            yield x[:rows], w if w is None else w[:rows]
        rows -= len(x)


def _n(pieces: Sequence[Rows]) -> int:
    return sum(len(x) for x, _ in pieces)


def _timed(work: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = work(*args, **options)
    return result, time.perf_counter() - begin
