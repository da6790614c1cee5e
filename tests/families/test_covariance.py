"""What the M-step of each covariance model must be, over the table of them all."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm import GaussianMixture
from daskgmm.cli.fitting import COVARIANCES
from daskgmm.families.axes import _along, _climbed, _mixed
from daskgmm.families.covariance import MODELS, CovarianceModel
from daskgmm.families.frame import Frame
from daskgmm.families.gaussian import CollapsedComponentError, Gaussian, GaussianParameters

Array = npt.NDArray[np.float64]

CODED = {name: model for name, model in MODELS.items() if name == model.code}
NAMED = {"full": "VVV", "tied": "EEE", "diag": "VVI", "spherical": "VII"}
every_model = pytest.mark.parametrize("model", CODED.values(), ids=list(CODED))


def _scatter(k: int, d: int, seed: int) -> tuple[Array, Array]:
    """Counts (k,) and covariances (k, d, d) of components with little in common."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((k, d, 2 * d)) * rng.uniform(0.2, 5, (k, 1, 1)) * rng.uniform(0.2, 5, (k, d, 1))
    return rng.uniform(10, 100, k), mixing @ mixing.transpose(0, 2, 1)


def _estimate(model: CovarianceModel, counts: Array, scatter: Array) -> Array:
    """The model's covariances for whole ones, whole."""
    if not model.diagonal:
        return model.estimate(counts, scatter)
    return np.array([np.diag(v) for v in model.estimate(counts, np.einsum("kii->ki", scatter).copy())])


def _expected(counts: Array, scatter: Array, covariances: Array) -> float:
    """Log-likelihood of rows of these counts and covariances about their means, a row, but for a constant."""
    misfit = np.einsum("kii->k", np.linalg.solve(covariances, scatter))
    return float(-counts @ (np.linalg.slogdet(covariances)[1] + misfit) / counts.sum() / 2)


def _spread(values: Array) -> float:
    """How far values (k, …) differ between the components, beside their size."""
    return float(np.ptp(values, axis=0).max() / np.abs(values).max())


@every_model
@pytest.mark.parametrize(("k", "d"), [(2, 2), (3, 5), (4, 4)])
def test_covariances_have_in_common_what_the_letters_say_and_no_more(model: CovarianceModel, k: int, d: int) -> None:
    found = _estimate(model, *_scatter(k, d, seed=k))
    values = np.linalg.eigvalsh(found)
    assert values.min() > 0
    volumes = np.exp(np.log(values).mean(axis=1))
    shapes = values / volumes[:, None]
    units = found / np.linalg.norm(found, axis=(1, 2), keepdims=True)
    turned = max(np.abs(a @ b - b @ a).max() for a, b in combinations(units, 2))  # none if they share axes
    aslant = np.abs(units - units * np.eye(d)).max()
    free = {"I": 1e-13, "E": 1e-13, "V": np.inf}
    held = {"I": 0, "E": 0, "V": 1e-3}
    volume, shape, orientation = model.code
    for letter, differs in ((volume, _spread(volumes)), (shape, _spread(shapes)), (orientation, turned)):
        assert held[letter] <= differs <= free[letter]
    assert (shape == "I") == (np.abs(shapes - 1).max() < 1e-13)
    assert (orientation == "I") == (aslant == 0)


@every_model
@settings(max_examples=15, deadline=None)
@given(k=st.integers(1, 4), d=st.integers(1, 5), seed=st.integers(0, 1000), log_size=st.floats(-6, -0.5))
def test_the_m_step_is_a_maximum(model: CovarianceModel, k: int, d: int, seed: int, log_size: float) -> None:
    """No other covariances of the model, as the M-step for other scatters gives them, are likelier."""
    counts, scatter = _scatter(k, d, seed)
    change = np.eye(d) + 10.0**log_size * np.random.default_rng(seed).standard_normal((k, d, d))
    other = _estimate(model, counts, change @ scatter @ change.transpose(0, 2, 1))
    found = _estimate(model, counts, scatter)
    assert _expected(counts, scatter, other) <= _expected(counts, scatter, found) + 1e-12 * d


