"""EM drives states of several EMs as if each were alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from daskgmm import GaussianMixture
from daskgmm.em.estep import block_stats_of_models, completed
from daskgmm.em.loop import EM, EMState, run
from daskgmm.families.covariance import MODELS
from daskgmm.families.gaussian import CollapsedComponentError, Gaussian, GaussianParameters
from daskgmm.process import single_blas

Array = npt.NDArray[np.float64]


def _rows() -> Array:
    """Rows about two centres, and one row many times."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(size=(300, 2)), rng.normal((4, 1), size=(200, 2)), np.full((50, 2), -9.0)])


def _em(x: Array, name: str, reg_covar: float = 1e-3, single: bool = False) -> EM:
    family = Gaussian(MODELS[name], reg_covar)
    frame = family.frame(x, x.min(axis=0), x.max(axis=0))
    return EM(family, frame, x - frame.shift, tol=1e-9, max_iter=30, single=single)


def _start(em: EM) -> EMState:
    means = np.array([[0.0, 0.0], [4.0, 1.0], [-9.0, -9.0]])
    unit = np.ones((3, 2)) if em.family.model.diagonal else np.array([np.eye(2)] * 3)
    return EMState(GaussianParameters(np.full(3, 1 / 3), means - em.frame.shift, unit, unit))


def _run(x: Array, ems: list[EM]) -> list[EMState]:
    def one_pass(models: Any, dtypes: Any) -> Any:
        return [
            completed(s, m) for s, m in zip(block_stats_of_models([(x, None)], models, dtypes), models, strict=True)
        ]

    with single_blas():
        return run([(em, _start(em)) for em in ems], one_pass, lambda _: None)


def test_states_of_any_models_and_precisions_are_as_they_would_be_alone() -> None:
    x = _rows()
    ems = [_em(x, name, single=single) for name in ("full", "tied", "diag", "EII", "VVE") for single in (False, True)]
    for together, em in zip(_run(x, ems), ems, strict=True):
        (alone,) = _run(x, [em])
        assert together.n_iter == alone.n_iter
        assert together.bounds.values == pytest.approx(alone.bounds.values, rel=1e-9 if not em.single else 1e-6)
        assert together.bounds.log_certainty == pytest.approx(alone.bounds.log_certainty, rel=1e-6)


def test_one_that_fails_ends_no_other() -> None:
    x = _rows()
    doomed, well = _em(x, "full", reg_covar=0), _em(x, "full")
    failed, found = _run(x, [doomed, well])
    assert isinstance(failed.failure, CollapsedComponentError)
    assert found.failure is None
    assert found.bounds.values == _run(x, [well])[0].bounds.values


def test_a_fit_fails_with_its_last_start_only() -> None:
    """A start whose component collapses is left out as long as there is another."""
    x = _rows()
    options = {"reg_covar": 0, "init_params": "random_from_data", "subsample": None, "max_iter": 300, "tol": 1e-9}
    ends = []
    for seed in range(6):
        try:
            ends.append(GaussianMixture(2, **options, random_state=seed).fit(x).lower_bound_)
        except CollapsedComponentError:
            ends.append(-np.inf)
    assert -np.inf in ends
    assert max(ends) > -np.inf
    several = GaussianMixture(2, **options, n_init=12, random_state=1).fit(x)  # the first of which collapses
    assert several.lower_bound_ == pytest.approx(max(ends), rel=1e-8)
    assert ends[1] == -np.inf
