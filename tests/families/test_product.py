"""Laws that hold for every family of independent features, over the table of them all; and what each is, by its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import bernoulli, poisson
from sklearn.naive_bayes import BernoulliNB, CategoricalNB

import daskgmm
from daskgmm.em.estep import block_stats_of_models, stats_from_responsibilities
from daskgmm.em.loop import EM, EMState
from daskgmm.em.stats import Stats
from daskgmm.families import PRODUCTS
from daskgmm.families.frame import Frame
from daskgmm.families.product import Product, ProductParameters
from daskgmm.passes.reader import encode_pieces

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A family with three components to draw from, whose densities SciPy knows."""

    name: str
    means: Array  # (3, q)
    levels: tuple[int, ...]

    @property
    def family(self) -> Product:
        family = getattr(import_module(f"daskgmm.families.{self.name}"), PRODUCTS[self.name])(levels=self.levels)
        values = tuple(tuple(map(float, range(n))) for n in self.levels)
        return replace(family, values=values) if family.leveled else family

    @property
    def parameters(self) -> ProductParameters:
        return ProductParameters(np.array([0.2, 0.3, 0.5]), self.means)

    def mixture(self, *args: Any, **options: Any) -> Any:
        return getattr(daskgmm, f"{PRODUCTS[self.name]}Mixture")(*args, **options)

    def draw(self, n: int, seed: int = 0) -> tuple[Array, npt.NDArray[np.intp]]:
        rng = np.random.RandomState(seed)
        x, y = self.family.sample(self.parameters, n, rng)
        if self.levels != (1,) * len(self.levels):
            x[: max(self.levels)] = np.minimum(np.arange(max(self.levels))[:, None], np.array(self.levels) - 1)
        order = rng.permutation(n)
        return x[order], y[order]

    def log_joint(self, x: Array, parameters: ProductParameters) -> Array:
        """log weight + log p of each row and component, of the values that are there: (n, k), by SciPy."""
        there, filled = np.isfinite(x), np.nan_to_num(x)
        return np.log(parameters.weights) + np.column_stack(
            [np.where(there, self.terms(filled, means), 0).sum(axis=1) for means in parameters.means]
        )

    def terms(self, x: Array, means: Array) -> Array:
        """log p of each value: (n, d)."""
        if self.name == "bernoulli":
            return bernoulli.logpmf(x, means)
        if self.name == "poisson":
            return poisson.logpmf(x, means)
        start = np.cumsum((0, *self.levels[:-1]))
        return np.log(means[start + x.astype(int)])


_rng = np.random.default_rng(0)
CASES = [
    Case("bernoulli", _rng.uniform(0.05, 0.95, (3, 8)), (1,) * 8),
    Case("poisson", _rng.gamma(2, 4, (3, 5)), (1,) * 5),
    Case("categorical", np.hstack([_rng.dirichlet(np.full(n, 0.7), 3) for n in (2, 3, 6, 4, 3)]), (2, 3, 6, 4, 3)),
]
every_family = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
with_gaps = pytest.mark.parametrize("gaps", [False, True], ids=["whole", "gaps"])


def _gaps(x: Array, share: float = 0.3, seed: int = 1) -> Array:
    """The same rows, some values of which are missing; none without any."""
    hidden = np.random.default_rng(seed).random(x.shape) < share
    hidden[:, 0] &= ~hidden.all(axis=1)
    return np.where(hidden, np.nan, x)


def _frame(family: Product) -> Frame:
    zeros = np.zeros((1, family.n_features))
    return family.frame(family.encode(zeros), zeros[0], zeros[0])


def _stats(family: Product, parameters: ProductParameters, x: Array, w: Array | None = None) -> Stats:
    (stats,) = block_stats_of_models(
        encode_pieces([(x, w)], family.encoding), [family.components(parameters, _frame(family))]
    )
    return stats


def _close(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# Sums


@every_family
@with_gaps
@settings(max_examples=15, deadline=None)
@given(n=st.integers(2, 3000), at=st.floats(0, 1), weighted=st.booleans())
def test_split_is_whole_and_a_weight_is_the_row_as_often(
    case: Case, gaps: bool, n: int, at: float, weighted: bool
) -> None:
    x, _ = case.draw(n + 10)
    x = _gaps(x) if gaps else x
    family = replace(case.family, partial=gaps)
    w = np.arange(len(x)) % 3 if weighted else np.ones(len(x))
    cut = round(at * len(x))
    whole = _stats(family, case.parameters, x, w.astype(float))
    split = _stats(family, case.parameters, x[:cut], w[:cut]) + _stats(family, case.parameters, x[cut:], w[cut:])
    repeated = _stats(family, case.parameters, np.repeat(x, w.astype(int), axis=0))
    for other in (split, repeated):
        assert other.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)
        _close(other.moments, whole.moments)


