"""A likelihood that falls is an error, where no step of EM may lower it so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from daskgmm import BernoulliMixture, GaussianMixture
from daskgmm.em.estep import block_stats_of_models, completed
from daskgmm.em.layout import SINGLE
from daskgmm.em.loop import EM, EMState, run
from daskgmm.em.monotone import fallen
from daskgmm.em.stats import Stats
from daskgmm.families.covariance import MODELS
from daskgmm.families.gaussian import Gaussian, GaussianParameters
from daskgmm.families.prior import Prior
from daskgmm.fitting.em_pass import EMPass
from daskgmm.process import single_blas

Array = npt.NDArray[np.float64]

every_model = pytest.mark.parametrize("name", [name for name, model in MODELS.items() if name == model.code])


def _rows() -> Array:
    rng = np.random.default_rng(0)
    return np.concatenate(
        [rng.normal(size=(300, 2)), rng.normal((3, 1), 2, size=(200, 2)), rng.normal(-4, 1, (200, 2))]
    )


def _em(x: Array, name: str, reg_covar: float = 0.0, prior: bool = False, **options: Any) -> EM:
    family = Gaussian(MODELS[name], reg_covar, Prior() if prior else None)
    family = family.with_data(x, np.ones(len(x)), x.min(axis=0), x.max(axis=0), 3)
    frame = family.frame(x, x.min(axis=0), x.max(axis=0))
    return EM(family, frame, x - frame.shift, **{"tol": 0.0, "max_iter": 12} | options)


def _start(em: EM) -> EMState:
    means = np.array([[0.0, 0.0], [4.0, 1.0], [-6.0, -5.0]])
    unit = np.ones((3, 2)) if em.family.model.diagonal else np.array([np.eye(2)] * 3)
    return EMState(GaussianParameters(np.full(3, 1 / 3), means - em.frame.shift, unit, unit))


def _passes(x: Array, wrong: int | None = None) -> Any:
    """Passes over the rows, of which one has lost half of the moments of component 1."""
    made = 0

    def one_pass(models: Sequence[Any], dtypes: Any) -> list[Stats]:
        nonlocal made
        found = [
            completed(s, m) for s, m in zip(block_stats_of_models([(x, None)], models, dtypes), models, strict=True)
        ]
        made += bool(models)
        if made == wrong:
            moments = found[0].moments.copy()
            moments[1, 1:] /= 2
            found[0] = replace(found[0], moments=moments)
        return found

    return one_pass


@every_model
@pytest.mark.parametrize("accelerate", [False, True])
def test_sums_that_are_wrong_once_are_an_error_of_the_pass_and_the_component(name: str, accelerate: bool) -> None:
    """The next pass finds out, as long as the M-step took the sums: with what scikit-learn does, it would end there."""
    x = _rows()
    em = _em(x, name, accelerate=accelerate)
    with single_blas():
        (state,) = run([(em, _start(em))], _passes(x, wrong=6), lambda _: None)
    text = str(state.failure)
    if accelerate and "collapsed" in text:
        return
    assert "the lower bound fell from" in text, text
    assert "in pass 7" in text or (accelerate and "in pass" in text)
    assert "component 1 " in text


def test_a_family_without_a_frame_is_watched_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros and ones, of which a pass counts some in another component: the sums of all are those of the survey."""
    rng = np.random.default_rng(0)
    x = (rng.random((400, 6)) < np.repeat(rng.random((2, 6)), 200, axis=0)).astype(float)
    call, made = EMPass.__call__, 0

    def wrong(self: Any, models: Any, dtypes: Any) -> list[Stats]:
        nonlocal made
        made += 1
        found = call(self, models, dtypes)
        if made == 5:
            moments = found[0].moments.copy()
            wrongly = 0.7 * moments[0, 1:4]
            moments[:, 1:4] += [-wrongly, wrongly]
            found[0] = replace(found[0], moments=moments)
        return found

    monkeypatch.setattr(EMPass, "__call__", wrong)
    start = {"weights_init": [0.5, 0.5], "means_init": rng.random((2, 6))}
    with pytest.raises(
        ValueError, match=r"the lower bound fell from \S+ to \S+ in pass 6, .*component [01] .*fit again$"
    ):
        BernoulliMixture(2, accelerate=False, tol=0, **start).fit(x)


