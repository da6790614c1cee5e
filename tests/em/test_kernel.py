"""The compiled kernel against NumPy and SciPy, and single precision against double."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from daskgmm import GaussianMixture
from daskgmm.em.estep import (
    block_stats_of_models,
    completed,
    log_densities,
    log_joint_of,
    moments_from_responsibilities,
)
from daskgmm.em.kernel import exp, expected_sums, soften
from daskgmm.em.loop import remaining
from daskgmm.families.covariance import MODELS, CovarianceModel
from daskgmm.families.frame import Frame
from daskgmm.families.gaussian import Gaussian, GaussianParameters
from daskgmm.fitting.em_pass import EMPass
from daskgmm.fitting.sample import sample_sizes

pytestmark = pytest.mark.usefixtures("one_thread")  # as passes call it
Array = npt.NDArray[np.float64]
DOUBLE, SINGLE = np.dtype(np.float64), np.dtype(np.float32)

# Of each kind that the kernel knows: whole or diagonal, one for all or not.
every_model = pytest.mark.parametrize(
    "model", [MODELS[code] for code in ("VVV", "EEE", "VVI", "EEI")], ids=lambda m: m.code
)


def _log_joint(n: int, k: int, scale: float, seed: int) -> Array:
    return scale * np.random.default_rng(seed).standard_normal((k, n)) - 50


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 600),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    scale=st.floats(0, 60),
    weighted=st.booleans(),
    single=st.booleans(),
)
def test_softmax_of_each_model(n: int, sizes: list[int], scale: float, weighted: bool, single: bool) -> None:
    """SciPy's softmax and logarithm of sums, model by model."""
    dtype, tolerance, floor = (np.float32, 2e-6, np.float32(-60)) if single else (np.float64, 4e-15, -300.0)
    found = _log_joint(n, sum(sizes), scale, n).astype(dtype)
    ends = np.cumsum(sizes)
    weights = np.linspace(0.5, 2, n) if weighted else np.empty(0)
    w = weights if weighted else np.ones(n)
    parts = np.split(found.astype(np.float64), ends[:-1])
    resp = np.concatenate([w * softmax(part, axis=0) for part in parts])
    bounds = [float(w @ logsumexp(part, axis=0)) for part in parts]
    largest = np.array([w @ np.log(softmax(part, axis=0).max(axis=0)) for part in parts])
    log_likelihoods, log_certainties = np.zeros((2, len(sizes)))
    soften(found, ends, weights, floor, np.empty((2, n), dtype), log_likelihoods, log_certainties)
    assert np.abs(found - resp).max() <= 40 * tolerance
    assert log_certainties == pytest.approx(largest, rel=40 * tolerance, abs=40 * tolerance * n)
    assert log_likelihoods == pytest.approx(bounds, rel=40 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 4e-15), (np.float32, 4e-7)])
def test_exponentials_are_numpy_s(dtype: Any, tolerance: float) -> None:
    """From nothing to the floor, in each precision: of each column's differences from its largest value."""
    x = np.linspace(-55, 0, 10_001).astype(dtype)
    found = np.stack([np.zeros_like(x), x])
    soften(found, np.array([2]), np.empty(0), dtype(-60), np.empty_like(found), *np.zeros((2, 1)))
    expected = np.exp(x.astype(np.float64))
    assert (np.abs(found[1] / found[0] / expected - 1) <= tolerance + np.finfo(dtype).eps).all()


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 300), k=st.integers(1, 30), scale=st.floats(0, 60))
def test_log_densities_are_logarithms_of_sums(n: int, k: int, scale: float) -> None:
    log_joint = _log_joint(n, k, scale, k)
    expected = logsumexp(log_joint, axis=0)
    assert log_densities(log_joint) == pytest.approx(expected, rel=1e-14)


def test_exp_is_the_library_s() -> None:
    """Where Numba is switched off."""
    assert exp(-1.0) == np.exp(-1.0)


def test_not_a_number_stays_one() -> None:
    """However fast the largest value of a column is found, what is no number must not turn into one."""
    log_joint = np.zeros((20, 100))
    log_joint[7, 41] = np.nan
    found = np.zeros(1)
    soften(log_joint, np.array([20]), np.empty(0), -300.0, np.empty((2, 100)), found, np.zeros(1))
    assert np.isnan(found[0])


def _mixture(model: CovarianceModel, d: int, k: int, n: int = 4000) -> tuple[Array, Frame, Any]:
    rng = np.random.default_rng(0)
    means = 2 * rng.standard_normal((k, d))
    x = rng.standard_normal((n, d)) * rng.uniform(0.5, 2, d) + means[rng.integers(k, size=n)]
    unit = np.ones((k, d)) if model.diagonal else np.array([np.eye(d)] * k)
    frame = Gaussian(model).frame(x, x.min(axis=0), x.max(axis=0))
    start = GaussianParameters(np.full(k, 1 / k), means - frame.shift, unit, unit.copy())
    return x, frame, Gaussian(model).components(start, frame)


