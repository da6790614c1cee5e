"""Laws that hold for every covariance model, over the table of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm.em.estep import block_stats_of_models as block_statistics
from daskgmm.em.estep import completed, log_joint_of, stats_from_responsibilities
from daskgmm.em.loop import EM, EMState
from daskgmm.em.stats import Stats
from daskgmm.families.covariance import MODELS, CovarianceModel
from daskgmm.families.frame import Frame, lost
from daskgmm.families.gaussian import Gaussian, GaussianParameters
from daskgmm.process import single_blas

Array = npt.NDArray[np.float64]

CODED = {name: model for name, model in MODELS.items() if name == model.code}
every_model = pytest.mark.parametrize("model", CODED.values(), ids=list(CODED))


def block_stats_of_models(pieces: Any, models: Sequence[Any], *dtype: Any) -> list[Stats]:
    """As those of a pass over one block."""
    stats = block_statistics(pieces, models, *dtype)
    return [completed(s, m) for s, m in zip(stats, models, strict=True)]


def _rows(n: int, d: int, k: int, seed: int = 0) -> Array:
    """Rows of k overlapping, correlated groups of different sizes, in an order that mixes them."""
    rng = np.random.default_rng(seed)
    sizes = np.diff(np.linspace(0, np.sqrt(n), k + 1) ** 2 + 0.5).astype(int)
    sizes[-1] += n - sizes.sum()
    groups = [
        rng.standard_normal((size, d)) @ (np.eye(d) + 0.4 * rng.standard_normal((d, d))) + 3 * rng.standard_normal(d)
        for size in sizes
    ]
    return rng.permutation(np.concatenate(groups))


def _start(model: CovarianceModel, x: Array, k: int) -> GaussianParameters:
    """The M-step of slices along the first feature: parameters as any fit meets them."""
    groups = np.array_split(x[np.argsort(x[:, 0], kind="stable")], k)
    counts = np.array([float(len(group)) for group in groups])
    scatter = np.array([np.atleast_2d(np.cov(group.T, bias=True)) for group in groups])
    if model.diagonal:
        scatter = np.einsum("kii->ki", scatter).copy()
    covariances = model.estimate(counts, scatter)
    family = Gaussian(model)
    means = np.array([group.mean(axis=0) for group in groups])
    return GaussianParameters(counts / counts.sum(), means, covariances, family.factorize(covariances, counts))


def _pass(
    model: CovarianceModel, parameters: GaussianParameters, frame: Frame, x: Array, w: Array | None = None
) -> Stats:
    (stats,) = block_stats_of_models([(x, w)], [Gaussian(model).components(parameters, frame)])
    return stats


def _step(model: CovarianceModel, parameters: GaussianParameters, frame: Frame, x: Array) -> GaussianParameters:
    """One EM step in a frame, from and to parameters about the origin."""
    family = Gaussian(model)
    moved = parameters.moved(-frame.shift)
    components = family.components(moved, frame)
    (stats,) = block_stats_of_models([(x, None)], [components])
    return family.maximize(components, stats.moments).moved(frame.shift)


def _frame(model: CovarianceModel, x: Array) -> Frame:
    return Gaussian(model).frame(x, x.min(axis=0), x.max(axis=0))


def _close(found: Any, expected: Any, tolerance: float) -> None:
    """Equal, but for ``tolerance`` of the largest value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def _same_stats(found: Stats, expected: Stats, tolerance: float = 1e-12) -> None:
    assert found.log_likelihood == pytest.approx(expected.log_likelihood, rel=tolerance)
    _close(found.moments, expected.moments, tolerance)


def _same_parameters(found: GaussianParameters, expected: GaussianParameters, tolerance: float) -> None:
    for name in ("weights", "means", "covariances", "factors"):
        _close(getattr(found, name), getattr(expected, name), tolerance)


# Sums


