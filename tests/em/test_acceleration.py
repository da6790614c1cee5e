"""Anderson mixing, and its safeguard in the loop."""

from __future__ import annotations

import numpy as np
import pytest

from daskgmm import GaussianMixture
from daskgmm.em.acceleration import Mixing


def overlapping(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A mixture of overlapping components, and its means."""
    rng = np.random.default_rng(seed)
    centres = 1.5 * rng.normal(size=(4, 3))
    shapes = np.eye(3) + 0.3 * rng.normal(size=(4, 3, 3))
    rows = [rng.normal(size=(2000, 3)) @ shape + c for shape, c in zip(shapes, centres, strict=True)]
    return np.concatenate(rows), centres


def test_a_linear_iteration_is_solved_in_as_many_steps_as_it_has_dimensions():
    """Once there are steps enough to mix, that is; until then momentum must not lose the way."""
    rng = np.random.default_rng(0)
    matrix = 0.9 * np.linalg.qr(rng.normal(size=(4, 4)))[0]
    offset = rng.normal(size=4)
    solution = np.linalg.solve(np.eye(4) - matrix, offset)
    mixing, x = Mixing(), np.zeros(4)
    for _ in range(mixing.patience + 2):
        image = matrix @ x + offset
        mixing = mixing.add(x, image)
        x, mixing = mixing.extrapolate() or (image, mixing)
    np.testing.assert_allclose(x, solution, rtol=1e-9)


def test_momentum_needs_fewer_steps_than_the_iteration_itself():
    """On a slow linear iteration with a symmetric matrix, as EM's is near a maximum."""
    rates = np.linspace(0, 0.99, 5)

    def steps(mixing: Mixing | None) -> int:
        x = np.ones(5)
        n = 0
        while np.abs(x).max() > 1e-4:
            n += 1
            image = rates * x
            if mixing is not None:
                mixing = mixing.add(x, image)
                image, mixing = mixing.extrapolate() or (image, mixing)
            x = image
        return n

    assert steps(Mixing(patience=10**6)) < 0.5 * steps(None)


def test_what_failed_is_tried_less():
    mixing = Mixing()
    for x in np.linspace(0, 1, 20):
        mixing = mixing.add(np.array([x]), np.array([x + 0.1]))
    _, mixed = mixing.extrapolate()
    assert mixed.mixed
    patient = mixed.failed()
    assert patient.patience == 2 * mixing.patience
    assert not patient.extrapolate()[1].mixed
    assert patient.failed().momentum == 1 < patient.momentum


def test_one_step_is_nothing_to_extrapolate_from():
    assert Mixing().add(np.zeros(2), np.ones(2)).extrapolate() is None


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_accelerated_likelihoods_never_fall_and_end_no_lower_than_textbook_em(covariance_type):
    passes = []
    for seed in range(4):
        X, means = overlapping(seed)
        options = {"covariance_type": covariance_type, "means_init": means, "random_state": 0, "max_iter": 2000}
        options["subsample"] = None  # or both would go on from where a climb has ended
        fast = GaussianMixture(4, tol=1e-7, reg_covar=0, **options).fit(X)
        slow = GaussianMixture(4, tol=1e-7, reg_covar=0, accelerate=False, **options).fit(X)
        assert fast.converged_
        assert slow.converged_
        assert np.diff(fast.lower_bounds_).min() >= -1e-13  # rounding
        assert fast.lower_bound_ > slow.lower_bound_ - 1e-8
        reached = np.array(fast.lower_bounds_) >= slow.lower_bound_ - 1e-8
        rejected = fast.n_iter_ - len(fast.lower_bounds_)
        passes.append((np.argmax(reached) + 1 + rejected, slow.n_iter_))
    fast_passes, slow_passes = np.array(passes).T
    assert (fast_passes <= 1.1 * slow_passes).all()
    assert fast_passes.sum() < 0.6 * slow_passes.sum()


def test_a_fit_cut_short_returns_nothing_untried():
    """Parameters after max_iter passes are EM's own step: never worse than the last likelihood reported."""
    X, _ = overlapping(1)
    for max_iter in range(1, 12):
        gm = GaussianMixture(4, random_state=0, max_iter=max_iter, tol=0, reg_covar=0, subsample=None).fit(X)
        assert gm.score(X) >= gm.lower_bound_ - 1e-12
