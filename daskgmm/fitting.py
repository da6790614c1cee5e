"""A fit from samples to parameters: survey, frame, start, passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from daskgmm.blas import single_blas
from daskgmm.caching import cached
from daskgmm.climbing import Options, climb, enough, starts
from daskgmm.data.blocks import Samples, joined, outsider, refusal
from daskgmm.data.survey import Survey, draw, merge, survey_block
from daskgmm.em.known import Known
from daskgmm.em.loop import EM, EMState, Info, run, surviving
from daskgmm.executing import settled
from daskgmm.families.base import Family
from daskgmm.passes import EMPass, check_memory, gather
from daskgmm.seeding import Start
from daskgmm.supervision import KnownPass, known_start, known_sums

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
class _Started:
    """A candidate on its way to the data."""

    em: EM
    states: list[EMState]
    survey: Survey
    history: list[Info]  # of the sample
    n_passes: int  # over all of the data
    rows_known: Known | None  # those whose component is

    def ended(self, states: Sequence[EMState], shared: Sequence[Info], n_passes: int) -> Fit | ValueError:
        """The best of the states, after shared passes over the data; or why the first failed, if all did."""
        try:
            best = max(surviving(states), key=lambda state: state.lower_bound)
        except ValueError as failure:
            return failure
        parameters = best.parameters.moved(self.em.frame.shift)
        return Fit(parameters, self.em.family, best, self.survey, (*self.history, *shared), self.n_passes + n_passes)


def fit_mixture(
    samples: Samples, candidate: Candidate, rng: np.random.RandomState, watch: Callable[[Info], None]
) -> Fit:
    """Fit one mixture: the best of its starts.

    Raises
    ------
    ValueError
        The data cannot be fitted; the message names the place and the remedy.
    MemoryError
        A block of the data does not fit in a worker's memory.
    """
    (found,) = fit_mixtures(samples, [candidate], rng, watch)
    if isinstance(found, ValueError):
        raise found
    return found


@settled()
@single_blas()  # from the first pass to the last: to set and lift the limit costs more than a small block's work
def fit_mixtures(
    samples: Samples, candidates: Sequence[Candidate], rng: np.random.RandomState, watch: Callable[[Info], None]
) -> list[Fit | ValueError]:
    """Fit each candidate as if it were alone, but in passes over the data that they share; or say why one cannot be.

    What concerns the data, ``subsample``, ``missing`` and ``persist``, is taken from the first one's options. Labels
    are of the components of one candidate, and there is no other.

    Raises
    ------
    ValueError
        The data cannot be fitted at all; the message names the place and the remedy.
    MemoryError
        A block of the data does not fit in a worker's memory.
    """
    options = candidates[0].options
    check_memory(samples)
    samples = replace(cached(joined(samples), options.persist), coding=candidates[0].family.coding)
    survey = survey_samples(samples, options, rng)
    samples = replace(samples, unlabelled=samples.source.labels is not None)
    rngs = [rng, *(deepcopy(rng) for _ in candidates[1:])]  # each draws as it would alone
    started: list[_Started | ValueError] = []
    for candidate, own in zip(candidates, rngs, strict=True):
        try:
            started.append(_start(samples, survey, candidate, own, watch))
        except ValueError as failure:
            started.append(failure)
    shared: list[Info] = []

    def on_info(info: Info) -> None:
        shared.append(info)
        watch(info)

    codings = [fit.em.family.coding for fit in started if isinstance(fit, _Started)]
    one_pass = EMPass(replace(samples, coding=codings[0]) if codings else samples)
    known = [fit.rows_known for fit in started if isinstance(fit, _Started) and fit.rows_known is not None]
    pairs = [(fit.em, state) for fit in started if isinstance(fit, _Started) for state in fit.states]
    states = iter(run(pairs, KnownPass(one_pass, known[0]) if known else one_pass, on_info))
    return [
        fit.ended(list(islice(states, len(fit.states))), shared, one_pass.n) if isinstance(fit, _Started) else fit
        for fit in started
    ]


def _start(
    samples: Samples,
    survey: Survey,
    candidate: Candidate,
    rng: np.random.RandomState,
    watch: Callable[[Info], None],
) -> _Started:
    """A candidate with its frame and its starts."""
    options, known = candidate.options, candidate.known
    k = options.n_components
    if survey.n < k:
        raise ValueError(
            f"Expected n_samples >= n_components but got n_components = {k}, n_samples = {survey.n}: "
            "lower n_components"
            + (" (rows with missing values or a weight of zero do not count)" if survey.n < samples.n else "")
        )
    family = candidate.family.informed(survey.sample, survey.sample_weight, survey.low, survey.high, k)
    names = [repr(name) for name in samples.names] if samples.names else [str(i) for i in range(samples.n_features)]
    family.check(survey.sample, survey.low, survey.high, k, names)
    samples = replace(samples, coding=family.coding)
    survey = replace(survey, sample=family.coding.encoded(survey.sample))
    frame = family.frame(survey.sample, survey.low, survey.high)
    em = EM(family, frame, survey.sample - frame.shift, options.tol, options.max_iter, options.accelerate)
    climbs = options.subsample is not None and enough(survey, family, k)
    history: list[Info] = []

    def on_info(info: Info) -> None:
        history.append(info)
        watch(info)

    n_passes, rows_known = 1, None
    if survey.n_known:
        rows_known, used = known_sums(samples, survey, em, k)
        n_passes += used
    if (parameters := known.parameters(frame)) is not None:
        states = [EMState(parameters, previous_bound=known.previous_bound)]
    elif rows_known is not None:
        state, used = known_start(samples, survey, em, rows_known, options, known, rng)
        states, n_passes = [state], n_passes + used
    elif climbs:
        states = [climb(em, survey, options, known, rng, on_info)]
    else:
        states, used = starts(samples, em, survey, options, known, rng)
        n_passes += used
    if survey.n_known and (free := survey.sample_labels < 0).any():  # on none of the others may a component start again
        em = replace(em, sample=em.sample[free])
    single = options.accelerate and options.subsample is not None and not survey.complete
    return _Started(replace(em, single=single), states, survey, history, n_passes, rows_known)


def survey_samples(samples: Samples, options: Options, rng: np.random.RandomState) -> Survey:
    """Look once at all samples, and refuse what cannot be fitted.

    Raises
    ------
    ValueError
        No rows, fewer than components, a value or weight that is not finite, a label that is not one of a component:
        the first one is named.
    """
    size = options.subsample or (samples.n if samples.in_memory else _FRAME_ROWS)
    k = options.n_components
    kernel = partial(survey_block, coding=samples.coding, k=k)
    survey = merge(gather(samples, kernel, draw(samples, size, rng)))
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