def test_the_specification_is_scipy_s() -> None:
    """The E-step in NumPy against SciPy's softmax and logarithm of sums, of densities below the smallest float."""
    rng = np.random.default_rng(0)
    phi, theta, w = np.vstack([np.ones(200), rng.normal(0, 30, (3, 200))]), rng.normal(0, 30, (5, 4)), rng.random(200)
    log_likelihood, moments = expected_sums(phi, theta, w)
    assert log_likelihood == pytest.approx(float(w @ logsumexp(theta @ phi, axis=0)), rel=1e-13)
    assert np.abs(moments - (w * softmax(theta @ phi, axis=0)) @ phi.T).max() <= 1e-11


@every_model
@pytest.mark.parametrize(("d", "k"), [(2, 3), (16, 16), (16, 40), (35, 4)])
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE], ids=str)
def test_statistics_are_numpy_s(model: CovarianceModel, d: int, k: int, dtype: np.dtype[Any]) -> None:
    """Whatever way a shape takes through the kernel: log-likelihood, counts, sums and squares, in each precision."""
    x, frame, components = _mixture(model, d, k)
    z = frame.apply(x)
    factors = components.factors if components.factors.ndim == 3 else np.array([np.diag(f) for f in components.factors])
    y = np.einsum("kij,kin->kjn", factors, z[None] - components.means[:, :, None])
    log_joint = components.constants[:, None] - 0.5 * (y**2).sum(axis=1)
    resp = softmax(log_joint, axis=0)
    (found,) = block_stats_of_models([(x, None)], [components], dtype)
    stats = completed(found, components)
    tolerance = 1e-12 if dtype == DOUBLE else 1e-4
    assert stats.log_likelihood == pytest.approx(logsumexp(log_joint, axis=0).sum(), rel=tolerance)
    assert stats.moments[:, 0] == pytest.approx(resp.sum(axis=1), rel=20 * tolerance)
    assert np.abs(stats.moments[:, 1 : 1 + d] - resp @ z.T).max() <= 20 * tolerance * np.abs(z).max() * len(x)
    left, right = components.products
    squares = (z[left] * z[right]).sum(axis=1)
    assert stats.moments[:, 1 + d :].sum(axis=0) == pytest.approx(squares, rel=20 * tolerance, abs=tolerance * len(x))


def _reference(x: Array, w: Array, components: Any, frame: Frame) -> tuple[float, Array]:
    """Log-likelihood and moments of rows that are all finite, by products with φ in NumPy."""
    z = frame.apply(x)
    left, right = components.products
    return expected_sums(np.vstack([np.ones(len(x)), z, z[left] * z[right]]), components.theta, w)


@pytest.mark.parametrize("apart", [0.3, 1.0, 6.0])
@pytest.mark.parametrize(("d", "k"), [(16, 16), (16, 21), (20, 33)])
@pytest.mark.parametrize("weight", [1.0, 1e-30])
def test_rows_of_one_component_or_of_many(apart: float, d: int, k: int, weight: float) -> None:
    """Moments of a wide φ are NumPy's, whether few components hold most rows or all do, whatever the weights' unit."""
    rng = np.random.default_rng(d)
    means = apart * rng.standard_normal((k, d))
    x = rng.standard_normal((3000, d)) + means[rng.integers(k, size=3000)]
    frame = Gaussian(MODELS["full"]).frame(x, x.min(axis=0), x.max(axis=0))
    unit = np.array([np.eye(d)] * k)
    start = GaussianParameters(np.full(k, 1 / k), means - frame.shift, unit, unit.copy())
    components = Gaussian(MODELS["full"]).components(start, frame)
    w = weight * np.linspace(0.1, 2, 3000)
    log_likelihood, moments = _reference(x, w, components, frame)
    for dtype, tolerance in ((DOUBLE, 1e-13), (SINGLE, 2e-5)):
        (stats,) = block_stats_of_models([(x, w)], [components], dtype)
        assert stats.log_likelihood == pytest.approx(log_likelihood, rel=max(1e-12, tolerance))
        assert np.abs(stats.moments - moments).max() <= 20 * tolerance * np.abs(moments).max()


