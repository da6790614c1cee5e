"""EM as a pure function on a small state, and the loop that drives any number of states at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.em.acceleration import Mixing
from daskgmm.em.estep import log_densities, log_joint_of
from daskgmm.em.info import Info
from daskgmm.em.layout import DOUBLE, LEAST, SINGLE, Precision
from daskgmm.em.monotone import fallen, rounding
from daskgmm.em.stats import Stats
from daskgmm.families.base import Components, Family
from daskgmm.families.frame import Array, Frame

# A component with less than this share of all weight has no rows: γ never falls to zero (see softmax),
# so a share is compared, not a count with zero.
_DEAD = 1e-12
_SINGLE_TOL = 1e-4  # in single precision a log-likelihood is known to some 1e-6
_WINDOW = 4  # steps; with tol=1e-3, nine problems were left up to 2e-1 short by 2, 3 and 5, most of them least by 5
# A fit that loses components again and again has too many of them.
_RESEEDS_PER_COMPONENT = 3

# Models, and the precision of the tiles for each, to their statistics over all samples.
OnePass = Callable[[Sequence[Components], Sequence[Precision]], Sequence[Stats]]


@dataclass(frozen=True)
class Bounds:
    """What EM raises, per sample: log-likelihoods, or log-posteriors, of the parameters that were tried and kept."""

    values: tuple[float, ...] = ()  # one a step
    previous: float = -np.inf  # last one of the fit that this fit goes on from
    floor: float = -np.inf  # lowest value that the next one can have, should nothing be wrong
    log_likelihood: float = -np.inf  # of the last pass, without the prior
    log_certainty: float = -np.inf  # Σ w log max γ / Σ w of the last pass

    @property
    def last(self) -> float:
        return self.values[-1] if self.values else self.previous

    @property
    def change(self) -> float:
        """Gain of the last step."""
        return self.last - (self.values[-2] if len(self.values) > 1 else self.previous)


@dataclass(frozen=True)
class Extrapolation:
    """What acceleration knows of EM as a map on normalized moments."""

    mixing: Mixing = Mixing()
    point: Array | None = None  # (k, p) normalized moments, of which the state's parameters are the M-step
    plain: EMState | None = None  # state with EM's own step, where the parameters are extrapolated


@dataclass(frozen=True)
class Exactness:
    """In which precision the parameters were found."""

    exact: bool = False  # whether single precision has done all it can
    stepped: bool = False  # whether the parameters are those of an M-step in double precision


@dataclass(frozen=True)
class EMState:
    """What the next step of one fit needs."""

    parameters: Any  # what the next pass tries
    n_iter: int = 0
    converged: bool = False
    n_restarted: int = 0  # components that lost all rows and were started again
    failure: ValueError | None = None  # why the fit ended, if not well
    bounds: Bounds = Bounds()
    extrapolation: Extrapolation = Extrapolation()
    exactness: Exactness = Exactness()

    @property
    def lower_bound(self) -> float:
        return self.bounds.last

    def goes_on(self, max_iter: int) -> bool:
        return self.failure is None and not self.converged and self.n_iter < max_iter

    @property
    def settled(self) -> EMState:
        """The state with nothing untried in it: EM's own step is not worse than what it started from."""
        return self.extrapolation.plain or self

    def made_exact(self) -> EMState:
        """The state from which only double precision goes on."""
        return replace(self, exactness=replace(self.exactness, exact=True))


