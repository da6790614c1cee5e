"""Digits that a far offset, a very large or small unit, or one far row must not cost."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from daskgmm import GaussianMixture
from daskgmm.families.covariance import MODELS, CovarianceModel

Array = npt.NDArray[np.float64]

CODED = {name: model for name, model in MODELS.items() if name == model.code}
every_model = pytest.mark.parametrize("model", CODED.values(), ids=list(CODED))


def _with(values: Iterable[Any], kept: Callable[[CovarianceModel, Any], bool]) -> list[Any]:
    """Models with the values that are kept of each."""
    return [pytest.param(m, v, id=f"{m.code}-{v}") for m in CODED.values() for v in values if kept(m, v)]


def _started(*init_params: str) -> Any:
    """Every model from k-means, and scikit-learn's from the other starts, too."""
    sklearns = {MODELS[name].code for name in ("full", "tied", "diag", "spherical")}
    pairs = _with(init_params, lambda model, init: init == "kmeans" or model.code in sklearns)
    return pytest.mark.parametrize(("model", "init_params"), pairs)


def _rows(n: int, d: int, seed: int = 0) -> Array:
    """Rows of three correlated groups that overlap a little."""
    rng = np.random.default_rng(seed)
    groups = [
        rng.standard_normal((n // 3, d)) @ (np.eye(d) + 0.3 * rng.standard_normal((d, d))) + 4 * rng.standard_normal(d)
        for _ in range(3)
    ]
    return rng.permutation(np.concatenate(groups))


def _fit(model: CovarianceModel, x: Array, **arguments: Any) -> GaussianMixture:
    settings: dict[str, Any] = {"tol": 0, "max_iter": 25, "reg_covar": 0, "random_state": 0, "accelerate": False}
    settings |= {"subsample": None}  # one start: of equally good ones, which differ in their order, rounding decides
    settings |= arguments
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tol=0 does not converge
        return GaussianMixture(3, covariance_type=model.name, **settings).fit(x)


def _close(found: Any, expected: Any, tolerance: float) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def _covariances(fit: GaussianMixture) -> Array:
    """Covariances, whole for every model: (k, d, d)."""
    model, (k, d) = MODELS[fit.covariance_type], fit.means_.shape
    covariances = model.expand(fit.covariances_, k, d)
    return np.array([np.diag(c) for c in covariances]) if model.diagonal else covariances


@_started("kmeans", "k-means++", "random", "random_from_data")
def test_offset(model: CovarianceModel, init_params: str) -> None:
    """Features that lie 1e8 standard deviations from zero are fitted as they would be about zero."""
    offset = np.array([1e8, -1e8, 3e8])
    far = _rows(1500, 3) + offset
    near = far - offset  # exact: what the offset's own rounding left
    ours, expected = (_fit(model, x, init_params=init_params) for x in (far, near))
    assert ours.lower_bounds_ == pytest.approx(expected.lower_bounds_, rel=1e-9)
    _close(ours.weights_, expected.weights_, 1e-9)
    _close(ours.means_ - offset, expected.means_, 1e-7)  # a mean of 3e8 is known to 6e-8
    _close(ours.covariances_, expected.covariances_, 1e-9)
    _close(ours.precisions_, expected.precisions_, 1e-9)
    assert np.array_equal(ours.predict(far), expected.predict(near))
    _close(ours.score_samples(far), expected.score_samples(near), 1e-6)


def _keeps_unequal_units(model: CovarianceModel) -> bool:
    """Does the best model of rescaled features follow from that of the features, whatever each one's scale?"""
    _, shape, orientation = model.code
    return shape != "I" and orientation in ("I", shape)


@_started("kmeans", "random")
@pytest.mark.parametrize("exponent", [50, -50])
def test_scale(model: CovarianceModel, exponent: int, init_params: str) -> None:
    """Features of sizes near 1e+15 or 1e-15 are fitted as those of size 1, each in its own unit."""
    scale = np.full(3, 2.0**exponent)  # a power of two: the rows themselves lose nothing
    if _keeps_unequal_units(model):
        scale *= [1, 2.0**-exponent, 2.0 ** (-2 * exponent)]
    x = _rows(1500, 3)
    ours, expected = (_fit(model, rows, init_params=init_params) for rows in (x * scale, x))
    bounds = np.array(ours.lower_bounds_) + np.log(scale).sum()  # a density is per unit of volume
    assert bounds == pytest.approx(np.array(expected.lower_bounds_), rel=1e-9)
    _close(ours.weights_, expected.weights_, 1e-9)
    _close(ours.means_ / scale, expected.means_, 1e-9)
    _close(_covariances(ours) / np.outer(scale, scale), _covariances(expected), 1e-9)
    assert np.array_equal(ours.predict(x * scale), expected.predict(x))
    _close(ours.score_samples(x * scale) + np.log(scale).sum(), expected.score_samples(x), 1e-9)


@pytest.mark.parametrize(
    ("model", "gap"),
    _with(
        [[1e6, 0, 0], [1e8, 0, 0], [1e10, 0, 0], [1e6, 1e6, 1e6], [1e8, -1e8, 1e8]],
        # Axes are turned in the data's units, in which a start with two of the groups in one component has none.
        lambda model, gap: model.linear or model.diagonal or max(gap) < 1e10,
    ),
)
def test_groups_far_apart(model: CovarianceModel, gap: list[float]) -> None:
    """Groups that lie 1e10 of their own standard deviations apart are each fitted as they would be alone."""
    counts = np.array([600.0, 900.0, 300.0])
    rng = np.random.default_rng(1)
    mixing = [np.eye(3) + 0.4 * rng.standard_normal((3, 3)) for _ in counts]
    groups = [
        rng.standard_normal((int(n), 3)) @ m + i * np.array(gap)
        for n, m, i in zip(counts, mixing, (0, 1, -2), strict=True)
    ]
    scatter = np.array([np.cov((g - g.mean(axis=0)).T, bias=True) for g in groups])
    fit = _fit(model, np.concatenate(groups), n_init=5, max_iter=5)
    order = np.argsort(fit.means_[:, 0])[[1, 2, 0]]
    _close(fit.weights_[order], counts / 1800, 1e-9)
    _close(fit.means_[order], [g.mean(axis=0) for g in groups], 1e-9)
    scatter = np.einsum("kii->ki", scatter).copy() if model.diagonal else scatter
    expected = model.estimate(counts, scatter)
    _close(model.expand(fit.covariances_, 3, 3)[order], expected, 1e-15 * max(np.abs(gap)) + 1e-9)


# Textbook EM in extended precision


def _turned(far: Any) -> Any:
    """An orthogonal matrix that maps the direction of ``far`` to the first axis."""
    v = far / np.sqrt((far**2).sum())
    v[0] += np.copysign(1, v[0])
    return np.eye(len(v)) - 2 * np.outer(v, v) / (v @ v)


def _cholesky(a: Any) -> Any:
    lower = np.zeros_like(a)
    for j in range(len(a)):
        lower[j, j] = np.sqrt(a[j, j] - (lower[j, :j] ** 2).sum())
        for i in range(j + 1, len(a)):
            lower[i, j] = (a[i, j] - (lower[i, :j] * lower[j, :j]).sum()) / lower[j, j]
    return lower


def _log_density(x: Any, mean: Any, covariance: Any) -> Any:
    """log N(x; mean, covariance), by forward substitution."""
    lower = _cholesky(covariance)
    y = (x - mean).T.copy()
    for i in range(len(y)):
        y[i] = (y[i] - lower[i, :i] @ y[:i]) / lower[i, i]
    return -np.log(lower.diagonal()).sum() - (y**2).sum(axis=0) / 2 - len(y) * np.log(2 * np.longdouble(np.pi)) / 2


def _textbook(model: CovarianceModel, x: Any, arguments: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """EM as textbooks write it, each sum about the new mean, in long doubles: 19 digits on x86, 34 on ARM."""
    n, d = x.shape
    weights, means = (np.asarray(arguments[name], np.longdouble) for name in ("weights_init", "means_init"))
    k = len(weights)
    covariances = np.array([np.eye(d)] * k, np.longdouble)
    for _ in range(arguments["max_iter"]):
        log_joint = np.stack([np.log(weights[i]) + _log_density(x, means[i], covariances[i]) for i in range(k)])
        top = log_joint.max(axis=0)
        resp = np.exp(log_joint - top)
        total = resp.sum(axis=0)
        resp /= total
        counts = resp.sum(axis=1)
        weights, means = counts / n, resp @ x / counts[:, None]
        scatter = np.array([(r * (x - m).T) @ (x - m) / r.sum() for r, m in zip(resp, means, strict=True)])
        scatter += np.longdouble(arguments["reg_covar"]) * np.eye(d)
        if model.diagonal:
            variances = model.estimate(counts, np.einsum("kii->ki", scatter))
            covariances = np.array([np.diag(v) for v in variances])
        else:
            covariances = model.estimate(counts, scatter)
    return weights, means, covariances, (np.log(total) + top).sum() / n


# Those that do without linear algebra, which NumPy does not have in extended precision.
@pytest.mark.parametrize(
    "model", [m for m in CODED.values() if m.diagonal or m.code in ("EEE", "VVV")], ids=lambda m: m.code
)
@pytest.mark.parametrize("far", [[0, 1e10], [-1e10, 1e10], [1e10, 0, 0, 5], [1e10, -3e9, 1e10, 1e5]], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_one_far_row(model: CovarianceModel, far: list[float], steps: int) -> None:
    """One row at 1e10 among ordinary ones costs no digits that textbook EM in extended precision has."""
    d = len(far)
    x = _rows(9000, d)
    x[4321] = far
    arguments = {
        "weights_init": np.full(3, 1 / 3),
        "means_init": x[[0, 10, 20]],
        "precisions_init": model.compact(np.ones((3, d)) if model.diagonal else np.array([np.eye(d)] * 3)),
        "max_iter": steps,
        "reg_covar": 1e-6,
    }
    ours = _fit(model, x, **arguments)
    # 1e10² needs 20 digits beside 1. Where directions are free, turning the row onto an axis keeps them apart.
    turn = _turned(np.array(far, np.longdouble)) if model.linear else np.eye(d, dtype=np.longdouble)
    turned = {**arguments, "means_init": arguments["means_init"] @ turn}
    weights, means, covariances, lower_bound = _textbook(model, x @ turn, turned)
    assert ours.lower_bound_ == pytest.approx(float(lower_bound), rel=1e-6)
    _close(ours.weights_, weights, 1e-6)
    _close(ours.means_, means @ turn.T, 1e-6)
    for k in range(3):
        _close(_covariances(ours)[k], turn @ covariances[k] @ turn.T, 1e-6)
    assert ours.score_samples(x[:100]) == pytest.approx(
        np.logaddexp.reduce(
            [np.log(weights[k]) + _log_density(x[:100] @ turn, means[k], covariances[k]) for k in range(3)]
        ).astype(float),
        rel=1e-6,
    )


@every_model
def test_narrow_components_far_apart_take_one_pass_a_step(model: CovarianceModel) -> None:
    """Components 10,000 standard deviations from the centre of the data are summed about themselves at once."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 2)) + 2e4 * np.repeat([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], 1000, axis=0)
    found = _fit(model, x, init_params="kmeans")
    assert found.n_passes_ <= found.n_iter_ + 2