@every_model
@settings(max_examples=15, deadline=None)
@given(n=st.integers(12, 700), d=st.integers(1, 5), k=st.integers(1, 3), at=st.floats(0, 1), weighted=st.booleans())
def test_split_is_whole(model: CovarianceModel, n: int, d: int, k: int, at: float, weighted: bool) -> None:
    """Statistics of some rows and of the others add up to those of all."""
    x = _rows(n, d, k)
    w = np.linspace(0, 3, n) if weighted else None
    parameters, frame = _start(model, _rows(400, d, k, seed=1), k), Frame.identity(d)
    cut = round(at * n)
    parts = [
        _pass(model, parameters, frame, x[rows], None if w is None else w[rows])
        for rows in (slice(0, cut), slice(cut, n))
    ]
    whole = _pass(model, parameters, frame, x, w)
    _same_stats(parts[0] + parts[1], whole)
    assert parts[0].n + parts[1].n == whole.n == n - weighted  # the first weighs nothing


@every_model
def test_pieces_are_whole(model: CovarianceModel) -> None:
    """Statistics of pieces of any size, of tiles more or less than one, are those of the rows in one piece."""
    x = _rows(20_000, 4, 3)
    components = Gaussian(model).components(_start(model, x, 3), Frame.identity(4))
    pieces = [(piece, None) for piece in np.array_split(x, [1, 2, 300, 300, 9000, 19_999])]
    (stats,) = block_stats_of_models(pieces, [components])
    (whole,) = block_stats_of_models([(x, None)], [components])
    _same_stats(stats, whole)
    assert stats.n == whole.n == 20_000


@every_model
def test_weight_is_repetition(model: CovarianceModel) -> None:
    """A row of weight 0, 1, 2 or 3 counts as the row that many times."""
    x = _rows(900, 3, 3)
    times = np.arange(900) % 4
    parameters, frame = _start(model, x, 3), _frame(model, x)
    weighted = _pass(model, parameters, frame, x, times.astype(float))
    _same_stats(weighted, _pass(model, parameters, frame, np.repeat(x, times, axis=0)))
    assert weighted.weight == pytest.approx(times.sum(), rel=1e-12)


@every_model
@pytest.mark.parametrize("n", [200, 9000])
def test_models_share_a_pass(model: CovarianceModel, n: int) -> None:
    """Statistics of several models from one pass are those of each from its own."""
    x = _rows(n, 3, 4)
    family, frame = Gaussian(model), _frame(model, x)
    components = [family.components(_start(model, x, k).moved(-frame.shift), frame) for k in (1, 2, 4)]
    for together, alone in zip(block_stats_of_models([(x, None)], components), components, strict=True):
        _same_stats(together, block_stats_of_models([(x, None)], [alone])[0])


# EM


@every_model
@pytest.mark.parametrize("accelerate", [False, True])
def test_likelihood_never_falls(model: CovarianceModel, accelerate: bool) -> None:
    """No step of EM, nor one that is kept of an accelerated fit, lowers the likelihood by more than rounding.

    Which is what products about a common centre lose for the narrowest component.
    """
    x = _rows(1500, 3, 4)
    frame = _frame(model, x)
    em = EM(Gaussian(model), frame, x - frame.shift, tol=0, max_iter=60, accelerate=accelerate)
    start = EMState(_start(model, x, 4).moved(-frame.shift))
    with single_blas():  # as in a fit
        (state,) = em.run([start], lambda *models: block_stats_of_models([(x, None)], *models), lambda info: None)
    factors = np.linalg.norm(np.reshape(em.family.components(state.parameters, frame).factors, (4, -1)), axis=1)
    rounding = max(1e-13 * abs(state.lower_bound), lost(np.linalg.norm(frame.apply(x), axis=0).max() * factors.max()))
    assert np.diff(state.bounds.values).min() >= -rounding
    assert state.bounds.values[-1] > state.bounds.values[0] + 0.01  # and there was something to gain