@every_model
@settings(max_examples=10, deadline=None)
@given(k=st.integers(1, 4), d=st.integers(1, 5), seed=st.integers(0, 1000))
def test_covariances_of_the_model_are_estimated_as_they_are(model: CovarianceModel, k: int, d: int, seed: int) -> None:
    counts, scatter = _scatter(k, d, seed)
    found = _estimate(model, counts, scatter)
    again = _estimate(model, counts, found)
    assert np.abs(again - found).max() <= 1e-10 * np.abs(found).max()


@pytest.mark.parametrize(("code", "k", "d", "seed"), [("VVE", 3, 5, 0), ("EVE", 3, 5, 14)])
def test_axes_that_there_are_are_not_left_for_worse(code: str, k: int, d: int, seed: int) -> None:
    """Of several maxima over the axes, the M-step keeps to the one that there was, or finds a better one."""
    counts, scatter = _scatter(k, d, seed)
    rule = CODED[code[:2] + "I"].estimate
    starts = np.linalg.qr(np.random.default_rng(1).standard_normal((10, d, d)))[0]
    others = [_climbed(rule, counts, scatter, axes) for axes in starts]
    covariances = [axes * rule(counts, _along(axes, scatter))[:, None, :] @ axes.T for axes in others]
    best = max(covariances, key=lambda found: _expected(counts, scatter, found))
    before = _expected(counts, scatter, best)
    assert _expected(counts, scatter, CODED[code].estimate(counts, scatter)) < before - 1e-3
    family, frame = Gaussian(CODED[code]), Frame(np.zeros(d), np.geomspace(0.1, 10, d), np.tri(d))
    parameters = GaussianParameters(counts / counts.sum(), np.zeros((k, d)), best, family.factorize(best, counts))
    components = family.components(parameters, frame)
    i, j = components.products
    means = np.hstack([np.ones((k, 1)), np.zeros((k, d)), (frame.matrix @ scatter @ frame.matrix.T)[:, i, j]])
    found = family.maximize(components, counts[:, None] * means).covariances
    assert _expected(counts, scatter, found) >= before - 1e-12


@pytest.mark.parametrize("k", [1, 2, 4])
def test_axes_that_matrices_share_are_found_where_none_of_them_shows_them_all(k: int) -> None:
    rng = np.random.default_rng(k)
    axes = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    for values in (rng.choice([1.0, 4.0], (k, 5)), np.array([[1.0, 1, 1, 4, 4], [4.0, 4, 4, 1, 1]])):
        shared = axes * values[:, None, :] @ axes.T
        found = np.linalg.eigh(_mixed(shared))[1]
        along = found.T @ shared @ found
        assert np.abs(along * (1 - np.eye(5))).max() < 1e-12


@pytest.mark.parametrize("code", ["EVE", "VVE"])
def test_a_cross_has_the_axes_of_its_bars(code: str) -> None:
    """Those of its sum, a circle, are where the likelihood is stationary, but least."""
    bars = np.array([[[1, 0.5], [0.5, 1]], [[1, -0.5], [-0.5, 1]]])
    assert CODED[code].estimate(np.array([50.0, 50.0]), bars) == pytest.approx(bars, rel=1e-12)


@every_model
def test_a_component_without_volume_is_named(model: CovarianceModel) -> None:
    """Its scatter is zero, or of a plane; models that have a likeliest covariance none the less find it."""
    counts, scatter = _scatter(3, 3, seed=0)
    points, plane = scatter.copy(), scatter.copy()
    points[1] = 0
    plane[1, 2] = plane[1, :, 2] = 0
    volume, shape, _ = model.code
    for singular, fitted in ((points, volume == "E" and shape != "V"), (plane, shape != "V")):
        found = _estimate(model, counts, singular)
        compact = model.expand(found, 3, 3)
        if fitted:
            assert np.linalg.eigvalsh(found).min() > 0
            assert np.isfinite(Gaussian(model).factorize(compact, counts)).all()
        else:
            with pytest.raises(CollapsedComponentError, match="component 1 collapsed"):
                Gaussian(model).factorize(compact, counts)


