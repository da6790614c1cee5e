"""A fit from samples to parameters: survey, frame, start, passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from daskgmm.data.blocks import Samples, joined
from daskgmm.em.info import Info
from daskgmm.em.loop import EM, Bounds, EMState, run, surviving
from daskgmm.families.base import Family
from daskgmm.fitting.checkpoint import NOWHERE, Begun, Journal, Progress, check_states
from daskgmm.fitting.em_pass import ConsistencyCheckedPass, EMPass, LabelledPass, check_data_unchanged
from daskgmm.fitting.labels import start_from_labels, sum_labelled
from daskgmm.fitting.options import Candidate
from daskgmm.fitting.sample import fit_on_sample, has_enough_rows, starts
from daskgmm.fitting.survey import Survey, draw, survey_samples
from daskgmm.passes.execution import pinned_client
from daskgmm.passes.memory import check_memory, keep_rows
from daskgmm.passes.reader import Reader
from daskgmm.process import single_blas

T = TypeVar("T")

_FRAME_ROWS = 10_000  # sampled for the frame where nothing else asks for a sample


@dataclass(frozen=True)
class Fit:
    """What came of it."""

    parameters: Any  # of the family, about the origin
    family: Family  # with what it learnt of the data
    state: EMState
    survey: Survey
    history: tuple[Info, ...]
    n_passes: int  # over all of the data: survey, start and EM


@dataclass(frozen=True)
class _Started:
    """A candidate on its way to the data."""

    em: EM
    survey: Survey
    begun: Begun

    def ended(self, states: Sequence[EMState], history: Sequence[Info], n_passes: int) -> Fit | ValueError:
        """The best of the states, after shared passes over the data; or why the first failed, if all did."""
        try:
            best = max(surviving(states), key=lambda state: state.lower_bound)
        except ValueError as failure:
            return failure
        parameters, n_passes = best.parameters.moved(self.em.frame.shift), self.begun.n_passes + n_passes
        return Fit(parameters, self.em.family, best, self.survey, (*self.begun.history, *history), n_passes)


def fit_mixture(
    samples: Samples,
    candidate: Candidate,
    rng: np.random.RandomState,
    watch: Callable[[Info], None],
    journal: Journal = NOWHERE,
) -> Fit:
    """Fit one mixture: the best of its starts.

    Raises
    ------
    ValueError
        The data cannot be fitted; the message names the place and the remedy.
    MemoryError
        A block of the data does not fit in a worker's memory.
    """
    (found,) = fit_mixtures(samples, [candidate], rng, watch, journal)
    if isinstance(found, ValueError):
        raise found
    return found


@pinned_client()
@single_blas()  # from the first pass to the last: to set and lift the limit costs more than a small block's work
def fit_mixtures(
    samples: Samples,
    candidates: Sequence[Candidate],
    rng: np.random.RandomState,
    watch: Callable[[Info], None],
    journal: Journal = NOWHERE,
) -> list[Fit | ValueError]:
    """Fit each candidate as if it were alone, but in passes over the data that they share; or say why one cannot be.

    What concerns the data, ``subsample``, ``missing`` and ``persist``, is taken from the first one's options. Labels
    are of the components of one candidate, and there is no other. What ``journal`` has of an earlier run is not done
    again.

    Raises
    ------
    ValueError
        The data cannot be fitted at all, or are not those of the earlier run; the message names the place and the
        remedy.
    MemoryError
        A block of the data does not fit in a worker's memory.
    """
    options = candidates[0].options
    check_memory(samples)
    samples = joined(samples)
    reader = keep_rows(samples, not journal.ended(options.tol, options.max_iter) and options.persist)
    rng = journal.random(rng)
    chosen = draw(samples, options.subsample or (samples.n if samples.in_memory else _FRAME_ROWS), rng)
    rngs = [rng, *(deepcopy(rng) for _ in candidates[1:])]  # each draws as it would alone
    look = partial(survey_samples, reader, candidates[0].family.encoding, options, chosen)

    def check(before: Survey) -> None:
        before.check(samples.n_features, len(samples.blocks))
        if not journal.trusted:
            check_data_unchanged(samples, before, look())

    survey = journal.once("survey", look, check)
    reader = replace(reader, unlabelled=samples.source.labels is not None)
    started = [
        _attempt(_start, replace(reader, recorded=journal.recorder(i)), survey, candidate, own, watch, journal, i)
        for i, (candidate, own) in enumerate(zip(candidates, rngs, strict=True))
    ]
    fits = [fit for fit in started if isinstance(fit, _Started)]
    ems = [fit.em for fit in fits for _ in fit.begun.states]
    now = journal.progress or Progress(tuple(state for fit in fits for state in fit.begun.states), (), 0, options.tol)
    now = now.under(options.tol)
    if journal.progress is not None:
        check_states(ems, now.states, [len(state.parameters.weights) for fit in fits for state in fit.begun.states])
    if ems:
        reader = replace(reader, encoding=ems[0].family.encoding)
    one_pass = EMPass(reader, now.n_passes)
    known = [fit.begun.rows_known for fit in fits if fit.begun.rows_known is not None]
    whole_pass = ConsistencyCheckedPass(LabelledPass(one_pass, known[0]) if known else one_pass, reader, survey, look)
    history = list(now.history)

    def keep(states: Sequence[EMState], info: Info) -> None:
        history.append(info)
        last = not any(state.goes_on(options.max_iter) for state in states)
        journal.keep(Progress(tuple(states), tuple(history), one_pass.n, options.tol), last)

    states = iter(run(list(zip(ems, now.states, strict=True)), whole_pass, watch, keep))
    return [
        fit.ended(list(islice(states, len(fit.begun.states))), history, one_pass.n)
        if isinstance(fit, _Started)
        else fit
        for fit in started
    ]


def _attempt(function: Callable[..., T], *args: Any) -> T | ValueError:
    try:
        return function(*args)
    except ValueError as failure:
        return failure


def _start(
    reader: Reader,
    survey: Survey,
    candidate: Candidate,
    rng: np.random.RandomState,
    watch: Callable[[Info], None],
    journal: Journal,
    i: int,
) -> _Started:
    """A candidate with its frame and its starts.

    Raises
    ------
    ValueError
        It cannot be fitted to the data.
    """
    samples, options, k = reader.samples, candidate.options, candidate.options.n_components
    if survey.n < k:
        raise ValueError(
            f"Expected n_samples >= n_components but got n_components = {k}, n_samples = {survey.n}: "
            "lower n_components"
            + (" (rows with missing values or a weight of zero do not count)" if survey.n < samples.n else "")
        )
    if len(survey.sample) < k:
        raise ValueError(
            f"only {len(survey.sample)} of the sampled rows can be used, fewer than n_components={k}: raise subsample, "
            "or leave out rows with missing values before"
        )
    family = candidate.family.with_data(survey.sample, survey.sample_weight, survey.low, survey.high, k)
    names = [repr(name) for name in samples.names] if samples.names else [str(i) for i in range(samples.n_features)]
    family.check(survey.sample, survey.low, survey.high, k, names)
    reader = replace(reader, encoding=family.encoding)
    survey = replace(survey, sample=family.encoding.encode(survey.sample))
    frame = family.frame(survey.sample, survey.low, survey.high)
    em = EM(family, frame, survey.sample - frame.shift, options.tol, options.max_iter, options.accelerate)

    def check(begun: Begun | ValueError) -> None:
        if isinstance(begun, Begun):
            check_states([em] * len(begun.states), begun.states, [k] * len(begun.states))

    begun = journal.once(f"start-{i}", partial(_attempt, _begin, em, reader, survey, candidate, rng, watch), check)
    if isinstance(begun, ValueError):
        raise begun
    if survey.n_known and (free := survey.sample_labels < 0).any():  # on none of the others may a component start again
        em = replace(em, sample=em.sample[free])
    single = options.accelerate and options.subsample is not None and not survey.complete
    return _Started(replace(em, single=single), survey, begun)


def _begin(
    em: EM,
    reader: Reader,
    survey: Survey,
    candidate: Candidate,
    rng: np.random.RandomState,
    watch: Callable[[Info], None],
) -> Begun:
    """Where the candidate's passes over the data start."""
    options, known, k = candidate.options, candidate.start, candidate.options.n_components
    history: list[Info] = []

    def on_info(info: Info) -> None:
        history.append(info)
        watch(info)

    n_passes, rows_known = 1, None
    if survey.n_known:
        rows_known, used = sum_labelled(reader, survey, em, k)
        n_passes += used
    if (parameters := known.parameters(em.frame)) is not None:
        states = [EMState(parameters, bounds=Bounds(previous=known.previous_bound))]
    elif rows_known is not None:
        state, used = start_from_labels(reader, survey, em, rows_known, options, known, rng)
        states, n_passes = [state], n_passes + used
    elif options.subsample is not None and has_enough_rows(survey, em.family, k):
        states = [fit_on_sample(em, survey, options, known, rng, on_info)]
    else:
        states, used = starts(reader, em, survey, options, known, rng)
        n_passes += used
    return Begun(tuple(states), tuple(history), n_passes, rows_known)