@every_model
def test_rows_in_any_order(model: CovarianceModel) -> None:
    """One EM step does not depend on the order of the rows."""
    x = _rows(1500, 3, 4)
    start, frame = _start(model, x, 4), _frame(model, x)
    shuffled = np.random.default_rng(1).permutation(x)
    _same_parameters(_step(model, start, frame, shuffled), _step(model, start, frame, x), 1e-10)


@pytest.mark.parametrize(
    "model", [m for m in CODED.values() if not m.diagonal or m.code[1] == "I"], ids=lambda m: m.code
)
def test_turned_rows(model: CovarianceModel) -> None:
    """Turning the rows turns the parameters, but for the models whose axes are the features'."""
    x = _rows(1500, 3, 4)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    start = _start(model, x, 4)
    expected, found = start, start
    for _ in range(3):
        expected = _step(model, expected, _frame(model, x), x)
    covariances = start.covariances if model.diagonal else turn.T @ start.covariances @ turn
    factors = Gaussian(model).factorize(covariances, start.weights)
    found = GaussianParameters(start.weights, start.means @ turn, covariances, factors)
    for _ in range(3):
        found = _step(model, found, _frame(model, x @ turn), x @ turn)
    _close(found.weights, expected.weights, 1e-9)
    _close(found.means, expected.means @ turn, 1e-9)
    _close(found.covariances, expected.covariances if model.diagonal else turn.T @ expected.covariances @ turn, 1e-9)


@every_model
def test_one_component_is_closed_form(model: CovarianceModel) -> None:
    """With K=1 one step from anywhere gives the mean and the covariance of the rows, as far as the model can."""
    x = _rows(1000, 4, 3)
    wrong = _start(model, 2 * x + 5, 1)
    found = _step(model, wrong, _frame(model, x), x)
    covariance = np.cov(x.T, bias=True)
    variance = covariance.diagonal()
    if model.code[2] == "I":
        covariance = np.full(4, variance.mean()) if model.code[1] == "I" else variance
    _close(found.weights, [1.0], 1e-14)
    _close(found.means, [x.mean(axis=0)], 1e-12)
    _close(found.covariances, [covariance], 1e-12)


@every_model
def test_compact_and_expand(model: CovarianceModel) -> None:
    """The shape that users see holds all that the model knows of its covariances."""
    x = _rows(500, 3, 2)
    covariances = _start(model, x, 2).covariances
    compact = model.compact(covariances)
    assert compact.shape == model.shape(2, 3)
    assert np.array_equal(model.expand(compact, 2, 3), covariances)


_FREEDOM = {"I": 0, "E": 1, "V": 2}
_NESTED = [
    pytest.param(a, b, id=f"{a.name}-{b.name}")
    for a in CODED.values()
    for b in CODED.values()
    if a is not b and all(_FREEDOM[x] <= _FREEDOM[y] for x, y in zip(a.code, b.code, strict=True))
]


@pytest.mark.parametrize(("constrained", "freer"), _NESTED)
@pytest.mark.parametrize("k", [1, 3])
def test_constrained_never_beats_freer(constrained: CovarianceModel, freer: CovarianceModel, k: int) -> None:
    """Given to which component each row belongs, a constrained model explains the rows no better than a freer one."""
    x = _rows(800, 3, 3, seed=2)
    groups = np.array_split(np.argsort(x[:, 0], kind="stable"), k)

    def explained(model: CovarianceModel) -> float:
        components = Gaussian(model).components(_start(model, x, k), Frame.identity(3))
        (log_joint,) = (found for _, found in log_joint_of(x, components))
        return float(sum(log_joint[i, rows].sum() for i, rows in enumerate(groups)))

    assert explained(constrained) <= explained(freer) + 1e-9 * len(x)
    assert constrained.n_parameters(k, 3) <= freer.n_parameters(k, 3)


# Frames and kernels


