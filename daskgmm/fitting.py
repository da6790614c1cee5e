"""A fit from samples to parameters: survey, frame, start, passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from typing import Any, TypeVar

import numpy as np

from daskgmm.blas import single_blas
from daskgmm.caching import cached
from daskgmm.checkpointing import NOWHERE, Begun, Journal, Progress
from daskgmm.climbing import Options, climb, enough, starts
from daskgmm.constancy import ConstantPass, refuse_changes
from daskgmm.data.blocks import Samples, joined, outsider, refusal
from daskgmm.data.survey import Survey, draw, merge, survey_block
from daskgmm.em.loop import EM, EMState, Info, run, surviving
from daskgmm.families.base import Family
from daskgmm.passes import EMPass, check_memory, gather
from daskgmm.seeding import Start
from daskgmm.supervision import KnownPass, known_start, known_sums

T = TypeVar("T")

_FRAME_ROWS = 10_000  # sampled for the frame where nothing else asks for a sample


@dataclass(frozen=True)
class Fit:
    """What came of it."""

    parameters: Any  # of the family, about the origin
    family: Family  # informed
    state: EMState
    survey: Survey
    history: tuple[Info, ...]
    n_passes: int  # over all of the data: survey, start and EM


@dataclass(frozen=True)
class Candidate:
    """A mixture to be fitted."""

    family: Family
    options: Options
    known: Start


@dataclass(frozen=True)
class _Prepared:
    """A candidate that knows the data."""

    em: EM
    samples: Samples
    survey: Survey
    candidate: Candidate

    @property
    def of_passes(self) -> EM:
        """EM as it runs over all of the data."""
        options, em = self.candidate.options, self.em
        if self.survey.n_known and (free := self.survey.sample_labels < 0).any():
            em = replace(em, sample=em.sample[free])  # on none of the others may a component start again
        return replace(em, single=options.accelerate and options.subsample is not None and not self.survey.complete)

    def ended(self, begun: Begun, states: Sequence[EMState], shared: Sequence[Info], n_passes: int) -> Fit | ValueError:
        """The best of the states, after shared passes over the data; or why the first failed, if all did."""
        try:
            best = max(surviving(states), key=lambda state: state.lower_bound)
        except ValueError as failure:
            return failure
        parameters = best.parameters.moved(self.em.frame.shift)
        history = (*begun.history, *shared)
        return Fit(parameters, self.em.family, best, self.survey, history, begun.n_passes + n_passes)


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
    samples = replace(joined(samples), coding=candidates[0].family.coding)
    if not journal.ended(options.tol, options.max_iter):
        samples = cached(samples, options.persist)
    rng, passes = journal.random(rng), count()
    chosen = draw(samples, options.subsample or (samples.n if samples.in_memory else _FRAME_ROWS), rng)
    look = partial(survey_samples, samples, options, chosen)
    survey = journal.once("survey", look, lambda before: refuse_changes(samples, before, look()))
    samples = replace(samples, unlabelled=samples.source.labels is not None)
    seeding = replace(samples, recorded=lambda compute: journal.once(f"pass-{next(passes)}", compute))
    prepared = [_attempt(_prepare, seeding, survey, candidate) for candidate in candidates]
    rngs = [rng, *(deepcopy(rng) for _ in candidates[1:])]  # each draws as it would alone
    begun = journal.once(
        "start",
        lambda: tuple(
            _attempt(_begin, fit, own, watch) if isinstance(fit, _Prepared) else fit
            for fit, own in zip(prepared, rngs, strict=True)
        ),
    )
    fits = [
        (fit, start)
        for fit, start in zip(prepared, begun, strict=True)
        if isinstance(fit, _Prepared) and isinstance(start, Begun)
    ]
    ems = [fit.of_passes for fit, start in fits for _ in start.states]
    now = journal.progress or Progress(tuple(state for _, start in fits for state in start.states), (), 0, options.tol)
    now = now.under(options.tol)
    one_pass = EMPass(replace(samples, coding=ems[0].family.coding) if ems else samples, now.n_passes)
    known = [start.rows_known for _, start in fits if start.rows_known is not None]
    whole_pass = ConstantPass(KnownPass(one_pass, known[0]) if known else one_pass, samples, survey, look)
    history = list(now.history)

    def keep(states: Sequence[EMState], info: Info) -> None:
        history.append(info)
        last = not any(state.goes_on(options.max_iter) for state in states)
        journal.keep(Progress(tuple(states), tuple(history), one_pass.n, options.tol), last)

    states = iter(run(list(zip(ems, now.states, strict=True)), whole_pass, watch, keep))
    ended = iter(
        [fit.ended(start, list(islice(states, len(start.states))), history, one_pass.n) for fit, start in fits]
    )
    return [start if isinstance(start, ValueError) else next(ended) for start in begun]


def _attempt(function: Callable[..., T], *args: Any) -> T | ValueError:
    try:
        return function(*args)
    except ValueError as failure:
        return failure


def _prepare(samples: Samples, survey: Survey, candidate: Candidate) -> _Prepared:
    """A candidate with what the survey tells it.

    Raises
    ------
    ValueError
        It cannot be fitted to the data.
    """
    options, k = candidate.options, candidate.options.n_components
    if survey.n < k:
        raise ValueError(
            f"Expected n_samples >= n_components but got n_components = {k}, n_samples = {survey.n}: "
            "lower n_components"
            + (" (rows with missing values or a weight of zero do not count)" if survey.n < samples.n else "")
        )
    family = candidate.family.informed(survey.sample, survey.sample_weight, survey.low, survey.high, k)
    names = [repr(name) for name in samples.names] if samples.names else [str(i) for i in range(samples.n_features)]
    family.check(survey.sample, survey.low, survey.high, k, names)
    survey = replace(survey, sample=family.coding.encoded(survey.sample))
    frame = family.frame(survey.sample, survey.low, survey.high)
    em = EM(family, frame, survey.sample - frame.shift, options.tol, options.max_iter, options.accelerate)
    return _Prepared(em, replace(samples, coding=family.coding), survey, candidate)


def _begin(fit: _Prepared, rng: np.random.RandomState, watch: Callable[[Info], None]) -> Begun:
    """Where the candidate's passes over the data start."""
    em, samples, survey, options, known = fit.em, fit.samples, fit.survey, fit.candidate.options, fit.candidate.known
    k = options.n_components
    history: list[Info] = []

    def on_info(info: Info) -> None:
        history.append(info)
        watch(info)

    n_passes, rows_known = 1, None
    if survey.n_known:
        rows_known, used = known_sums(samples, survey, em, k)
        n_passes += used
    if (parameters := known.parameters(em.frame)) is not None:
        states = [EMState(parameters, previous_bound=known.previous_bound)]
    elif rows_known is not None:
        state, used = known_start(samples, survey, em, rows_known, options, known, rng)
        states, n_passes = [state], n_passes + used
    elif options.subsample is not None and enough(survey, em.family, k):
        states = [climb(em, survey, options, known, rng, on_info)]
    else:
        states, used = starts(samples, em, survey, options, known, rng)
        n_passes += used
    return Begun(tuple(states), tuple(history), n_passes, rows_known)


def survey_samples(samples: Samples, options: Options, chosen: Sequence[Any]) -> Survey:
    """Look once at all samples, at chosen ones of each block for the sample, and refuse what cannot be fitted.

    Raises
    ------
    ValueError
        No rows, fewer than components, a value or weight that is not finite, a label that is not one of a component:
        the first one is named.
    """
    k = options.n_components
    survey = merge(gather(samples, partial(survey_block, coding=samples.coding, k=k), chosen))
    if survey.bad_weight is not None:
        position, value = survey.bad_weight
        raise ValueError(
            f"sample_weight is {value} at {samples.locate(position)}: weights must be finite and not negative"
        )
    if survey.bad_label is not None:
        position, value = survey.bad_label
        raise ValueError(
            f"labels is {value:g} at {samples.locate(position)}, but with n_components={k} a label is a whole number "
            f"from 0 to {k - 1}, or -1 where the component is not known: number them so"
        )
    if survey.wrong is not None:
        position, feature, value = survey.wrong
        raise outsider(samples.locate(position, feature), value, samples.coding)
    if survey.bad is not None and options.missing != "drop":
        position, feature, value = survey.bad
        raise refusal(samples.locate(position, feature), value, "pass missing='drop' to leave such rows out")
    return survey