@every_model
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("reg_covar", [0.1, 10.0])
def test_reg_covar_may_lower_the_likelihood_by_what_the_family_says(name: str, reg_covar: float, prior: bool) -> None:
    """Which bounds each fall, and tells nothing where there is none."""
    x = _rows()
    em = _em(x, name, reg_covar, prior, accelerate=False)
    state, one_pass, cost, falls, costs = _start(em), _passes(x), 0.0, [], []
    with single_blas():
        for _ in range(12):
            components = em.family.components(state.parameters, em.frame)
            before, (stats,) = state, one_pass([components], [np.dtype(np.float64)])
            state, _ = em.advance(state, components, stats)
            if before.exactness.stepped:
                falls.append(before.lower_bound - state.lower_bound)
                costs.append(cost / stats.weight)
            cost = em.family.max_decrease(before.parameters, state.parameters, stats.moments[:, 0], em.frame)
    assert max(falls) > 1e-6 or reg_covar < 1 or prior or em.family.model.pooled
    assert (np.array(falls) <= np.array(costs) + 1e-12).all()
    exact = replace(em.family, reg_covar=0.0)
    assert exact.max_decrease(before.parameters, state.parameters, stats.moments[:, 0], em.frame) < 1e-10 * len(x)


def test_the_first_pass_is_not_compared_with_the_fit_before() -> None:
    """Which may have been of other, likelier rows."""
    x = _rows()
    model = GaussianMixture(3, random_state=0).fit(x / 100)
    model.set_params(warm_start=True).fit(x)
    assert model.converged_


@pytest.mark.parametrize("place", [20.1, 21.3, 23.7, 25.9, 27.7, 30.3])
def test_single_precision_alone_fails_no_fit(place: float) -> None:
    """The variance of equal rows, far from where sums are taken, may be less than nothing there."""
    x = np.concatenate([_rows(), np.full((50, 2), place)])
    em = _em(x, "diag", reg_covar=1e-9, single=True)
    means = np.array([[0.0, 0.0], [3.0, 1.0], [place, place]])
    start = EMState(GaussianParameters(np.full(3, 1 / 3), means - em.frame.shift, np.ones((3, 2)), np.ones((3, 2))))
    precisions = []

    def one_pass(models: Any, dtypes: Any) -> list[Stats]:
        precisions.extend(dtypes)
        return _passes(x)(models, dtypes)

    with single_blas():
        (state,) = run([(em, start)], one_pass, lambda _: None)
    assert precisions[0] == SINGLE
    assert state.failure is None
    np.testing.assert_allclose(state.parameters.covariances[2], 1e-9, rtol=1e-3)


def test_the_narrowest_component_is_named_where_rounding_may_be_why() -> None:
    """Else the one whose share of the rows has changed most."""
    x = _rows()
    em = _em(x, "diag")
    factors = np.array([[1.0, 1.0], [1e9, 1.0], [1e3, 1e3]])
    components = em.family.components(
        GaussianParameters(np.full(3, 1 / 3), np.full((3, 2), 2.0), factors**-2, factors), em.frame
    )
    counts, weights = np.array([5.0, 3.0, 2.0]), np.array([0.2, 0.4, 0.4])
    narrow = str(fallen(-3.0, -3.001, 9, components, counts, weights))
    assert "fell from -3 to -3.001 in pass 9" in narrow
    assert "component 1 is too narrow for where it is: raise reg_covar" in narrow
    other = str(fallen(-3.0, -3e3, 9, components, counts, weights))
    assert "component 0 went from 20.00% to 50.00% of the rows" in other