@pytest.mark.parametrize("name", NAMED)
def test_scikit_learns_names_are_codes_in_other_shapes(name: str, blobs: Array) -> None:
    options: dict[str, Any] = {"n_components": 3, "random_state": 0}
    named = GaussianMixture(covariance_type=name, **options).fit(blobs)
    coded = GaussianMixture(covariance_type=NAMED[name], **options).fit(blobs)
    assert named.lower_bounds_ == coded.lower_bounds_
    assert named.bic(blobs) == coded.bic(blobs)
    model = MODELS[name]
    k, d = named.means_.shape
    for attribute in ("covariances_", "precisions_", "precisions_cholesky_"):
        whole = getattr(coded, attribute)
        assert whole.shape == (k, d, d)
        expanded = model.expand(getattr(named, attribute), k, d)
        assert np.array_equal(whole, CODED[NAMED[name]].compact(expanded))


@every_model
def test_a_code_takes_and_gives_matrices(model: CovarianceModel, blobs: Array) -> None:
    """Going on from a fit's own precisions is going on from the fit."""
    fit = GaussianMixture(3, covariance_type=model.code, random_state=0, tol=1e-2).fit(blobs)
    for attribute in ("covariances_", "precisions_", "precisions_cholesky_"):
        assert getattr(fit, attribute).shape == (3, 3, 3)
    assert fit.covariances_ @ fit.precisions_ == pytest.approx(np.array([np.eye(3)] * 3), abs=1e-9)
    on = GaussianMixture(
        3, covariance_type=model.code, tol=1e-2,
        weights_init=fit.weights_, means_init=fit.means_, precisions_init=fit.precisions_,
    ).fit(blobs)  # fmt: skip
    assert on.lower_bounds_[0] == pytest.approx(fit.score(blobs), rel=1e-9)


@pytest.mark.parametrize(
    ("code", "precisions", "words"),
    [
        ("EEE", [np.eye(3), np.eye(3), 2 * np.eye(3)], "the same for all components"),
        ("VVI", [np.eye(3) + 0.1] * 3, "diagonal"),
        ("EEI", [np.eye(3), np.eye(3), 2 * np.eye(3)], "diagonal and the same for all components"),
    ],
)
def test_precisions_that_a_model_has_not_are_refused(code: str, precisions: Any, words: str, blobs: Array) -> None:
    with pytest.raises(ValueError, match=f"'{code} precision' should be {words}"):
        GaussianMixture(3, covariance_type=code, precisions_init=precisions).fit(blobs)


def test_a_warm_start_needs_covariances_that_the_model_can_have(blobs: Array) -> None:
    fit = GaussianMixture(3, covariance_type="VVV", warm_start=True, random_state=0).fit(blobs)
    with pytest.raises(ValueError, match=r"covariances \(3, 3, 3\) are not of .* covariance_type='EEE'"):
        fit.set_params(covariance_type="EEE").fit(blobs)
    fit.set_params(covariance_type="VVE").fit(blobs)


def test_the_command_line_offers_every_model() -> None:
    assert list(MODELS) == COVARIANCES


def test_proportional_matrices_of_too_few_rows_have_collapsed() -> None:
    """Of five rows with four features in four components, what all have in common is singular."""
    x = np.random.default_rng(0).standard_normal(20).reshape(5, 4)
    for covariance_type in ("VEE", "EVV", "VVV", "EEE"):
        with pytest.raises(CollapsedComponentError, match="component 0 collapsed"):
            GaussianMixture(4, covariance_type=covariance_type, reg_covar=0, random_state=0, subsample=None).fit(x)
