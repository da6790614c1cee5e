"""Moves: the bound by which they are compared, and that they lead out of optima that EM stays in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from daskgmm import GaussianMixture
from daskgmm.em.estep import block_stats_of_models, completed
from daskgmm.em.loop import EM, EMState
from daskgmm.em.split_merge import Halves, Parts, moves
from daskgmm.families.covariance import MODELS, CovarianceModel
from daskgmm.families.gaussian import Gaussian, GaussianParameters
from daskgmm.process import single_blas

Array = npt.NDArray[np.float64]

CODED = {name: model for name, model in MODELS.items() if name == model.code}
every_model = pytest.mark.parametrize("model", CODED.values(), ids=list(CODED))
CENTRES = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9], [9, 9, 9]], dtype=float)


def _em(model: CovarianceModel, rows: Array) -> EM:
    family = Gaussian(model, 1e-6)
    frame = family.frame(rows, rows.min(axis=0), rows.max(axis=0))
    return EM(family, frame, rows - frame.shift, tol=1e-9, max_iter=500)


def _fit(em: EM, parameters: Any, rows: Array, weights: Array) -> EMState:
    def one_pass(models: Any, dtype: Any) -> Any:
        return [completed(s, m) for s, m in zip(block_stats_of_models([(rows, weights)], models), models, strict=True)]

    (state,) = em.run([EMState(parameters)], one_pass, lambda _: None)
    return state


def _groups(n: int, seed: int) -> tuple[Array, Array, npt.NDArray[np.intp]]:
    """Rows about the centres, weights, and whose they are."""
    rng = np.random.default_rng(seed)
    group = rng.integers(len(CENTRES), size=n)
    return CENTRES[group] + rng.normal(size=(n, 3)), rng.uniform(0.5, 2, size=n), group


@every_model
@settings(max_examples=8, deadline=None)
@given(k=st.integers(1, 5), seed=st.integers(0, 100))
def test_the_bound_is_below_the_likelihood_and_meets_it_where_em_ends(
    model: CovarianceModel, k: int, seed: int
) -> None:
    rows, weights, _ = _groups(200, seed)
    em = _em(model, rows)
    z = em.frame.apply(rows)
    resp = np.random.default_rng(seed).dirichlet(np.ones(k), size=len(rows)).T
    with single_blas():
        bound, parameters = Parts.of(em, z, resp, weights).fit(em)
        assert bound <= weights @ em.log_densities(parameters, em.sample) + 1e-9 * len(rows)
        state = _fit(em, parameters, rows, weights)
        model_resp = np.exp(_log_joint(em, state, z))
        bound, parameters = Parts.of(em, z, model_resp / model_resp.sum(axis=0), weights).fit(em)
    # An M-step that starts anew may end in another maximum, if there are several.
    assert model.climbs or bound == pytest.approx(weights @ em.log_densities(parameters, em.sample), rel=1e-7)


def _log_joint(em: EM, state: EMState, z: Array) -> Array:
    components = em.family.components(state.parameters, em.frame)
    left, right = components.products
    return components.theta @ np.concatenate([np.ones((1, z.shape[1])), z, z[left] * z[right]])


# Where volumes are equal, EM is not caught.
@pytest.mark.parametrize(
    "model", [m for m in CODED.values() if m.code[0] == "V" or m.code == "EEE"], ids=lambda m: m.code
)
def test_a_move_frees_a_mixture_with_two_components_on_one_group_and_one_on_two(model: CovarianceModel) -> None:
    """EM alone stays there; the best move leads to the optimum that the groups themselves lead to."""
    rows, weights, group = _groups(3000, 1)
    em = _em(model, rows)
    z = em.frame.apply(rows)
    first_half = rows[:, 1] > CENTRES[group, 1]
    wrong = np.select([(group == 0) & first_half, group == 0, group <= 2], [0, 1, 2], group)
    with single_blas():
        best, stuck = (
            _fit(em, Parts.of(em, z, np.eye(5)[:, which], weights).fit(em)[1], rows, weights)
            for which in (group, wrong)
        )
        assert stuck.lower_bound < best.lower_bound - 0.1
        freed = _fit(em, moves(em, stuck.parameters, rows, weights, 16)[0], rows, weights)
    assert freed.lower_bound == pytest.approx(best.lower_bound, abs=1e-6)


@pytest.mark.parametrize("each", [None, 2])
def test_moves_that_have_nothing_in_common_are_made_at_once(each: int | None) -> None:
    """Two far copies of the same groups, in each of which two components are on one group and one is on two.

    Two of the ten can be split to some avail: that shows after a few passes.
    """
    rows, weights, group = _groups(6000, 1)
    copy = np.random.default_rng(0).integers(2, size=len(rows))
    wrong = np.select([(group == 0) & (rows[:, 1] > 0), group == 0, group <= 2], [0, 1, 2], group) + 5 * copy
    group, rows = group + 5 * copy, rows + 40.0 * copy[:, None]
    em = _em(MODELS["full"], rows)
    z = em.frame.apply(rows)
    with single_blas():
        best, stuck = (
            _fit(em, Parts.of(em, z, np.eye(10)[:, which], weights).fit(em)[1], rows, weights)
            for which in (group, wrong)
        )
        freed = _fit(em, moves(em, stuck.parameters, rows, weights, 16, each)[0], rows, weights)
    assert stuck.lower_bound < best.lower_bound - 0.1
    assert freed.lower_bound == pytest.approx(best.lower_bound, abs=1e-6)


@pytest.mark.parametrize("name", ["VVV", "EEE", "VVI", "EII"])
def test_the_best_moves_are_among_those_that_merge_near_pairs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 components that overlap, 120 pairs: the same as if all were merged."""
    rng = np.random.default_rng(5)
    rows = rng.normal(scale=3, size=(16, 3))[rng.integers(16, size=6000)] + rng.normal(size=(6000, 3))
    em, weights = _em(MODELS[name], rows), np.ones(len(rows))
    resp = np.eye(16)[:, rng.integers(16, size=len(rows))] + np.exp(-((rows[:16, None] - rows) ** 2).sum(axis=-1))
    with single_blas():
        start = Parts.of(em, em.frame.apply(rows), resp / resp.sum(axis=0), weights).fit(em)[1]
        state = _fit(replace(em, max_iter=60), start, rows, weights)
        near = moves(em, state.parameters, rows, weights, 16, 4)
        monkeypatch.setattr("daskgmm.em.split_merge._NEAREST", 16)
        every = moves(em, state.parameters, rows, weights, 16, 4)
    assert near[0].means == pytest.approx(every[0].means)