@dataclass(frozen=True)
class EM:
    """What stays the same through a fit."""

    family: Family
    frame: Frame
    sample: Array  # (m, d) rows about the frame's shift, on which a dead component may start again
    tol: float
    max_iter: int
    accelerate: bool = True
    single: bool = False  # may passes that are not among the last be in single precision?
    stage: str = "data"  # or "sample": where the passes go, for those who watch

    def run(self, states: Sequence[EMState], one_pass: OnePass, watch: Callable[[Info], None]) -> list[EMState]:
        """Advance all states, in shared passes, until each has converged or has had ``max_iter`` passes.

        Those that fail are left out.

        Raises
        ------
        ValueError
            All have failed: why the first one did.
        """
        return surviving(run([(self, state) for state in states], one_pass, watch))

    def ready(self, state: EMState) -> tuple[EMState, Components, Precision]:
        """A state, the components that its next pass is of, and in what precision: single as long as that will do."""
        components = self.family.components(state.parameters, self.frame)
        last = self.stage == "data" and state.n_iter == self.max_iter - 1
        if self.single and not state.exactness.exact and (last or not components.float32_suffices):
            state = state.settled.made_exact()
            components = self.family.components(state.parameters, self.frame)
        return state, components, SINGLE if self.single and not state.exactness.exact else DOUBLE

    def step(self, state: EMState, components: Components, stats: Stats, exact: bool) -> tuple[EMState, list[int]]:
        """As `advance`, with the tolerance and the end that a precision has; in double, a failure is kept in it."""
        em = self if exact else replace(self, tol=max(self.tol, _SINGLE_TOL))
        try:
            state, dead = em.advance(state, components, stats, exact)
        except ValueError as failure:
            if exact:
                return replace(state.settled, failure=failure), []
            return replace(state.settled.made_exact(), n_iter=state.n_iter + 1), []  # rounding may be why
        if not exact and self.stage == "data" and state.converged:  # what is only a start may end in single precision
            state = replace(state.made_exact(), converged=False)
        return state, dead

    def advance(
        self, state: EMState, components: Components, stats: Stats, exact: bool = True
    ) -> tuple[EMState, list[int]]:
        """One EM step: the state after the pass ``stats``, in double precision or not; and components that died in it.

        Raises
        ------
        ValueError
            The bound is not a number, or fell, or components die more often than is worth repairing.
        CollapsedComponentError
            A covariance became singular.
        """
        counts = stats.moments[:, 0]
        log_likelihood = stats.log_likelihood / stats.weight
        lower_bound = log_likelihood + self.family.log_prior(state.parameters, self.frame) / stats.weight
        dead = np.flatnonzero(counts < _DEAD * stats.weight).tolist() if self.family.restarts_empty_components else []
        bounds, tried = state.bounds, state.extrapolation
        if tried.plain is not None and (dead or not lower_bound >= state.lower_bound):  # extrapolated too far
            failed = replace(tried.plain.extrapolation, mixing=tried.mixing.failed())
            return replace(tried.plain, n_iter=state.n_iter + 1, extrapolation=failed), []
        if not (np.isfinite(lower_bound) and np.isfinite(stats.moments).all()):
            raise ValueError(
                f"the log-likelihood is {lower_bound} in pass {state.n_iter + 1}, as squares of the data "
                "overflow or the data changed since they were surveyed: rescale them, or fit again"
            )
        noise = rounding(components, counts, lower_bound)
        if not dead and lower_bound < bounds.floor - noise:  # one that lost its rows explains it, and is repaired
            raise fallen(state.lower_bound, lower_bound, state.n_iter + 1, components, counts, state.parameters.weights)
        bounds = replace(
            bounds,
            values=(*bounds.values, lower_bound),
            floor=-np.inf,
            log_likelihood=log_likelihood,
            log_certainty=stats.log_certainty / stats.weight,
        )
        after = replace(state, n_iter=state.n_iter + 1, n_restarted=state.n_restarted + len(dead), bounds=bounds)
        if not dead:
            parameters = self.family.maximize(components, stats.moments)
            # An extrapolated step may gain little where EM's own would gain more: only the latter ends a fit.
            ended = abs(self._left(after)) < self.tol
            if tried.plain is not None:
                after = replace(after, extrapolation=replace(tried, plain=None, mixing=tried.mixing.succeeded()))
            if state.exactness.stepped:
                cost = self.family.max_decrease(state.parameters, parameters, counts, self.frame) / stats.weight
                after = replace(after, bounds=replace(bounds, floor=lower_bound - cost - noise))
            after = replace(
                after,
                parameters=parameters,
                converged=ended and tried.plain is None,
                exactness=replace(state.exactness, stepped=exact),
            )
            return self._accelerated(after, components, stats, extrapolate=not ended), []
        if after.n_restarted > _RESEEDS_PER_COMPONENT * len(counts):
            raise ValueError(
                f"component {dead[0]} lost all its samples, after {state.n_restarted} components were already "
                f"started again: lower n_components (now {len(counts)})"
            )
        kept = np.setdiff1d(np.arange(len(counts)), dead)
        # Next to nothing, but for what was summed for all components together.
        shared = stats.moments[dead].sum(axis=0) / len(kept)
        alive = self.family.maximize(components.take(kept), stats.moments[kept] + shared)
        rows = self.sample[self._unlikely(alive, len(dead))]
        reseeded = self.family.reseed(alive, dead, rows)
        unstepped = replace(state.exactness, stepped=False)
        return replace(after, parameters=reseeded, exactness=unstepped, extrapolation=Extrapolation()), dead

    def _left(self, state: EMState) -> float:
        """What the tolerance is compared with: the last gain in textbook EM, or where no more can be known."""
        return remaining(state.bounds.values) if self.accelerate and self.max_iter > 2 else state.bounds.change

    def _accelerated(self, state: EMState, components: Components, stats: Stats, extrapolate: bool) -> EMState:
        """The state after EM's own step, or with an extrapolated one to be tried in its place."""
        if not self.accelerate or components.ill_conditioned.any():  # moments about means that move do not mix
            return replace(state, extrapolation=replace(state.extrapolation, mixing=Mixing(), point=None))
        image = stats.moments / stats.weight
        mixing, point = state.extrapolation.mixing, state.extrapolation.point
        if point is not None:
            mixing = mixing.add(point.ravel(), image.ravel())
        plain = replace(state, extrapolation=replace(state.extrapolation, mixing=mixing, point=image))
        extrapolated = mixing.extrapolate() if extrapolate else None
        if extrapolated is None:
            return plain
        candidate, mixing = extrapolated
        moments = self.family.clip_moments(candidate.reshape(image.shape), image)
        if not (moments[:, 0] > 0).all():
            return replace(plain, extrapolation=replace(plain.extrapolation, mixing=mixing.failed()))
        try:
            parameters = self.family.maximize(components, moments * stats.weight)
        except ValueError:  # impossible moments
            return replace(plain, extrapolation=replace(plain.extrapolation, mixing=mixing.failed()))
        return replace(plain, parameters=parameters, extrapolation=Extrapolation(mixing, moments, plain))

    def log_densities(self, parameters: Any, rows: Array) -> Array:
        """log p(x) of rows (m, d) about the frame's shift: (m,)."""
        model = self.family.components(parameters, Frame.identity(rows.shape[1]))
        return np.concatenate([log_densities(tile) for _, tile in log_joint_of(rows, model, LEAST[DOUBLE])])

    def _unlikely(self, parameters: Any, n: int) -> npt.NDArray[np.intp]:
        """The n rows of the sample that the model explains worst."""
        return np.argsort(self.log_densities(parameters, self.sample), kind="stable")[:n]