@every_family
@with_gaps
def test_densities_are_scipy_s(case: Case, gaps: bool) -> None:
    x, _ = case.draw(500)
    x = _gaps(x) if gaps else x
    expected = logsumexp(case.log_joint(x, case.parameters), axis=1)
    model = case.mixture(
        3, weights_init=case.parameters.weights, means_init=case.means, max_iter=0, missing="skip" if gaps else "raise"
    ).fit(x)
    _close(model.score_samples(x), expected)
    _close(model.predict_proba(x), np.exp(case.log_joint(x, case.parameters) - expected[:, None]), 1e-11)
    stats = _stats(replace(case.family, partial=gaps), case.parameters, x)
    assert stats.log_likelihood == pytest.approx(expected.sum(), rel=1e-12)


# EM


@every_family
@with_gaps
@pytest.mark.parametrize("alpha", [0.0, 2.0])
@pytest.mark.parametrize("accelerate", [False, True])
def test_the_lower_bound_never_falls(case: Case, gaps: bool, alpha: float, accelerate: bool) -> None:
    x, _ = case.draw(700)
    x = _gaps(x) if gaps else x
    family = replace(case.family, partial=gaps, alpha=alpha).with_data(
        x, np.ones(len(x)), np.nanmin(x, axis=0), np.nanmax(x, axis=0), 3
    )
    sample = family.encode(x)
    em = EM(family, _frame(family), sample, 0, 60, accelerate)
    start = ProductParameters(np.full(3, 1 / 3), 0.1 * case.means + 0.9 * case.means.mean(axis=0))

    def one_pass(models: Any, dtypes: Any) -> Any:
        return block_stats_of_models(encode_pieces([(x, None)], family.encoding), models, dtypes)

    (state,) = em.run([EMState(start)], one_pass, lambda _: None)
    bounds = np.array(state.bounds.values)
    assert bounds[-1] > bounds[0] + 1e-3
    assert (np.diff(bounds) >= -1e-12 * np.abs(bounds[0])).all()


@every_family
@with_gaps
def test_extrapolated_means_do_not_reach_the_edge(case: Case, gaps: bool) -> None:
    """From where no step leads back, as no row is possible that would move them."""
    x, _ = case.draw(200)
    family = replace(case.family, partial=gaps)
    image = _stats(family, case.parameters, _gaps(x) if gaps else x).moments
    q = case.means.shape[1]
    far = image.copy()
    far[:, 1 : 1 + q] -= 2 * image[:, 1 : 1 + q] * (np.arange(q) % 2)
    found, own = (
        family.maximize(family.zero_components(3, _frame(family)), m).means
        for m in (family.clip_moments(far, image), image)
    )
    assert (found > 0.05 * own).all()
    if case.name != "poisson":
        assert (found < 1).all()
    _close(family.clip_moments(image, image), image)


@every_family
@with_gaps
def test_iterates_are_those_of_em_written_out(case: Case, gaps: bool) -> None:
    """Twenty steps by dense arrays and SciPy's densities, value by value."""
    x, _ = case.draw(400)
    x = _gaps(x) if gaps else x
    start = replace(case.parameters, means=0.5 * case.means + 0.5 * case.means.mean(axis=0))
    options = {"weights_init": start.weights, "means_init": start.means, "max_iter": 20, "tol": 0}
    model = case.mixture(3, **options, missing="skip" if gaps else "raise", accelerate=False, subsample=None)
    with pytest.warns(match="did not converge"):
        model.fit(x)
    there, parameters = np.isfinite(x), start
    columns = np.repeat(np.arange(x.shape[1]), case.levels)
    values = x[:, columns]
    if case.name == "categorical":
        values = (values == np.concatenate([np.arange(n) for n in case.levels])).astype(float)
    for _ in range(20):
        log_joint = case.log_joint(x, parameters)
        resp = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True))
        sums = resp.T @ np.where(there[:, columns], values, 0)
        parameters = ProductParameters(resp.mean(axis=0), sums / (resp.T @ there[:, columns]))
    _close(model.weights_, parameters.weights, 1e-10)
    _close(model.means_, parameters.means, 1e-10)