@every_model
def test_kernels_agree(model: CovarianceModel) -> None:
    """Distances to own means give what products with φ give, for all components or for some."""
    x = _rows(2000, 3, 4)
    parameters, frame = _start(model, x, 4), Gaussian(model).frame(x, x.min(axis=0), x.max(axis=0))
    parameters = parameters.moved(-frame.shift)
    tight = []
    results = []
    for radius in (0.0, *np.geomspace(1e2, 1e6, 9), np.inf):
        far = replace(frame, radius=radius)
        components = Gaussian(model).components(parameters, far)
        (stats,) = block_stats_of_models([(x, None)], [components])
        tight.append(int(components.ill_conditioned.sum()))
        results.append((stats, Gaussian(model).maximize(components, stats.moments)))
    assert tight[0] == 0
    assert tight[-1] == 4
    for stats, after in results[1:]:
        assert stats.log_likelihood == pytest.approx(results[0][0].log_likelihood, rel=1e-12)
        _same_parameters(after, results[0][1], 1e-11)


def test_rows_far_from_a_component_cost_it_no_digits_where_distances_are_taken() -> None:
    """A narrow component's own rows decide in what precision its sums are right, not those that a wide one holds."""
    rng = np.random.default_rng(0)
    d, means = 40, np.zeros((3, 40))
    means[1, 0] = means[2, 1] = 1
    scales = np.array([0.01, 0.02, 300])
    which = rng.integers(3, size=3000)
    x = means[which] + scales[which, None] * rng.standard_normal((3000, d))
    frame = replace(Frame.identity(d), radius=float(np.linalg.norm(x, axis=1).max()))
    unit = np.array([np.eye(d)] * 3)
    wide = scales[:, None, None]
    family = Gaussian(MODELS["full"])
    components = family.components(GaussianParameters(np.full(3, 1 / 3), means, unit * wide**2, unit / wide), frame)
    assert not components.ill_conditioned.any()
    assert components.float32_suffices
    about_own = replace(components, about=components.means)
    found, single, expected = (
        family.maximize(model, block_stats_of_models([(x, None)], [model], dtype)[0].moments)
        for model, dtype in (
            (components, np.dtype(np.float64)),
            (components, np.dtype(np.float32)),
            (about_own, np.dtype(np.float64)),
        )
    )
    for k in range(3):
        assert found.covariances[k] == pytest.approx(expected.covariances[k], abs=1e-8 * scales[k] ** 2)
        assert single.covariances[k] == pytest.approx(expected.covariances[k], abs=1e-3 * scales[k] ** 2)


@every_model
def test_centres_do_not_matter(model: CovarianceModel) -> None:
    """Moments about any centres lead to the same parameters; they are looked for anew only where they lie far off."""
    x = _rows(2000, 3, 4)
    family, frame = Gaussian(model), _frame(model, x)
    components = family.components(_start(model, x, 4).moved(-frame.shift), frame)

    def moments(about: Array | None) -> Array:
        return block_stats_of_models([(x, None)], [replace(components, about=about)])[0].moments

    expected = family.maximize(components, moments(None))
    assert components.recentred(moments(None)) is None
    left_behind = replace(components, means=components.means + 1e7, frame=replace(frame, radius=np.inf))
    nearer = left_behind.recentred(moments(left_behind.means))
    assert nearer is not None
    for about in (np.ones((4, 3)), np.full((4, 3), -3.0), nearer.about):
        found = family.maximize(replace(components, about=about), moments(about))
        _same_parameters(found, expected, 1e-11)


@every_model
def test_step_does_not_depend_on_the_frame(model: CovarianceModel) -> None:
    """One EM step from the same parameters ends in the same ones, whatever frame the sums are made in."""
    x = _rows(2000, 3, 4)
    parameters = _start(model, x, 4)
    rng = np.random.default_rng(5)
    frames = [
        Frame.identity(3),
        _frame(model, x),
        Frame(np.array([3.0, -40.0, 0.1]), np.array([0.01, 1.0, 100.0])),
    ]
    if not model.diagonal:
        factor = np.linalg.cholesky(np.cov(rng.standard_normal((3, 9))))
        frames.append(Frame(np.ones(3), np.array([2.0, 0.3, 1.0]), factor))
    steps = [_step(model, parameters, replace(frame, radius=0.0), x) for frame in frames]
    for found in steps[1:]:
        _same_parameters(found, steps[0], 1e-9)