@every_model
def test_two_components_leave_nothing_to_move(model: CovarianceModel) -> None:
    rows, weights, group = _groups(500, 2)
    em = _em(model, rows)
    parameters = Parts.of(em, em.frame.apply(rows), np.eye(2)[:, group % 2], weights).fit(em)[1]
    assert moves(em, parameters, rows, weights, 16) == []


def test_a_component_without_rows_is_not_split() -> None:
    """And does not keep the others from that."""
    rows, weights, group = _groups(3000, 1)
    em = _em(MODELS["full"], rows)
    z = em.frame.apply(rows)
    with single_blas():
        halves = [
            Halves.of(em, rows, z, weights, gammas, np.zeros(len(rows))).after(replace(em, max_iter=3))
            for gammas in (np.zeros(len(rows)), (group < 2).astype(float))
        ]
    assert halves[0].gain == -np.inf
    assert halves[1].gain > 0.1 * len(rows)


def test_em_on_the_sample_goes_on_where_no_move_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moves are looked for early, and a start that needs none is as good as ever."""
    rng = np.random.default_rng(0)
    x = 2.0 * CENTRES[rng.integers(5, size=40_000)] / 9 + rng.normal(size=(40_000, 3))
    monkeypatch.setattr("daskgmm.fitting.sample.moves", lambda *_: [])
    bounds = []
    for early in (1, np.inf):
        monkeypatch.setattr("daskgmm.fitting.sample._EARLY", early)
        fit = GaussianMixture(5, subsample=10_000, tol=1e-6, max_iter=500, random_state=0).fit(x)
        bounds.append([info.lower_bound for info in fit.history_ if info.stage == "sample"])
    left = 2 * 0.02 * 49 / 10_000  # twice what is told apart, as both are estimated
    assert bounds[1][2] < bounds[0][-1] - left
    assert bounds[1][-1] == pytest.approx(bounds[0][-1], abs=left)


def test_a_fit_by_a_sample_finds_the_groups_from_any_start() -> None:
    """Of k-means' starts, many end with one component on two groups; with moves, none of these does."""
    rng = np.random.default_rng(0)
    centres = 12 * rng.normal(size=(12, 2))
    x = centres[rng.integers(12, size=24_000)] + rng.normal(size=(24_000, 2))
    truth = GaussianMixture(12, means_init=centres, subsample=None).fit(x).lower_bound_
    with_moves = [GaussianMixture(12, subsample=12_000, random_state=seed).fit(x).lower_bound_ for seed in range(6)]
    assert min(with_moves) >= truth - 2e-3