@every_family
@with_gaps
def test_one_component_has_the_closed_form(case: Case, gaps: bool) -> None:
    x, _ = case.draw(300)
    x = _gaps(x) if gaps else x
    w = np.random.default_rng(0).uniform(0.5, 2, len(x))
    model = case.mixture(1, missing="skip" if gaps else "raise").fit(x, sample_weight=w)
    there = np.isfinite(x) * w[:, None]
    if case.name == "categorical":
        expected = np.concatenate(
            [[there[x[:, j] == v, j].sum() / there[:, j].sum() for v in range(n)] for j, n in enumerate(case.levels)]
        )
    else:
        expected = (there * np.nan_to_num(x)).sum(axis=0) / there.sum(axis=0)
    _close(model.means_, expected[None])
    assert model.lower_bound_ * w.sum() == pytest.approx(w @ model.score_samples(x), rel=1e-12)


@every_family
@with_gaps
def test_one_hot_responsibilities_give_each_class_its_own_means(case: Case, gaps: bool) -> None:
    x, y = case.draw(300)
    x = _gaps(x) if gaps else x
    family = replace(case.family, partial=gaps)
    blank = family.zero_components(3, _frame(family))
    (stats,) = stats_from_responsibilities(encode_pieces([(x, None)], family.encoding), blank, lambda z: np.eye(3)[y].T)
    found = family.maximize(blank, stats.moments)
    for k in range(3):
        alone = case.mixture(1, missing="skip" if gaps else "raise").fit(x[y == k])
        if not family.leveled or alone.n_levels_.tolist() == list(case.levels):
            _close(found.means[k], alone.means_[0])
    _close(found.weights, np.bincount(y) / 300)


@every_family
def test_samples_recover_the_parameters(case: Case) -> None:
    """Of 250,000 rows: each mean within four standard errors, by the information that rows hold of all parameters."""
    x, y = case.draw(250_000)
    options = {"init_params": "random_from_data", "n_init": 10, "random_state": 0}
    model = case.mixture(3, tol=1e-9, max_iter=1000, **options).fit(x)
    order = np.argsort(model.weights_)
    family, truth, some = case.family, case.parameters, x[:100_000]
    log_joint = case.log_joint(some, truth)
    resp = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True))
    deviations = family.statistic(some) - truth.means[:, None]  # (3, n, q)
    scores = np.hstack([*(resp.T[:, :, None] * deviations), (resp - truth.weights)[:, :2]])
    natural = np.linalg.pinv(scores.T @ scores / len(some), rcond=1e-9, hermitian=True) / len(x)
    q = truth.means.shape[1]
    for c, means in enumerate(truth.means):
        within = np.cov(family.statistic(x[y == c]).T)  # d mean / d natural parameter
        errors = np.sqrt(np.diag(within @ natural[c * q : (c + 1) * q, c * q : (c + 1) * q] @ within))
        assert (np.abs(model.means_[order[c]] - means) < 4 * errors).all()


# Priors, against naive Bayes: known components, smoothed counts


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("case", "bayes"), [(CASES[0], BernoulliNB), (CASES[2], CategoricalNB)], ids=str)
def test_the_prior_smooths_as_naive_bayes_does(case: Case, bayes: Any, alpha: float) -> None:
    x, y = case.draw(200)
    family = replace(case.family, alpha=alpha)
    blank = family.zero_components(3, _frame(family))
    (stats,) = stats_from_responsibilities(encode_pieces([(x, None)], family.encoding), blank, lambda z: np.eye(3)[y].T)
    found = family.maximize(blank, stats.moments)
    known = bayes(alpha=alpha).fit(x, y)
    logs = known.feature_log_prob_
    logs = np.hstack(logs) if isinstance(logs, list) else logs
    _close(np.log(found.means), logs)
    _close(np.log(found.weights), known.class_log_prior_)


def test_a_gamma_prior_draws_rates_to_that_of_all() -> None:
    x, _ = CASES[1].draw(50)
    strong = CASES[1].mixture(2, alpha=1e9, random_state=0).fit(x)
    np.testing.assert_allclose(strong.means_, np.tile(x.mean(axis=0), (2, 1)), rtol=1e-5)


