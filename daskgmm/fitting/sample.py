"""One good start from a sample: EM on growing parts of it, then moves.

So no pass over the data is spent on a bad start, and few on a good one: what a part of the rows can tell is learnt
from them, to about the digits that they can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from daskgmm.data.blocks import Samples, of_numpy
from daskgmm.data.checks import RowAnnotations
from daskgmm.em.info import Info
from daskgmm.em.loop import EM, EMState
from daskgmm.em.split_merge import moves
from daskgmm.families.base import Family
from daskgmm.families.frame import Array, Frame
from daskgmm.fitting.em_pass import EMPass
from daskgmm.fitting.options import Options
from daskgmm.fitting.starts import Start, centres, first_m_step, spread_candidates
from daskgmm.fitting.survey import Survey
from daskgmm.passes.reader import Reader
from daskgmm.prediction.predict import LOG_DENSITY, predict

# The ladder of starts: EM on the fewest rows, of which a quarter goes on to four times as many; with a fifth of these
# rows, the better optimum of nine problems was missed more often.
_GROWTH = 4
_ROWS_PER_COMPONENT, _ROWS_PER_PARAMETER = 1000, 20
_LARGEST = 4  # of so many rows at most one is in the largest; with 8, 3 of 27 fits ended below plain EM, with 4 none
_NOISE = 0.02  # n rows tell the log-likelihood of p parameters to p / 2n a row (Wilks 1938); an early end hides optima
_EARLY = 10  # times as much may remain before the first move, which gains more; with 30, fits took longer
# Where the rows are all there is: starts at least (with 1, up to a tenth of 20 seeds missed the best of three problems,
# with 4 none, in the same time, as moves cost more), and nats a row that are told apart, at least and at most, whatever
# the tolerance: below, gains are rounding; above, an early end hides optima.
_STARTS = 4
_FINE = 1e-6, 1e-4
_TRIES = 3  # moves that are tried before the mixture is left as it is; with 6, no more problems were solved
_CONSIDERED, _EACH = 16, 4  # pairs of a split and a merge, of the best of each: of all, two of ten problems were missed
# Where the rows are all there is, so many more after so few passes, if none of the others is better: with them, 12 of
# 12 fits of 24 components ended within 1e-3 nats a row of the best, and 6 without; with 32, 10.
_RACED, _RACE_PASSES = 64, 3


def starts(
    reader: Reader, em: EM, survey: Survey, options: Options, known: Start, rng: np.random.RandomState
) -> tuple[list[EMState], int]:
    """A state for each start to go on from all samples, and how many passes it took to find them."""
    seeded = Reader(_in_memory(survey)) if survey.complete else reader
    rows, weights, n_passes = em.sample / em.frame.scale, survey.sample_weight, 0
    if not survey.complete and options.init_params in ("kmeans", "k-means++"):
        rows, weights, n_passes = spread_candidates(reader, em.frame, rows[:1], options.n_components, rng)
    states, used = _starts(seeded, em, rows, weights, options, known, rng)
    return states, n_passes + (0 if survey.complete else used)


def fit_on_sample(
    em: EM, survey: Survey, options: Options, known: Start, rng: np.random.RandomState, on_info: Callable[[Info], None]
) -> EMState:
    """The best of all starts: all on few rows, the best few on more, then moves."""
    n_parameters = em.family.n_parameters(options.n_components, survey.sample.shape[1])
    em = replace(em, single=options.accelerate and not survey.complete, stage="sample")
    if survey.complete:
        em = replace(em, tol=float(np.clip(em.tol, *_FINE)))
        options = replace(options, n_init=max(options.n_init, _STARTS))
    sizes = sample_sizes(survey.n, len(survey.sample), options.n_components, n_parameters)
    # All rows stay in their order, so that a seed starts where it does without a sample.
    order = np.arange(survey.n) if sizes == [survey.n] else rng.permutation(len(survey.sample))
    states: list[EMState] = []
    for size in sizes:
        part = replace(survey, sample=survey.sample[order[:size]], sample_weight=survey.sample_weight[order[:size]])
        rung = Reader(_in_memory(part))
        if not states:
            rows, weights = em.sample[order[:size]] / em.frame.scale, part.sample_weight
            states, _ = _starts(rung, em, rows, weights, options, known, rng)
        noise = 0.0 if size == survey.n else _NOISE * n_parameters / size
        climber = early = replace(em, tol=max(em.tol, noise))
        if size == sizes[-1] and not known.ordered:
            early = replace(em, tol=max(em.tol, _EARLY * noise))
        one_pass = EMPass(rung)
        states = early.run(states, one_pass, on_info)
        best = sorted(states, key=lambda state: state.lower_bound, reverse=True)
        states = [EMState(state.parameters) for state in best[: max(1, len(best) // _GROWTH)]]
    left = early.tol - climber.tol
    found = best[0] if known.ordered else _moved(climber, best[0], left, part, one_pass, on_info)
    return EMState(found.parameters)


def _moved(
    em: EM, state: EMState, left: float, part: Survey, one_pass: EMPass, on_info: Callable[[Info], None]
) -> EMState:
    """The state after all moves that make it better; on sampled rows, by more than the standard error of the gain.

    The first also by more than EM would gain without it, for which about as much is ``left``.

    Where these are all rows, and no mixture is the likeliest, none that leaves a component on fewer rows than it has
    parameters, unless one was on as few: on next to no rows it is as likely as one likes (McLachlan & Peel 2000, Finite
    Mixture Models). On a sample the error decides: that rule kept one of ten fits from its optimum. The error is of
    differences row by row: Vuong 1989, Likelihood Ratio Tests for Model Selection, Econometrica 57.
    """
    weights, identity = part.sample_weight, Frame.identity(part.sample.shape[1])
    centred = _in_memory(replace(part, sample=part.sample - em.frame.shift))

    def log_densities(parameters: Any) -> Array:
        return predict(centred, em.family.components(parameters, identity), LOG_DENSITY, "raise")

    def log_prior(state: EMState) -> float:
        return em.family.log_prior(state.parameters, em.frame) / weights.sum()

    def rows_of_least(state: EMState) -> float:
        return float(state.parameters.weights.min()) * len(weights)

    before, fewest = log_densities(state.parameters), em.family.n_parameters(1, part.sample.shape[1])
    considered: tuple[int, int | None] = (_RACED, None) if part.complete else (_CONSIDERED, _EACH)
    while True:
        proposed = moves(em, state.parameters, part.sample, weights, *considered)
        for candidate in _candidates(em, proposed, part.complete, one_pass, on_info):
            try:
                (moved,) = em.run([candidate], one_pass, on_info)
            except ValueError:  # collapsed: the state has not
                continue
            if (
                part.complete
                and not em.family.likelihood_is_bounded
                and rows_of_least(moved) < min(fewest, rows_of_least(state))
            ):
                continue
            after = log_densities(moved.parameters)
            gains = after - before
            gain = np.average(gains, weights=weights)
            error = np.sqrt(np.average((gains - gain) ** 2, weights=weights) / len(gains))
            if gain + log_prior(moved) - log_prior(state) > (em.tol if part.complete else error + left):
                state, before, left = moved, after, 0.0
                break
        else:
            if not left:
                return state
            (state,) = em.run([EMState(state.parameters)], one_pass, on_info)
            before, left = log_densities(state.parameters), 0.0


def _candidates(
    em: EM, proposed: Sequence[Any], race: bool, one_pass: EMPass, on_info: Callable[[Info], None]
) -> Iterator[EMState]:
    """The most promising moves; then of the others, in a race, those that are the likeliest after a few passes."""
    yield from map(EMState, proposed[:_TRIES])
    if race and len(proposed) > _TRIES:
        states: list[EMState] = []
        with suppress(ValueError):  # all collapsed
            short = replace(em, max_iter=_RACE_PASSES, single=em.accelerate)
            states = short.run([EMState(parameters) for parameters in proposed[_TRIES:]], one_pass, on_info)
        yield from sorted(states, key=lambda state: state.lower_bound, reverse=True)[:_TRIES]


def sample_sizes(n: int, n_sampled: int, k: int, n_parameters: int) -> list[int]:
    """Rows of the growing parts of the sample; the largest is small beside the data, or all that there is."""
    largest = n if n_sampled == n else min(n_sampled, max(n // _LARGEST, _ROWS_PER_COMPONENT * k))
    least = max(_ROWS_PER_COMPONENT * k, min(_ROWS_PER_PARAMETER * n_parameters, largest // _GROWTH))
    sizes = [largest]
    while sizes[0] >= _GROWTH * least:
        sizes.insert(0, sizes[0] // _GROWTH)
    return sizes


def has_enough_rows(survey: Survey, family: Family, k: int) -> bool:
    """Are there so many rows that a likelier mixture is a better one, and not one of components on next to no rows?

    Where there is a likeliest mixture there always are. Two components have no moves.
    """
    n_parameters = family.n_parameters(k, survey.sample.shape[1])
    least = min(_ROWS_PER_COMPONENT * k, _ROWS_PER_PARAMETER * n_parameters)
    return not survey.complete or (k > 2 and (family.likelihood_is_bounded or survey.n >= least))


def _in_memory(survey: Survey) -> Samples:
    """The survey's sample as samples."""
    return of_numpy(
        [survey.sample], survey.sample.shape[:1], survey.sample.shape[1], RowAnnotations(survey.sample_weight)
    )


def _starts(
    seeded: Reader, em: EM, rows: Array, weights: Array, options: Options, known: Start, rng: np.random.RandomState
) -> tuple[list[EMState], int]:
    """Starts that do not collapse at once, and how many passes over the seeded samples they took.

    Raises
    ------
    ValueError
        All have collapsed: how the first one did.
    """
    k, method = options.n_components, options.init_params
    states: list[EMState] = []
    failures, n_passes = [], 0
    for _ in range(options.n_init):
        found = None if method == "random" else centres(method, rows, weights, k, rng)
        try:
            parameters, used = first_m_step(seeded, em.family, em.family.zero_components(k, em.frame), found, rng)
        except ValueError as failure:
            failures.append(failure)
        else:
            states.append(EMState(known.replace_in(parameters, em.frame)))
            n_passes += used
    if not states:
        raise failures[0]
    return states, n_passes