def test_a_move_that_collapses_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = CENTRES[rng.integers(5, size=20_000)] + rng.normal(size=(20_000, 3))
    fits, options = [], {"reg_covar": 0.0, "subsample": 10_000, "random_state": 0}

    def on_one_row(
        em: EM, parameters: GaussianParameters, rows: Array, weights: Array, *_: int | None
    ) -> list[GaussianParameters]:
        """The first component so narrow that no other row belongs to it."""
        narrow = np.array([1e-6 if k == 0 else 1.0 for k in range(5)])[:, None, None]
        means = np.concatenate([rows[:1] - em.frame.shift, parameters.means[1:]])
        covariances, factors = parameters.covariances * narrow**2, parameters.factors / narrow
        return [replace(parameters, means=means, covariances=covariances, factors=factors)]

    for moves_there_are in (on_one_row, lambda *_: []):
        monkeypatch.setattr("daskgmm.fitting.sample.moves", moves_there_are)
        fits.append(GaussianMixture(5, **options).fit(x))
    assert np.array_equal(fits[0].means_, fits[1].means_)
    with pytest.raises(ValueError, match="collapsed"):
        GaussianMixture(
            5, means_init=np.concatenate([x[:1], fits[1].means_[1:]]), weights_init=fits[1].weights_,
            precisions_init=fits[1].precisions_ * np.array([1e12, 1, 1, 1, 1])[:, None, None], reg_covar=0.0,
        ).fit(x)  # fmt: skip