def test_large_counts_are_summed_in_double_precision() -> None:
    """Where single precision would not tell components apart, also in early passes and on a sample."""
    rng = np.random.default_rng(0)
    rates = np.array([[1e7, 2e7], [1.002e7, 2e7]])
    x = rng.poisson(rates[rng.integers(2, size=20_000)])
    model = CASES[1].mixture(2, subsample=2000, random_state=0).fit(x)
    np.testing.assert_allclose(np.sort(model.means_, axis=0), np.sort(rates, axis=0), rtol=1e-4)
    family = CASES[1].family.with_data(x, np.ones(len(x)), x.min(axis=0), x.max(axis=0), 2)
    frame = family.frame(family.encode(x), x.min(axis=0), x.max(axis=0))
    assert not family.components(ProductParameters(np.full(2, 0.5), rates), frame).float32_suffices
    small = CASES[1].family
    assert small.components(
        CASES[1].parameters, small.frame(small.encode(CASES[1].draw(9)[0]), *rates)
    ).float32_suffices


# What holds the rows


@every_family
def test_integers_and_booleans_are_the_numbers_that_they_are(case: Case) -> None:
    x, _ = case.draw(2000)
    dtypes = [np.int64, np.uint8, np.float32, *([bool] if case.name == "bernoulli" else [])]
    options = {"weights_init": case.parameters.weights, "means_init": case.means, "max_iter": 3, "tol": 1}
    reference = case.mixture(3, **options).fit(x)
    for dtype in dtypes:
        model = case.mixture(3, **options).fit(x.astype(dtype))
        _close(model.means_, reference.means_, 1e-10)
        np.testing.assert_array_equal(model.predict(x.astype(dtype)), reference.predict(x))


@every_family
@with_gaps
def test_a_saved_model_is_the_same(case: Case, gaps: bool, tmp_path: Any) -> None:
    x, _ = case.draw(300)
    x = _gaps(x) if gaps else x
    model = case.mixture(2, random_state=0, alpha=0.5, missing="skip" if gaps else "raise").fit(x)
    model.save(tmp_path / "model.zarr")
    loaded = daskgmm.load(tmp_path / "model.zarr")
    assert type(loaded) is type(model)
    assert loaded.alpha == 0.5
    np.testing.assert_array_equal(loaded.score_samples(x), model.score_samples(x))
    assert loaded.scores(x) == model.scores(x)


@every_family
def test_lazy_rows_with_gaps(case: Case) -> None:
    """Lazy in, lazy out; what is missing is skipped, and a row without values has no label."""
    import dask.array as da

    x, _ = case.draw(1000)
    x = _gaps(x)
    x[7] = np.nan
    model = case.mixture(3, random_state=0, missing="skip").fit(da.from_array(x, chunks=(130, -1)))
    assert model.n_samples_ == 999
    labels = model.predict(da.from_array(x, chunks=(130, -1)))
    assert isinstance(labels, da.Array)
    np.testing.assert_array_equal(labels.compute(), model.predict(x))
    assert labels.compute()[7] == -1
    assert (np.delete(labels.compute(), 7) >= 0).all()


@every_family
def test_a_feature_that_one_block_lacks(case: Case) -> None:
    """Where it is missing throughout a block, the others say what values it has; missing throughout, it is named."""
    import dask.array as da

    x, _ = case.draw(600)
    x[:200, 1] = np.nan
    options = {"missing": "skip", "weights_init": case.parameters.weights, "means_init": case.means}
    whole = case.mixture(3, **options).fit(x)
    _close(case.mixture(3, **options).fit(da.from_array(x, chunks=(200, -1))).means_, whole.means_, 1e-9)
    x[:, 1] = np.nan
    with pytest.raises(ValueError, match="feature 1 has no value in any row: drop it"):
        case.mixture(2, missing="skip").fit(x)


# What goes wrong


@every_family
def test_values_that_it_has_no_place_for_are_named(case: Case) -> None:
    x, _ = case.draw(50)
    model = case.mixture(2, random_state=0).fit(x)
    for value in (-1.0, 0.5, *([] if case.name == "poisson" else [9.0])):
        bad = x.copy()
        bad[33, 2] = value
        with pytest.raises(ValueError, match=rf"{value:g} at row 33, feature 2, but the mixture needs "):
            model.predict(bad)
        if case.name != "categorical" or value != 9:  # else there are simply more levels
            with pytest.raises(ValueError, match=rf"{value:g} at row 33, feature 2, but the mixture needs "):
                case.mixture(2, missing="drop").fit(bad)


