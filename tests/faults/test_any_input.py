"""Whatever the rows are, and whatever holds them: the right answer, or an error of one sentence. Never NaN."""

from __future__ import annotations

import json
import math
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from length import at_length
from scipy.special import logsumexp
from scipy.stats import bernoulli, poisson

import daskgmm
from daskgmm.cli import main

Array = npt.NDArray[np.float64]
Counted = tuple[str, npt.NDArray[Any], dict[str, Any], tuple[int, ...]]

pytestmark = pytest.mark.filterwarnings("ignore")

REAL = ("full", "tied", "diag", "spherical", "EII", "VEI", "EVI", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV")
DTYPES = (
    *("float64", "float32", "float16", "longdouble", ">f8", ">f4", ">f2", "bool", "uint8", "int8"),
    *("int16", "uint16", "int32", "uint32", "int64", "uint64", ">i4", ">u2"),
)
LAYOUTS = ("as it is", "Fortran", "a view", "reversed", "read-only", "masked")
SHAPES = ("blobs", "one group", "constant", "constant feature", "duplicates", "line", "ints", "far row", "bad value")


@dataclass(frozen=True)
class Case:
    """One fit."""

    x: Any  # the rows as they are given
    values: Array  # what they are (n, d)
    bad: bool  # is one of them not finite?
    masked: bool
    k: int
    options: dict[str, Any]
    weights: Array | None
    store: str  # NumPy, dask or Zarr
    chunks: tuple[int, ...]


@st.composite
def cases(draw: Callable[..., Any], stores: tuple[str, ...] = ("NumPy", "NumPy", "dask", "Zarr")) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d, k = draw(st.integers(1, 60)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    if draw(st.integers(0, 9)) == 0:
        n = k
    shape, dtype, layout = (draw(st.sampled_from(choice)) for choice in (SHAPES, DTYPES, LAYOUTS))
    values = _values(rng, shape, n, d, draw(st.integers(-30, 30)) if draw(st.booleans()) else 0)
    x = _cast(values, np.dtype(dtype))
    masked = layout == "masked" and rng.random() < 0.8
    store = draw(st.sampled_from(stores))
    options: dict[str, Any] = {
        "covariance_type": draw(st.sampled_from(REAL)),
        "max_iter": draw(st.sampled_from((0, 1, 4))),
        "accelerate": draw(st.booleans()),
        "subsample": draw(st.sampled_from((None, 20, 100_000))),
        "missing": draw(st.sampled_from(("raise", "drop"))),
        "init_params": draw(st.sampled_from(("kmeans", "random", "k-means++", "random_from_data"))),
        "reg_covar": draw(st.sampled_from((0.0, 1e-6, 1.0))),
        "prior": draw(st.sampled_from((None, None, "default"))),
        "random_state": 0,
    }
    weights = rng.integers(0, 3, n) * rng.random() if draw(st.integers(0, 3)) == 0 else None
    chunks = _chunks(rng, n) if n else (0,)
    return Case(
        _laid_out(rng, x, layout, masked),
        x.astype(np.float64),
        not np.isfinite(x.astype(np.float64)).all(),
        masked,
        k,
        options,
        weights,
        store,
        chunks,
    )


def _values(rng: np.random.Generator, shape: str, n: int, d: int, exponent: int) -> Array:
    """Rows of a kind, of any scale."""
    x = rng.standard_normal((n, d))
    if shape == "blobs":
        x += 8 * rng.integers(0, 3, (n, 1))
    elif shape == "constant":
        x[:] = x[0]
    elif shape == "constant feature":
        x[:, 0] = x[0, 0]
    elif shape == "duplicates":
        x = x[rng.integers(0, max(1, n // 4), n)]
    elif shape == "line":
        x[:] = x[:, :1]
    elif shape == "ints":
        x = np.round(5 * x)
    elif shape == "far row":
        x[0] = 10.0 ** rng.integers(3, 12)
    elif shape == "bad value":
        x[rng.integers(n), rng.integers(d)] = rng.choice([np.nan, np.inf, -np.inf])
    return x * 10.0**exponent


def _cast(x: Array, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.clip(np.nan_to_num(x, posinf=0, neginf=0), float(info.min), float(info.max) * (1 - 1e-15)).astype(
            dtype
        )
    if dtype.kind == "b":
        return np.nan_to_num(x) > 0
    with np.errstate(over="ignore"):
        return x.astype(dtype)


def _laid_out(rng: np.random.Generator, x: npt.NDArray[Any], layout: str, masked: bool) -> npt.NDArray[Any]:
    if layout == "Fortran":
        return np.asfortranarray(x)
    if layout == "a view":
        wide = np.zeros((2 * len(x), x.shape[1] + 2), x.dtype)
        wide[::2, 1:-1] = x
        return wide[::2, 1:-1]
    if layout == "reversed":
        return np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    if layout == "read-only":
        x = x.copy()
        x.flags.writeable = False
    if layout == "masked":
        mask = np.zeros(x.shape, bool)
        mask[0, 0] = masked
        return np.ma.MaskedArray(x, mask)
    return x


def _chunks(rng: np.random.Generator, n: int) -> tuple[int, ...]:
    """Sizes that add up to n, some of them zero."""
    cuts = np.sort(rng.integers(0, n + 1, rng.integers(0, 5)))
    return tuple(np.diff(np.concatenate([[0], cuts, [n]])).tolist())


def _held(case: Case, path: Path | None = None) -> Any:
    """The rows in what holds them."""
    if case.store == "dask":
        return da.from_array(case.x, chunks=(case.chunks, -1))
    if case.store == "Zarr":
        d = case.x.shape[1]
        rows = max(1, case.chunks[0])
        sharded = len(case.chunks) % 2 == 0
        layout = {"chunks": (rows, d), "shards": (3 * rows, d)} if sharded else {"chunks": (rows, max(1, d // 2))}
        x = case.x.astype(np.float64) if case.x.dtype == np.longdouble else np.ma.getdata(case.x)
        config = {"write_empty_chunks": True}  # else chunks of zeros are not there, and that is refused
        where = {} if path is None else {"store": str(path)}
        return zarr.create_array(
            **({"store": zarr.storage.MemoryStore()} | where), data=np.asarray(x), config=config, **layout
        )
    return case.x


def _failure(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def _is_ours(error: Exception) -> bool:
    """One sentence, from where input is checked, not from the depth of a library."""
    frames = traceback.extract_tb(error.__traceback__)
    place = frames[-1].filename
    known = isinstance(error, ValueError | TypeError | MemoryError)
    return known and len(str(error)) > 20 and ("daskgmm/" in place or "sklearn/utils" in place)


def _model(case: Case) -> Any:
    return daskgmm.GaussianMixture(case.k, **case.options)


def _check(case: Case) -> bool:
    """Fit, and check the answer; False: there was an error, which is ours."""
    model = _model(case)
    with dask.config.set(scheduler="sync"):
        data = _held(case)
        failure = _failure(partial(model.fit, data, sample_weight=case.weights))
        if failure is not None:
            assert _is_ours(failure), repr(failure)
            _check_refused(case, failure)
            return False
        assert not (case.masked and case.store != "Zarr")
        assert not case.bad or case.options["missing"] == "drop"
        labels, proba, densities = (
            np.asarray(call(data)) for call in (model.predict, model.predict_proba, model.score_samples)
        )
        score = model.score(data) if case.values.size and np.isfinite(case.values).all(axis=1).any() else 0.0
    good = np.isfinite(case.values).all(axis=1)
    _check_parameters(case, model)
    assert (labels[good] >= 0).all()
    assert (labels[~good] == -1).all()
    np.testing.assert_allclose(proba[good].sum(axis=1), 1, rtol=1e-12)
    assert (proba[good].max(axis=1) <= proba[good][np.arange(good.sum()), labels[good]] + 1e-12).all()
    expected, tolerance = _log_densities(model, case.values[good])
    assert (np.abs(densities[good] - expected) <= tolerance).all(), (densities[good], expected, tolerance)
    assert abs(score - expected.mean()) <= tolerance.max()
    return True


def _check_refused(case: Case, error: Exception) -> None:
    """There is a reason for the error, and it is the one that it says."""
    weights = np.ones(len(case.values)) if case.weights is None else case.weights
    good = np.isfinite(case.values).all(axis=1)
    rows = case.values[good & (weights > 0)]
    text = str(error)
    if any(fact in text for fact in ("collapsed", "too narrow", "distinct", "is constant")):
        reg_covar, reach = case.options["reg_covar"], np.abs(rows).max()
        assert reg_covar == 0 or reg_covar < 1e-10 * reach**2  # which is below rounding of squares, if not of all
    elif "masked" in text:
        assert case.masked or case.store == "dask"  # which cannot know
    elif text.startswith("no row of"):
        assert not len(rows)
        assert "weigh" in text or not good.any()
        assert case.bad or "non-zero" in text
    elif "NaN" in text or "infinity" in text or "nan" in text or "inf" in text:
        assert case.bad
    elif "sampled rows" in text:
        assert case.options["missing"] == "drop" or (weights == 0).any()
    elif "n_samples" in text or "minimum of" in text or "sample(s)" in text:
        assert len(rows) < max(case.k, 2)
    elif "non-zero" in text:
        assert not (weights > 0).any()
    elif "lost all its samples" in text or "has no rows" in text:
        assert case.k > 1
    else:
        assert "not symmetric and positive definite" in text, text
        assert case.options["prior"] is not None


def _check_parameters(case: Case, model: Any) -> None:
    family, k = model._family(), case.k
    expanded = family.model.expand(np.asarray(model.covariances_), k, case.values.shape[1])
    assert model.weights_.sum() == pytest.approx(1, rel=1e-12)
    assert (model.weights_ >= 0).all()
    assert np.isfinite(model.means_).all()
    assert np.isfinite(expanded).all()
    assert np.isfinite(model.lower_bounds_).all()
    assert model.n_samples_ <= len(case.values)
    variances = expanded if family.model.diagonal else np.einsum("kii->ki", expanded)
    assert (variances > 0).all()
    if not family.model.diagonal:
        np.testing.assert_array_equal(expanded, np.swapaxes(expanded, 1, 2))
        deviations = np.sqrt(variances)
        assert (np.abs(expanded / (deviations[:, :, None] * deviations[:, None, :])) < 1 + 1e-12).all()
    if k == 1 and case.options["prior"] is None and case.options["max_iter"]:
        _check_closed_form(case, model, variances[0])


def _check_closed_form(case: Case, model: Any, variances: Array) -> None:
    """One component: the mean, and the variances with reg_covar, in long double."""
    good = np.isfinite(case.values).all(axis=1)
    weights = (np.ones(len(case.values)) if case.weights is None else case.weights)[good].astype(np.longdouble)
    x = case.values[good].astype(np.longdouble)
    mean = weights @ x / weights.sum()
    squares = weights @ (x - mean) ** 2 / weights.sum()
    if model._family().model.code[1] == "I":
        squares = np.full(len(squares), squares.mean())
    reach = np.abs(x).max(axis=0)
    np.testing.assert_allclose((model.means_[0] - mean) / np.maximum(reach, 1e-300), 0, atol=1e-12)
    expected = (squares + model.reg_covar).astype(np.float64)
    atol = float((reach**2).max()) * 1e-20
    np.testing.assert_allclose(variances, expected, rtol=1e-6, atol=atol)


def _log_densities(model: Any, x: Array) -> tuple[Array, Array]:
    """Of the fitted parameters, by what is not the kernel, and how well rounding lets them be known."""
    family, k = model._family(), len(model.weights_)
    precisions = family.model.expand(np.asarray(model.precisions_cholesky_), k, x.shape[1])
    factors = precisions[:, :, None] * np.eye(x.shape[1]) if family.model.diagonal else precisions
    each, unsure = [], []
    for weight, mean, factor in zip(model.weights_, model.means_, factors, strict=True):
        terms = (x - mean)[:, :, None] * factor[None]  # (n, d, d)
        z = terms.sum(axis=1)
        with np.errstate(divide="ignore"):
            constant = np.log(weight) + np.log(factor.diagonal()).sum() - x.shape[1] / 2 * math.log(2 * math.pi)
        each.append(constant - (z**2).sum(axis=1) / 2)
        size = np.linalg.norm((np.abs(x) + np.abs(mean)) @ np.abs(factor), axis=1)  # of what is subtracted
        unsure.append(1e-14 * size * (1 + np.linalg.norm(z, axis=1) + 1e-14 * size))
    return logsumexp(each, axis=0), 1e-9 + 1e-11 * np.abs(logsumexp(each, axis=0)) + 100 * np.max(unsure, axis=0)


def _settings(n: int) -> settings:
    return settings(
        max_examples=n, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


@_settings(60)
@given(case=cases())
def test_the_right_answer_or_an_error_of_ours(case: Case) -> None:
    _check(case)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@_settings(at_length(10_000))
@given(case=cases())
def test_the_right_answer_or_an_error_of_ours_in_ten_thousand_cases(case: Case) -> None:
    _check(case)


# Other families


@st.composite
def counts(draw: Callable[..., Any]) -> Counted:
    """A mixture, rows that it may take or not, its options, and chunks."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d, k = draw(st.integers(1, 60)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    name = draw(st.sampled_from(("Bernoulli", "Categorical", "Poisson", "BayesianGaussian")))
    top = {"Bernoulli": 1, "Categorical": 3, "Poisson": 10 ** draw(st.integers(0, 6)), "BayesianGaussian": 9}[name]
    x = rng.integers(0, top + 1, (n, d)).astype(np.float64)
    if draw(st.booleans()):
        x[:, 0] = x[0, 0]
    spoilt = draw(st.sampled_from((None, None, "missing", "missing", "negative", "a fraction")))
    if spoilt == "missing":
        x[rng.random((n, d)) < 0.3] = np.nan
    elif spoilt is not None:
        x[rng.integers(n), rng.integers(d)] = {"negative": -1, "a fraction": 0.5}[spoilt]
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    if dtype.kind != "f" and (not np.isfinite(x).all() or (x < 0).any() or (x != np.round(x)).any()):
        dtype = np.dtype(np.float64)
    missing = draw(st.sampled_from(("raise", "drop") if name == "BayesianGaussian" else ("raise", "drop", "skip")))
    options = {
        "n_components": k,
        "max_iter": draw(st.sampled_from((0, 1, 5))),
        "accelerate": draw(st.booleans()),
        "subsample": draw(st.sampled_from((None, 20, 100_000))),
        "missing": missing,
        "random_state": 0,
    }
    if name != "BayesianGaussian":
        options["alpha"] = draw(st.sampled_from((0.0, 1.0)))
    return name, _cast(x, dtype) if dtype.kind == "f" else np.clip(x, 0, 127).astype(dtype), options, _chunks(rng, n)


def _check_counts(case: Counted) -> None:
    name, x, options, chunks = case
    values, missing = x.astype(np.float64), options["missing"]
    model = getattr(daskgmm, f"{name}Mixture")(**options)
    data = da.from_array(x, chunks=(chunks, -1)) if len(chunks) > 2 else x
    with dask.config.set(scheduler="sync"):
        failure = _failure(partial(model.fit, data))
        if failure is not None:
            assert _is_ours(failure), repr(failure)
            return
        failure = _failure(lambda: np.asarray(model.predict(data)))
        if failure is not None:  # of a level that only rows have that were left out
            assert name == "Categorical"
            assert _is_ours(failure), repr(failure)
            return
        labels, proba, densities = (
            np.asarray(call(data)) for call in (model.predict, model.predict_proba, model.score_samples)
        )
    there = np.isfinite(values)
    good = there.any(axis=1) if missing == "skip" else there.all(axis=1)
    assert missing != "raise" or there.all()
    assert np.isfinite(model.means_).all()
    assert model.weights_.sum() == pytest.approx(1, rel=1e-12)
    assert ((labels >= 0) == good).all()
    assert (np.isfinite(densities) == good).all()
    np.testing.assert_allclose(proba[good].sum(axis=1), 1, rtol=1e-12)
    if name in ("Bernoulli", "Poisson"):
        of = bernoulli if name == "Bernoulli" else poisson
        means = np.clip(model.means_, 0, 1 if name == "Bernoulli" else None)
        with np.errstate(divide="ignore"):
            each = [
                np.log(w) + np.where(there, of.logpmf(np.where(there, values, 0), m), 0).sum(axis=1)
                for w, m in zip(model.weights_, means, strict=True)
            ]
        expected = logsumexp(each, axis=0)[good]
        sizes = 1 + np.where(there, values, 0).sum(axis=1)[good] * 20
        likely = expected > -600  # log 0 counts as -700
        assert (np.abs(densities[good] - expected) <= 1e-12 * sizes + 1e-9)[likely].all()


@_settings(30)
@given(case=counts())
def test_other_families(case: Counted) -> None:
    _check_counts(case)


@pytest.mark.slow
@pytest.mark.timeout(900)
@_settings(at_length(2_000))
@given(case=counts())
def test_other_families_in_two_thousand_cases(
    case: Counted,
) -> None:
    _check_counts(case)


def test_a_sample_that_holds_too_few_rows() -> None:
    """Of all rows there are enough; of those drawn, all but one may be missing."""
    x = np.full((200, 2), np.nan)
    x[::40] = np.random.default_rng(0).random((5, 2))
    for init in ("kmeans", "random_from_data"):
        model = daskgmm.GaussianMixture(4, subsample=10, missing="drop", init_params=init, random_state=0)
        with pytest.raises(
            ValueError, match=r"only \d of the sampled rows can be used, .*n_components=4: raise subsample"
        ):
            model.fit(x)
    with pytest.raises(ValueError, match="raise subsample"):
        daskgmm.BernoulliMixture(4, subsample=3, random_state=0).fit(np.eye(40))


# Chunks


@_settings(20)
@given(
    seed=st.integers(0, 2**32 - 1),
    covariance_type=st.sampled_from(REAL),
    accelerate=st.booleans(),
    offset=st.sampled_from((0.0, 1e6)),
)
def test_three_chunkings_of_the_same_rows(seed: int, covariance_type: str, accelerate: bool, offset: float) -> None:
    """The fit does not depend on them; sums are taken in another order."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(60, 400)), int(rng.integers(1, 5))
    x = rng.standard_normal((n, d)) + 6 * rng.integers(0, 2, (n, 1)) + offset
    options = {"covariance_type": covariance_type, "accelerate": accelerate, "random_state": 0, "max_iter": 6}
    store = zarr.create_array(zarr.storage.MemoryStore(), data=x, chunks=(int(rng.integers(1, 40)), d))
    with dask.config.set(scheduler="sync"):
        fits = [
            daskgmm.GaussianMixture(2, **options).fit(data)
            for data in (x, da.from_array(x, chunks=(_chunks(rng, n), -1)), store)
        ]
    for other in fits[1:]:
        for name in ("weights_", "means_", "covariances_", "lower_bound_"):
            found, expected = np.asarray(getattr(other, name)), np.asarray(getattr(fits[0], name))
            size = np.abs(expected - (offset if name == "means_" else 0)).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * size + 1e-15 * offset)


# The command line


def _run(*arguments: str) -> Any:
    with warnings.catch_warnings():  # commands show warnings their own way
        return CliRunner().invoke(main, arguments)


def _check_commands(case: Case, path: Path) -> None:
    """Commands end well, or with one line that says why; never with a traceback, nor with half an output."""
    store, model, labels = (str(path / name) for name in ("x.zarr", "model.zarr", "labels.zarr"))
    _held(case, path / "x.zarr")
    options = case.options
    fit = _run(
        *("fit", store, "--components", str(case.k), "--output", model, "--workers", "0", "--json"),
        *("--covariance", options["covariance_type"], "--max-iter", str(options["max_iter"])),
        *("--missing", options["missing"], "--init", options["init_params"], "--reg-covar", str(options["reg_covar"])),
        *("--subsample", str(options["subsample"] or 0), "--prior", options["prior"] or "none"),
    )
    _check_ended(fit, Path(model))
    if fit.exit_code:
        return
    assert json.loads(fit.stdout.splitlines()[-1])["n_samples"] <= len(case.values)
    both = ("--workers", "0", "--missing", options["missing"])
    _check_ended(_run("predict", model, store, "--output", labels, *both), Path(labels))
    score = _run("score", model, store, "--json", *both)
    _check_ended(score, None)
    assert score.exit_code == 0, score.stderr
    assert math.isfinite(json.loads(score.stdout.splitlines()[-1])["score"])


def _check_ended(result: Any, output: Path | None) -> None:
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == (result.exit_code != 0), result.output
    assert output is None or output.exists() == (result.exit_code == 0)


@_settings(12)
@given(case=cases(stores=("Zarr",)))
def test_commands(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    _check_commands(case, tmp_path_factory.mktemp("cli"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@_settings(at_length(400))
@given(case=cases(stores=("Zarr",)))
def test_commands_in_four_hundred_cases(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    _check_commands(case, tmp_path_factory.mktemp("cli"))