@pytest.mark.parametrize("apart", [0.0, 0.7, 3.0])
def test_what_holds_nothing_of_a_row_is_cut_off_below_what_counts(apart: float) -> None:
    """From the first features alone: log densities that count are exact, all others too low to count."""
    rng = np.random.default_rng(0)
    n, d, k, least = 2000, 40, 8, 1e-16
    means = apart * rng.standard_normal((k, d))
    means[1] = means[0]  # two that only their shapes tell apart
    shapes = np.eye(d) + 0.1 * rng.standard_normal((k, d, d))
    x = means[:, None] + rng.standard_normal((k, n // k, d)) @ shapes
    x = rng.permutation(x.reshape(n, d))
    covariances = shapes.transpose(0, 2, 1) @ shapes
    family, frame = Gaussian(MODELS["full"]), Frame.identity(d)
    weights = np.full(k, 1 / k)
    parameters = GaussianParameters(weights, means, covariances, family.factorize(covariances, weights))
    components = family.components(parameters, frame)
    exact, cut = (
        np.concatenate([tile for _, tile in log_joint_of(x, components, limit)], axis=1) for limit in (0.0, least)
    )
    below = exact - exact.max(axis=0)
    counts = below > np.log(least)
    assert cut[counts] == pytest.approx(exact[counts], rel=1e-12)
    assert (cut - exact.max(axis=0))[~counts].max(initial=-np.inf) <= np.log(least)
    assert (np.abs(cut - exact) > 1e-6 * np.abs(exact)).any() == (apart == 3.0)  # else the law was not put to the test
    (stats,) = block_stats_of_models([(x, None)], [components])
    resp = np.exp(below) / np.exp(below).sum(axis=0)
    assert stats.moments == pytest.approx(
        moments_from_responsibilities(x.T, resp, components), rel=1e-11, abs=1e-11 * n
    )


def test_a_tight_component_leaves_the_sums_of_the_others_as_they_were() -> None:
    """Of its own rows more may count, as all others are so far off; not of theirs, which would take twice the time."""
    rng = np.random.default_rng(0)
    d, k = 40, 8
    means = 1.5 * rng.standard_normal((k, d))
    x = np.repeat(means, 250, axis=0) + rng.standard_normal((250 * k, d))
    units, frame, family = np.array([np.eye(d)] * k), Frame.identity(d), Gaussian(MODELS["full"])
    without = family.components(GaussianParameters(np.full(k, 1 / k), means, units, units.copy()), frame)
    tight = replace(
        without,
        constants=np.append(without.constants, -1e6),
        means=np.vstack([means, 100 * np.ones(d)]),
        factors=np.concatenate([units, 1e9 * units[:1]]),
    )
    assert tight.ill_conditioned.tolist() == [False] * k + [True]
    for dtype in (DOUBLE, SINGLE):
        (expected,), (found,) = (block_stats_of_models([(x, None)], [model], dtype) for model in (without, tight))
        assert np.array_equal(found.moments[:k], expected.moments)


@pytest.mark.parametrize("architecture", ["Haswell", "SkylakeX"])
def test_models_that_share_a_pass_have_the_bits_they_have_alone(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one's rows belong to few of its components and another's do not."""
    monkeypatch.setattr("daskgmm.em.layout.architectures", lambda: {architecture})
    x, frame, near = _mixture(MODELS["full"], 16, 20)
    other = replace(_mixture(MODELS["full"], 16, 7)[2], frame=frame)
    vague = replace(other, factors=0.05 * other.factors)
    together = block_stats_of_models([(x, None)], [near, vague, other])
    for found, model in zip(together, (near, vague, other), strict=True):
        (alone,) = block_stats_of_models([(x, None)], [model])
        assert found.log_likelihood == alone.log_likelihood
        assert np.array_equal(found.moments, alone.moments)


@pytest.mark.parametrize(("name", "d"), [("full", 16), ("diag", 60), ("tied", 120), ("EII", 120)])
@pytest.mark.parametrize("k", [3, 7, 13])
def test_statistics_do_not_depend_on_what_blas_is_fastest_at(
    name: str, d: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where φ is wide, and so few components are multiplied as more."""
    x, _, model = _mixture(MODELS[name], d, k)
    found = []
    for architecture in ("Haswell", "SkylakeX"):
        monkeypatch.setattr("daskgmm.em.layout.architectures", lambda this=architecture: {this})
        found += block_stats_of_models([(x, None)], [model])
    one, other = found
    assert other.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-12)
    assert np.allclose(other.moments, one.moments, rtol=1e-9, atol=1e-9 * np.abs(one.moments).max())


@every_model
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rows_that_are_read_only_have_the_same_bits(model: CovarianceModel, dtype: Any) -> None:
    """As those are that were kept on one worker and came to another."""
    x, _, components = _mixture(model, 35, 4, n=12_345)
    x = x.astype(dtype)
    fixed = x.copy()
    fixed.flags.writeable = False
    (one,), (other,) = (block_stats_of_models([(rows, None)], [components]) for rows in (x, fixed))
    assert one.log_likelihood == other.log_likelihood
    assert np.array_equal(one.moments, other.moments)


@every_model
@pytest.mark.parametrize("d", [3, 16])
def test_single_precision_rows_far_from_the_origin(model: CovarianceModel, d: int) -> None:
    """They are what they are in double precision, to the bit: their distance to the shift is rounded only after."""
    x, frame, components = _mixture(model, d, 4)
    far = (x + 1000).astype(np.float32)
    there = replace(components, frame=replace(frame, shift=frame.shift + 1000))
    for dtype in (DOUBLE, SINGLE):
        (stored,) = block_stats_of_models([(far, None)], [there], dtype)
        (converted,) = block_stats_of_models([(far.astype(np.float64), None)], [there], dtype)
        assert np.array_equal(stored.moments, converted.moments)
        assert stored.log_likelihood == converted.log_likelihood
    (near,) = block_stats_of_models([(x, None)], [components])
    assert stored.log_likelihood == pytest.approx(near.log_likelihood, rel=1e-4)


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.int16, ">f4"])
@pytest.mark.parametrize("d", [3, 16])
def test_rows_that_do_not_count(stored: Any, d: int) -> None:
    """Rows with a value that is not finite or without weight are as if they were not there; read-only ones are."""
    x, _, components = _mixture(MODELS["full"], d, 4)
    x = (20 * x).astype(stored)
    w = np.linspace(0.5, 2, len(x))
    keep = np.ones(len(x), dtype=bool)
    if x.dtype.kind == "f":
        for i, value in enumerate((np.nan, np.inf, -np.inf)):
            keep[at := np.arange(i, len(x), 71)] = False
            x[at, i] = value
    w[5::50] = 0
    x.flags.writeable = w.flags.writeable = False
    for weights, kept in ((None, keep), (w, keep & (w > 0))):
        (found,) = block_stats_of_models([(x, weights)], [components])
        (expected,) = block_stats_of_models([(x[kept], None if weights is None else w[kept])], [components])
        assert found.n == kept.sum()
        assert found.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-12)
        assert np.abs(found.moments - expected.moments).max() <= 1e-12 * np.abs(expected.moments).max()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.99])