def test_a_move_to_a_component_on_next_to_no_rows_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows that nearly coincide are likelier by themselves than a group is in two."""
    rng = np.random.default_rng(0)
    x = CENTRES[1 + rng.integers(4, size=6000)] + rng.normal(size=(6000, 3))
    x[:3] = x[0] + 1e-4 * rng.normal(size=(3, 3))
    tight = np.array([1e-3, 1, 1, 1, 1])[:, None, None]

    def on_three_rows(
        em: EM, parameters: GaussianParameters, rows: Array, weights: Array, *_: int | None
    ) -> list[GaussianParameters]:
        means = np.concatenate([x[:1], CENTRES[1:]]) - em.frame.shift
        eyes = np.tile(np.eye(3), (5, 1, 1))
        weights = np.array([5e-4, *4 * [0.24987]])
        return [replace(parameters, weights=weights, means=means, covariances=eyes * tight**2, factors=eyes / tight)]

    monkeypatch.setattr("daskgmm.fitting.sample.moves", on_three_rows)
    fit = GaussianMixture(5, random_state=0).fit(x)
    there = GaussianMixture(
        5, means_init=np.concatenate([x[:1], CENTRES[1:]]), weights_init=[5e-4, *4 * [0.249875]],
        precisions_init=np.tile(np.eye(3), (5, 1, 1)) / tight**2, subsample=None,
    ).fit(x)  # fmt: skip
    assert there.weights_.min() * len(x) < 4
    assert there.score(x) > fit.score(x) + 1e-3
    assert fit.weights_.min() * len(x) > 9


def test_means_that_are_given_keep_their_places() -> None:
    """Components stay in the order of the means, and where these lead, even if moves would find better."""
    rng = np.random.default_rng(0)
    x = CENTRES[rng.integers(5, size=20_000)] + rng.normal(size=(20_000, 3))
    means = CENTRES.copy()
    means[1:3] = [[0.5, 0, 0], [4.5, 4.5, 0]]
    fit = GaussianMixture(5, means_init=means, subsample=10_000, random_state=0).fit(x)
    assert np.linalg.norm(fit.means_[3:] - CENTRES[3:], axis=1) == pytest.approx(0, abs=0.2)
    assert np.linalg.norm(fit.means_[2] - means[2]) < 1


def _grid(n: int) -> Array:
    """Sixteen spheres on a square grid."""
    rng = np.random.default_rng(0)
    return 5.0 * rng.integers(4, size=(n, 2)) + rng.normal(size=(n, 2))


def test_rows_in_hand_are_climbed_from_any_seed_to_one_optimum() -> None:
    """Which one start of EM misses with most seeds."""
    rows = _grid(3000)
    settings: dict[str, Any] = {"covariance_type": "spherical", "tol": 1e-6, "max_iter": 1000}
    fits = [GaussianMixture(16, random_state=seed, **settings).fit(rows) for seed in range(5)]
    single = [GaussianMixture(16, random_state=seed, subsample=None, **settings).fit(rows) for seed in range(5)]
    scores = np.array([fit.score(rows) for fit in fits])
    assert np.ptp(scores) < 1e-5
    assert min(fit.score(rows) for fit in single) < scores.min() - 1e-2


def test_a_good_move_is_found_among_many_that_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever promised more, some passes tell them apart."""
    rows = _grid(3000)

    def hidden(em: EM, parameters: Any, *rest: Any) -> list[Any]:
        return [parameters] * 20 + moves(em, parameters, *rest)

    settings: dict[str, Any] = {"covariance_type": "spherical", "init_params": "random_from_data", "random_state": 1}
    settings |= {"tol": 1e-6, "max_iter": 1000}
    found = GaussianMixture(16, **settings).fit(rows)
    monkeypatch.setattr("daskgmm.fitting.sample.moves", hidden)
    assert GaussianMixture(16, **settings).fit(rows).score(rows) == pytest.approx(found.score(rows), abs=1e-5)
    monkeypatch.setattr("daskgmm.fitting.sample.moves", lambda *_: [])
    assert GaussianMixture(16, **settings).fit(rows).score(rows) < found.score(rows) - 1e-2


def test_a_climb_ends_where_gains_are_rounding_whatever_the_tolerance() -> None:
    """Or with tol=0 any move would do."""
    settings: dict[str, Any] = {"covariance_type": "spherical", "random_state": 0, "max_iter": 300}
    with pytest.warns(ConvergenceWarning):
        endless = GaussianMixture(16, tol=0.0, **settings).fit(_grid(1300))
    fine = GaussianMixture(16, tol=1e-6, **settings).fit(_grid(1300))
    bounds = [[info.lower_bound for info in fit.history_ if info.stage == "sample"] for fit in (endless, fine)]
    assert bounds[0] == bounds[1]


@pytest.mark.parametrize(
    ("n", "k", "prior", "climbs"),
    [
        (1000, 16, None, False),
        (1300, 16, None, True),
        (1300, 2, None, False),
        (250, 3, None, True),
        (50, 3, "default", True),
    ],
)
def test_few_rows_are_climbed_only_where_components_on_next_to_none_do_not_pay(
    n: int, k: int, prior: Any, climbs: bool
) -> None:
    """20 rows a parameter (63 of 16 spheres, 5 a component but one), or a prior; two components have no moves."""
    settings: dict[str, Any] = {"covariance_type": "spherical", "random_state": 0, "tol": 1e-2, "prior": prior}
    fit = GaussianMixture(k, **settings).fit(_grid(n))
    alone = GaussianMixture(k, subsample=None, **settings).fit(_grid(n))
    assert ("sample" in {info.stage for info in fit.history_}) == climbs
    assert climbs or fit.lower_bounds_ == alone.lower_bounds_
