"""A fit from samples to parameters: survey, frame, start, passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np

from daskgmm.data.blocks import Samples, of_numpy, refusal
from daskgmm.data.survey import Survey, draw, merge, survey_block
from daskgmm.em.loop import EM, EMState, Info
from daskgmm.em.stats import Stats
from daskgmm.families.base import Components
from daskgmm.families.frame import Frame
from daskgmm.families.gaussian import Gaussian, GaussianParameters
from daskgmm.passes import EMPass, check_memory, gather
from daskgmm.seeding import Start, centres, spread_candidates, start

_FRAME_ROWS = 10_000  # sampled for the frame where nothing else asks for a sample


@dataclass(frozen=True)
class Options:
    """What a user asks of a fit; names and meanings are the estimator's."""

    n_components: int
    tol: float
    max_iter: int
    n_init: int
    init_params: str
    accelerate: bool
    subsample: int | None
    missing: str


OPTIONS = tuple(field.name for field in fields(Options))


@dataclass(frozen=True)
class Fit:
    """What came of it."""

    parameters: GaussianParameters  # about the origin
    state: EMState
    survey: Survey
    history: tuple[Info, ...]
    n_passes: int  # over all of the data: survey, start and EM


def fit_mixture(
    samples: Samples,
    family: Gaussian,
    options: Options,
    known: Start,
    rng: np.random.RandomState,
    watch: Callable[[Info], None],
) -> Fit:
    """Fit one mixture: the best of ``n_init`` starts.

    Raises
    ------
    ValueError
        The data cannot be fitted; the message names the place and the remedy.
    MemoryError
        A block of the data does not fit in a worker's memory.
    """
    survey = survey_samples(samples, options, rng)
    frame = family.frame(survey.sample, survey.low, survey.high)
    _check_spread(samples, survey, options.n_components, family.reg_covar)
    history: list[Info] = []

    def on_info(info: Info) -> None:
        history.append(info)
        watch(info)

    em = EM(family, frame, survey.sample - frame.shift, options.tol, options.max_iter, options.accelerate)
    if (parameters := known.parameters(frame)) is not None:
        states, n_passes = [EMState(parameters, previous_bounds=known.previous_bounds)], 1
    else:
        states, n_passes = _starts(samples, em, survey, options, known, rng, on_info)

    one_pass = EMPass(samples, frame)
    states = em.run(states, one_pass, on_info)
    best = max(states, key=lambda state: state.lower_bound)
    return Fit(best.parameters.moved(frame.shift), best, survey, tuple(history), n_passes + one_pass.n)


def _starts(
    samples: Samples,
    em: EM,
    survey: Survey,
    options: Options,
    known: Start,
    rng: np.random.RandomState,
    on_info: Callable[[Info], None],
) -> tuple[list[EMState], int]:
    """States to start the passes from, and how many passes it took to find them.

    A sample smaller than the data finds one good start by EM on itself, so that no pass over the data is
    spent on a bad one. Where the sample is all of the data, or there is none, all starts go on.
    """
    k, method, frame = options.n_components, options.init_params, em.frame
    all_rows = len(survey.sample) == survey.n
    seeded = (
        of_numpy([survey.sample], survey.sample.shape[:1], samples.n_features, survey.sample_weight)
        if all_rows or options.subsample is not None
        else samples
    )
    rows, weights, n_passes = em.sample / frame.scale, survey.sample_weight, 1
    if seeded is samples and method in ("kmeans", "k-means++"):
        rows, weights, used = spread_candidates(samples, frame, rows[:1], k, rng)
        n_passes += used
    blank = em.family.blank(k, frame)
    states = []
    for _ in range(options.n_init):
        found = None if method == "random" else centres(method, rows, weights, k, rng)
        parameters, used = start(seeded, em.family, blank, frame, found, rng)
        n_passes += used if seeded is samples else 0
        states.append(EMState(known.replace_in(parameters, frame)))
    if seeded is samples or all_rows:
        return states, n_passes
    states = replace(em, stage="sample").run(states, EMPass(seeded, frame), on_info)
    return [EMState(max(states, key=lambda state: state.lower_bound).parameters)], n_passes


def survey_samples(samples: Samples, options: Options, rng: np.random.RandomState) -> Survey:
    """Look once at all samples, and refuse what cannot be fitted.

    Raises
    ------
    ValueError
        No rows, fewer than components, a value or weight that is not finite: the first one is named.
    """
    check_memory(samples)
    size = options.subsample or (samples.n if samples.in_memory else _FRAME_ROWS)
    survey = merge(gather(samples, survey_block, draw(samples, size, rng)))
    if survey.bad_weight is not None:
        position, value = survey.bad_weight
        raise ValueError(
            f"sample_weight is {value} at {samples.locate(position)}: weights must be finite and not negative"
        )
    if survey.bad is not None and options.missing != "drop":
        position, feature, value = survey.bad
        raise refusal(samples.locate(position, feature), value, "pass missing='drop' to leave such rows out")
    if survey.n < options.n_components:
        raise ValueError(
            f"Expected n_samples >= n_components but got n_components = {options.n_components}, "
            f"n_samples = {survey.n}: lower n_components"
            + (" (rows with missing values or a weight of zero do not count)" if survey.n < samples.n else "")
        )
    return survey


def _check_spread(samples: Samples, survey: Survey, k: int, reg_covar: float) -> None:
    """Warn of rows that are too few, once duplicates are counted as one, and of features that do not vary.

    Without ``reg_covar`` such data cannot be fitted, and are refused.
    """
    for size in (1000, len(survey.sample)):  # duplicates are rare: a few rows mostly tell
        distinct = len(np.unique(survey.sample[:size], axis=0))
        if distinct >= k:
            break
    else:
        fact = f"only {distinct} of {len(survey.sample)} sampled rows are distinct, fewer than n_components={k}"
        if reg_covar == 0:
            raise ValueError(f"{fact}: lower n_components, or set reg_covar above zero")
        warnings.warn(
            f"{fact}, and reg_covar={reg_covar} alone decides their density: lower n_components", stacklevel=2
        )
    constant = np.flatnonzero(survey.low == survey.high).tolist()
    if not constant:
        return
    names = ", ".join(repr(samples.names[i]) if samples.names else str(i) for i in constant[:5])
    fact = f"feature {names}{' …' if len(constant) > 5 else ''} is constant, so its variance is zero"
    if reg_covar == 0:
        raise ValueError(f"{fact}: drop it, or set reg_covar above zero")
    warnings.warn(f"{fact}, and reg_covar={reg_covar} alone decides its density: drop it", stacklevel=2)