def test_what_remains_of_a_geometric_series_is_not_underrated(rate: float) -> None:
    """By the largest of up to four steps, it may be overrated by three of them."""
    bounds = np.cumsum(rate ** np.arange(30))
    for n in (3, 5, 12):
        exact = rate**n / (1 - rate)
        assert 0.999 * exact <= remaining(bounds[:n]) <= 1.001 * exact / rate**3
    assert remaining((1.0, 2.0)) == np.inf
    assert remaining((1.0, 2.0, 3.0)) == np.inf


def test_early_passes_in_single_precision_do_not_show_in_the_result() -> None:
    """The fit ends with passes in double precision: what it reports of its parameters is what they score."""
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=(12_000, 3)), rng.normal(size=(12_000, 3)) * 0.3 + 2]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = GaussianMixture(2, random_state=0, subsample=8000, tol=1e-6).fit(x)
    exact = GaussianMixture(2, random_state=0, accelerate=False, subsample=None, tol=1e-10, max_iter=500).fit(x)
    assert fit.score(x) >= fit.lower_bound_ - 1e-12
    assert fit.lower_bound_ == pytest.approx(exact.lower_bound_, abs=2e-6)
    assert fit.n_passes_ < exact.n_passes_


@pytest.mark.parametrize(("subsample", "precisions"), [(None, {DOUBLE}), (8000, {SINGLE, DOUBLE}), (20_000, {DOUBLE})])
def test_early_passes_over_data_are_in_single_precision_only_after_a_sample(
    subsample: int | None, precisions: set[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[Any] = set()

    class Spy(EMPass):
        def __call__(self, models: Any, dtypes: Any) -> Any:
            used.update(dtypes)
            return super().__call__(models, dtypes)

    monkeypatch.setattr("daskgmm.fitting.fit.EMPass", Spy)
    x = da.from_array(np.random.default_rng(3).normal(size=(12_000, 3)), chunks=(4000, 3))
    GaussianMixture(3, random_state=0, subsample=subsample).fit(x)
    assert used == precisions


@settings(max_examples=50, deadline=None)
@given(n=st.integers(100, 10**12), n_sampled=st.integers(100, 10**6), k=st.integers(1, 100), p=st.integers(1, 10**6))
def test_rungs_grow_fourfold_to_a_small_part_of_the_data_or_all_that_are_in_hand(
    n: int, n_sampled: int, k: int, p: int
) -> None:
    n_sampled = min(n, n_sampled)
    sizes = sample_sizes(n, n_sampled, k, p)
    assert sizes[-1] == (n if n_sampled == n else min(n_sampled, max(n // 4, 1000 * k)))
    assert all(4 * few <= more < 4 * few + 4 for few, more in pairwise(sizes))
    assert sizes[0] >= min(sizes[-1], 1000 * k)