def test_a_level_that_the_fit_has_not_seen() -> None:
    case = CASES[2]
    x, _ = case.draw(50)
    model = case.mixture(2, random_state=0).fit(x)
    assert model.n_levels_.tolist() == list(case.levels)
    with pytest.raises(ValueError, match=r"3 at row 0, feature 1, but the mixture needs levels that the fit knows"):
        model.predict([[0, 3, 0, 0, 0]])


def test_flags_of_a_dataset_are_its_levels(tmp_path: Any) -> None:
    """Also those that no row has."""
    rng = np.random.default_rng(0)
    flags = {"ice": [1, 2, 4, 8], "sea": [10, 20]}
    where = ("time", "x")
    ds = xr.Dataset({n: (where, rng.choice(v[:3], (20, 30)), {"flag_values": v}) for n, v in flags.items()})
    model = daskgmm.CategoricalMixture(2, alpha=1, random_state=0).fit(ds)
    assert [some.tolist() for some in model.categories_] == list(flags.values())
    assert (model.means_[:, 3] > 0).all()
    assert model.predict(ds).dims == where
    model.save(tmp_path / "model.zarr")
    loaded = daskgmm.load(tmp_path / "model.zarr")
    assert loaded.to_xarray()["level"].values.tolist() == ["ice=1", "ice=2", "ice=4", "ice=8", "sea=10", "sea=20"]
    xr.testing.assert_equal(loaded.score_samples(ds), model.score_samples(ds))
    assert set(np.unique(model.sample(100)[0][:, 1])) == {10, 20}
    with pytest.raises(ValueError, match="variable 'sea' at time=0, x=1, but the mixture needs levels"):
        model.predict(ds.assign(sea=ds.sea.where(ds.x != 1, 3)))


def test_categories_of_a_data_frame_are_its_levels(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    colours = pd.Categorical(rng.choice(["red", "green"], 200), categories=["red", "green", "blue"])
    years = pd.Categorical(rng.choice([2024.0, 2026.0], 200), categories=[2024.0, 2025.0, 2026.0])
    frame = pd.DataFrame({"colour": colours, "size": rng.integers(0, 4, 200), "year": years})
    frame.loc[5, "colour"] = None
    model = daskgmm.CategoricalMixture(2, missing="skip", random_state=0).fit(frame)
    assert [some.tolist() for some in model.categories_] == [["red", "green", "blue"], [0, 1, 2, 3], [2024, 2025, 2026]]
    model.save(tmp_path / "model.zarr")
    loaded = daskgmm.load(tmp_path / "model.zarr")
    other = frame.assign(colour=frame.colour.astype(str).where(frame.colour.notna()))  # no longer categories
    for known in (model, loaded):
        np.testing.assert_array_equal(known.score_samples(other), model.score_samples(frame))
    assert np.isfinite(model.score_samples(frame)).all()
    with pytest.raises(ValueError, match=r"'pink' at row 7, column 'colour', not among the categories"):
        loaded.predict(other.assign(colour=other.colour.mask(other.index == 7, "pink")))


@every_family
def test_missing_values_are_refused_unless_they_may_be_skipped(case: Case) -> None:
    x, _ = case.draw(50)
    gone = np.array(x)
    gone[3] = np.nan
    with pytest.raises(ValueError, match="row 3, feature 0 is nan"):
        case.mixture(2).fit(gone)
    with pytest.raises(ValueError, match="no row of 50 has a value"):
        case.mixture(2, missing="skip").fit(np.full_like(x, np.nan))
    dropped = case.mixture(2, random_state=0, missing="drop").fit(gone)
    assert dropped.n_samples_ == 49
    assert dropped.predict(gone)[3] == -1


def test_a_start_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"means.*shape"):
        CASES[0].mixture(2, means_init=np.full((2, 3), 0.5)).fit(CASES[0].draw(50)[0])
    with pytest.raises(ValueError, match=r"means.*shape"):
        CASES[2].mixture(2, means_init=np.full((2, 3), 0.5)).fit(CASES[2].draw(50)[0])