def run(
    pairs: Sequence[tuple[EM, EMState]],
    one_pass: OnePass,
    watch: Callable[[Info], None],
    keep: Callable[[Sequence[EMState], Info], None] = lambda states, info: None,
) -> list[EMState]:
    """Advance all states, each by its own EM but in shared passes, until all have converged, failed or had theirs.

    After each pass, ``keep`` is told all that it takes to go on from there.
    """
    ems, states = [em for em, _ in pairs], [state for _, state in pairs]
    while running := [i for i, (em, state) in enumerate(zip(ems, states, strict=True)) if state.goes_on(em.max_iter)]:
        begin = time.perf_counter()
        ready = [ems[i].ready(states[i]) for i in running]
        components, dtypes = [c for _, c, _ in ready], [dtype for _, _, dtype in ready]
        components, stats = look_again(components, one_pass(components, dtypes), one_pass)
        reseeded: list[int] = []
        for i, (state, _, dtype), c, s in zip(running, ready, components, stats, strict=True):
            states[i], dead = ems[i].step(state, c, s, dtype == DOUBLE)
            reseeded += dead
        best = max(running, key=lambda i: states[i].lower_bound)
        info = Info(
            ems[best].stage,
            states[best].n_iter,
            ems[best].max_iter,
            states[best].lower_bound,
            states[best].bounds.change,
            stats[0].n,
            time.perf_counter() - begin,
            len(running),
            tuple(reseeded),
        )
        keep(states, info)
        watch(info)
    return [state.settled for state in states]


def surviving(states: Sequence[EMState]) -> list[EMState]:
    """Those that have not failed; if all have, why the first one did is raised."""
    failures = [state.failure for state in states if state.failure is not None]
    if failures and len(failures) == len(states):
        raise failures[0]
    return [state for state in states if state.failure is None]


def look_again(
    components: Sequence[Components], stats: Sequence[Stats], one_pass: OnePass
) -> tuple[list[Components], list[Stats]]:
    """Repeat a pass for models whose means moved so far that moments about the old means lost digits."""
    latest = [(c, s, c.recentred(s.moments)) for c, s in zip(components, stats, strict=True)]
    nearer = [recentred for _, _, recentred in latest if recentred is not None]
    again = iter(one_pass(nearer, [DOUBLE] * len(nearer)) if nearer else ())
    both = [(c, s) if recentred is None else (recentred, next(again)) for c, s, recentred in latest]
    return [c for c, _ in both], [s for _, s in both]


def remaining(bounds: Sequence[float]) -> float:
    """Estimate what there is still to gain, should the steps go on to shrink as the last ones did (Aitken).

    As a single step of an accelerated fit may gain little by chance, the largest gain of some is compared with the
    largest of as many before. Boehning et al. 1994, Ann. Inst. Statist. Math. 46, eq. 5, for EM's own steps.
    """
    gains = np.diff(bounds[-2 * _WINDOW - 1 :])
    if len(gains) < 2:
        return np.inf
    width = len(gains) // 2
    last, before = gains[-width:].max(), gains[-2 * width : -width].max()
    if last <= 0 or before <= 0:  # rounding
        return 0.0
    rate = (last / before) ** (1 / width)
    return float(last * rate / (1 - rate)) if rate < 1 else np.inf