@st.composite
def _frames(draw: Any) -> tuple[Frame, Array]:
    """Frames of samples of very different places and sizes, with the samples."""
    d = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**16))
    whiten = draw(st.booleans())
    scale = 10.0 ** np.array(draw(st.lists(st.integers(-12, 12), min_size=d, max_size=d)))
    offset = np.array(draw(st.lists(st.integers(-6, 6), min_size=d, max_size=d)))
    sample = scale * (_rows(60, d, 2, seed) + offset)
    return Frame.of_sample(sample, whiten).reaching(sample.min(axis=0), sample.max(axis=0)), sample


@settings(max_examples=60, deadline=None)
@given(_frames())
def test_frame_round_trip(made: tuple[Frame, Array]) -> None:
    """Rows and means that go into a frame come out of it as they were, feature by feature."""
    frame, sample = made
    u = sample - frame.shift
    size = np.abs(u).max(axis=0)
    assert (np.abs(frame.means_out(frame.means_in(u)) - u) <= 1e-9 * size).all()
    z = frame.apply(sample)
    assert (np.abs((frame.unit @ z).T - u) <= 1e-9 * size).all()
    assert (np.abs(frame.standardized(z).T * frame.scale - u) <= 1e-9 * size).all()
    _close(frame.means_in(u).T, z, 1e-9)


@settings(max_examples=60, deadline=None)
@given(_frames())
def test_frame_radius_bounds_the_rows(made: tuple[Frame, Array]) -> None:
    """No row of the box lies farther out than the radius says."""
    frame, sample = made
    corners = np.array(list(product(*zip(sample.min(axis=0), sample.max(axis=0), strict=True))))
    assert np.linalg.norm(frame.apply(corners), axis=0).max() <= frame.radius * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(_frames())
def test_frame_is_well_conditioned(made: tuple[Frame, Array]) -> None:
    """In its frame, a sample has a spread of about one in each feature."""
    frame, sample = made
    spread = frame.apply(sample).std(axis=1)
    assert spread.min() > 0.1
    assert spread.max() < 10


@every_model
def test_reseeding_keeps_the_others(model: CovarianceModel) -> None:
    """A component that starts again has a share of the weight and its row; the others keep their places."""
    x = _rows(500, 3, 3)
    alive = _start(model, x, 3)
    row = np.array([[7.0, 8.0, 9.0]])
    after = Gaussian(model).reseed(alive, [1], row)
    assert np.array_equal(after.means, np.insert(alive.means, 1, row, axis=0))
    assert np.array_equal(np.delete(after.covariances, 1, axis=0), alive.covariances)
    assert after.weights == pytest.approx(np.insert(alive.weights * 0.75, 1, 0.25))


@every_model
@pytest.mark.parametrize("respond", ["hard", "soft"])
def test_start_is_an_m_step(model: CovarianceModel, respond: str) -> None:
    """Moments under given responsibilities lead to the parameters that NumPy's weighted averages give."""
    x = _rows(600, 3, 2)
    family, frame = Gaussian(model), _frame(model, x)
    first = x[:, 0] > 0
    share = {"hard": first.astype(float), "soft": 0.2 + 0.6 * first}[respond]
    resp = np.stack([share, 1 - share])
    blank = family.zero_components(2, frame)
    (stats,) = stats_from_responsibilities([(x, None)], blank, lambda z: resp)
    found = family.maximize(blank, stats.moments).moved(frame.shift)
    scatter = np.array([np.cov(x.T, aweights=r, bias=True) for r in resp])
    counts = resp.sum(axis=1)
    _close(found.weights, counts / 600, 1e-12)
    _close(found.means, resp @ x / counts[:, None], 1e-12)
    scatter = np.einsum("kii->ki", scatter).copy() if model.diagonal else scatter
    _close(found.covariances, model.estimate(counts, scatter), 1e-11)
