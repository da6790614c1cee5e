"""The command line, as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner

from daskgmm import BayesianGaussianMixture, BernoulliMixture, GaussianMixture, load
from daskgmm.cli import main

LOCAL = ["--workers", "0"]


def run(*args: object):
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(2000, 3)), rng.normal(size=(2000, 3)) + 5])
    zarr.create_array(folder / "x.zarr", shape=X.shape, chunks=(500, 3), dtype="f8")[:] = X
    field = X.reshape(20, 200, 3).copy()
    ds = xr.Dataset({name: (("time", "x"), field[..., i]) for i, name in enumerate("abc")})
    ds["a"][3, 4] = np.nan
    ds.chunk(time=5).to_zarr(folder / "ds.zarr")
    result = run("fit", folder / "x.zarr", "--components", 2, "--output", folder / "m.zarr", *LOCAL)
    assert result.exit_code == 0, result.output
    return folder, X


def test_fit_is_the_estimator_and_shows_progress(data):
    folder, X = data
    gm = load(folder / "m.zarr")
    expected = GaussianMixture(2, random_state=0).fit(zarr.open(folder / "x.zarr"))
    np.testing.assert_array_equal(gm.means_, expected.means_)
    result = run("fit", folder / "x.zarr", "--components", 2, "--output", folder / "m3.zarr", "--json", *LOCAL)
    reported = json.loads(result.stdout)
    assert reported["lower_bound"] == expected.lower_bound_
    assert reported["n_samples"] == len(X)
    assert "log-likelihood" in result.stderr
    assert "rows/s" in result.stderr


def test_predict_score_and_show(data):
    folder, X = data
    gm = load(folder / "m.zarr")
    out = folder / "labels.zarr"
    result = run("predict", folder / "m.zarr", folder / "x.zarr", "--output", out, "--proba", "--log-density", *LOCAL)
    assert result.exit_code == 0, result.output
    ds = xr.open_zarr(out)
    np.testing.assert_array_equal(ds.labels, gm.predict(X))
    assert set(ds) == {"labels", "proba", "log_density"}
    scores = json.loads(run("score", folder / "m.zarr", folder / "x.zarr", "--json", *LOCAL).stdout)
    assert scores["score"] == pytest.approx(gm.score(X), rel=1e-12)
    assert scores["bic"] == pytest.approx(gm.bic(X), rel=1e-12)
    shown = json.loads(run("show", folder / "m.zarr", "--json").stdout)
    np.testing.assert_array_equal(shown["means"], gm.means_)
    assert "weight" in run("show", folder / "m.zarr").stdout


def test_variables_missing_values_and_names(data):
    folder, _ = data
    args = ("--components", 2, "--missing", "drop", *LOCAL)
    result = run("fit", folder / "ds.zarr", "--variables", "c,a", *args, "--output", folder / "named.zarr")
    assert result.exit_code == 0, result.output
    assert list(load(folder / "named.zarr").feature_names_in_) == ["c", "a"]
    args = ("named.zarr", "ds.zarr", "--missing", "drop", "--output", "nl.zarr")
    result = run("predict", *(folder / arg if "." in arg else arg for arg in args), *LOCAL)
    assert result.exit_code == 0, result.output
    labels = xr.open_zarr(folder / "nl.zarr", mask_and_scale={"labels": False}).labels  # whose missing value is -1
    assert labels.dims == ("time", "x")
    assert int(labels[3, 4]) == -1


def test_samples_have_the_model_s_moments_on_any_number_of_workers(data):
    folder, _ = data
    gm = load(folder / "m.zarr")
    for name in ("s1.zarr", "s2.zarr"):
        assert run("sample", folder / "m.zarr", "--rows", 200_000, "--output", folder / name, *LOCAL).exit_code == 0
    one, two = (xr.open_zarr(folder / name).load() for name in ("s1.zarr", "s2.zarr"))
    np.testing.assert_array_equal(one.samples, two.samples)
    mean = gm.weights_ @ gm.means_
    error = one.samples.std("sample").values / np.sqrt(200_000)
    assert (np.abs(one.samples.mean("sample").values - mean) < 5 * error).all()
    assert np.mean(one.component.values[:-1] == one.component.values[1:]) < 0.6  # not sorted


def test_other_families(data, tmp_path):
    """Fitted, shown, scored, predicted and drawn from, as the estimators do; their own defaults where none is given."""
    rng = np.random.default_rng(0)
    answers = (rng.random((3000, 6)) < np.where(np.arange(3000)[:, None] % 3, 0.2, 0.9)).astype(float)
    answers[rng.random(answers.shape) < 0.1] = np.nan
    zarr.create_array(tmp_path / "a.zarr", data=answers, chunks=(500, 6))
    fit = ("fit", tmp_path / "a.zarr", "--family", "bernoulli", "--components", 2, "--missing", "skip", "--alpha", 0.5)
    assert run(*fit, "--output", tmp_path / "b.zarr", *LOCAL).exit_code == 0
    expected = BernoulliMixture(2, alpha=0.5, missing="skip", random_state=0).fit(zarr.open(tmp_path / "a.zarr"))
    model = load(tmp_path / "b.zarr")
    np.testing.assert_array_equal(model.means_, expected.means_)
    assert "Bernoulli mixture of 2 components" in run("show", tmp_path / "b.zarr").stdout
    assert json.loads(run("show", tmp_path / "b.zarr", "--json").stdout)["means"] == expected.means_.tolist()
    args = ("predict", tmp_path / "b.zarr", tmp_path / "a.zarr", "--missing", "skip", "--output", tmp_path / "l.zarr")
    assert run(*args, *LOCAL).exit_code == 0
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "l.zarr").labels, expected.predict(answers))
    scores = run("score", tmp_path / "b.zarr", tmp_path / "a.zarr", "--missing", "skip", "--json", *LOCAL)
    assert json.loads(scores.stdout) == expected.scores(answers)
    assert run("sample", tmp_path / "b.zarr", "--rows", 10, "--output", tmp_path / "s.zarr", *LOCAL).exit_code == 0
    assert set(np.unique(xr.open_zarr(tmp_path / "s.zarr").samples)) == {0, 1}

    folder, X = data
    bayesian = ("fit", folder / "x.zarr", "--family", "bayesian", "--components", 5, "--weight-concentration", 0.01)
    reported = json.loads(run(*bayesian, "--output", tmp_path / "v.zarr", "--json", *LOCAL).stdout)
    expected = BayesianGaussianMixture(5, weight_concentration_prior=0.01, random_state=0).fit(
        zarr.open(folder / "x.zarr")
    )
    assert reported["n_components_effective"] == expected.n_components_effective_
    np.testing.assert_array_equal(load(tmp_path / "v.zarr").predict(X), expected.predict(X))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("fit", "nowhere.zarr", "--components", 2), "cannot open"),
        (("fit", "x.zarr", "--components", 2, "--array", "q"), "no array 'q'"),
        (("fit", "ds.zarr", "--components", 2, "--variables", "a,q"), "no variable 'q': there are a, b, c"),
        (("fit", "ds.zarr", "--components", 2, "--array", "q"), "no array 'q'"),
        (("fit", "ds.zarr", "--components", 2), "variable 'a' at time=3, x=4 is nan"),
        (("fit", "x.zarr", "--components", 5000), "n_samples >= n_components"),
        (("predict", "m.zarr", "ds.zarr", "--variables", "a,b"), "2 features"),
        (("fit", "x.zarr", "--components", 2, "--family", "poisson", "--tol", 1e-4), "needs counts"),
        (("fit", "x.zarr", "--components", 2, "--family", "poisson", "--prior", "default"), "--prior is not for"),
        (("fit", "x.zarr", "--components", 2, "--missing", "skip"), "'missing' parameter"),
        (("predict", "x.zarr", "x.zarr"), "not a model"),
        (("fit", "x.zarr", "--components", 2, "--scheduler", "tcp://127.0.0.1:1"), "no Dask scheduler answers"),
    ],
)
def test_an_error_is_one_line_and_leaves_no_output(data, monkeypatch, args, words):
    folder, _ = data
    monkeypatch.chdir(folder)
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        result = run(*args, "--output", "out.zarr", *([] if "--scheduler" in args else LOCAL))
    assert result.exit_code != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in result.output
    assert not (folder / "out.zarr").exists()


def test_an_existing_output_is_refused_before_the_fit(data):
    folder, _ = data
    result = run("fit", folder / "x.zarr", "--components", 2, "--output", folder / "m.zarr", *LOCAL)
    assert result.exit_code == 1
    assert "exists: choose another path, or overwrite it (overwrite=True, --overwrite)" in result.stderr
    assert "EM" not in result.stderr
    again = run("fit", folder / "x.zarr", "--components", 2, "--output", folder / "m.zarr", "--overwrite", *LOCAL)
    assert again.exit_code == 0


def test_it_runs_on_workers_of_its_own_and_as_a_dask_command(data):
    folder, _ = data
    args = ["fit", "x.zarr", "--components", "2", "--output", "own.zarr", "--workers", "2", "--memory-limit", "400MiB"]
    script = "from dask.cli import run_cli; run_cli()"
    subprocess.run([sys.executable, "-c", script, "gmm", *args], cwd=folder, check=True, capture_output=True)
    np.testing.assert_array_equal(load(folder / "own.zarr").means_, load(folder / "m.zarr").means_)


def test_help_starts_without_the_heavy_libraries():
    script = "import sys; from daskgmm.cli import main; main(['-h'], standalone_mode=False); print(sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    for name in ("numpy", "sklearn", "zarr", "dask", "xarray"):
        assert f"'{name}'" not in shown


def test_weights_and_labels_of_the_store(data, tmp_path):
    """By name, of a group of arrays and of a labelled Dataset; they are no features there."""
    _, X = data
    labels = np.where(np.arange(len(X)) % 10, -1, X[:, 0] > np.median(X[:, 0]))
    weights = np.linspace(0.5, 2, len(X))
    expected = GaussianMixture(2, random_state=0).fit(X, sample_weight=weights, labels=labels)
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    for name, array in {"x": X, "class": labels, "count": weights}.items():
        group.create_array(name, data=array, chunks=(len(X) // 3, *array.shape[1:]))
    named = {f"f{i}": ("row", column) for i, column in enumerate(X.T)}
    ds = xr.Dataset({**named, "class": ("row", labels), "count": ("row", weights)}).chunk(row=len(X) // 3)
    ds.to_zarr(tmp_path / "ds.zarr", zarr_format=2)
    for name in ("g", "ds"):
        fit = ("fit", tmp_path / f"{name}.zarr", "--components", 2, "--weights", "count", "--labels", "class")
        result = run(*fit, "--output", tmp_path / f"{name}-model.zarr", *LOCAL)
        assert result.exit_code == 0, result.output
        np.testing.assert_allclose(load(tmp_path / f"{name}-model.zarr").means_, expected.means_, rtol=1e-9)
    by_name = GaussianMixture(2, random_state=0).fit(ds, sample_weight="count", labels="class")
    np.testing.assert_allclose(by_name.means_, expected.means_, rtol=1e-9)
    assert list(by_name.feature_names_in_) == list(named)
    assert by_name.predict(ds).dims == ("row",)
    result = run("fit", tmp_path / "g.zarr", "--components", 2, "--labels", "klass", "--output", tmp_path / "o", *LOCAL)
    assert "no array 'klass': there are class, count, x" in result.stderr


def test_the_seed_is_the_random_state(data):
    folder, _ = data
    args = ("fit", folder / "x.zarr", "--components", 2, "--seed", 7, "--init", "random_from_data", *LOCAL)
    result = run(*args, "--output", folder / "seeded.zarr")
    assert result.exit_code == 0, result.output
    assert load(folder / "seeded.zarr").random_state == 7


def test_a_fit_goes_on_from_its_checkpoint(data):
    folder, _ = data
    args = ("fit", folder / "x.zarr", "--components", 2, "--checkpoint", folder / "kept", "--json", *LOCAL)
    first = json.loads(run(*args, "--output", folder / "first.zarr").stdout)
    before = sorted((folder / "kept").iterdir())
    again = json.loads(run(*args, "--output", folder / "again.zarr").stdout)
    assert sorted(path for path in (folder / "kept").iterdir()) == before
    np.testing.assert_array_equal(load(folder / "again.zarr").means_, load(folder / "first.zarr").means_)
    assert {**again, "output": 0, "seconds": 0} == {**first, "output": 0, "seconds": 0}
    result = run(*args, "--seed", 1, "--output", folder / "other.zarr")
    assert result.exit_code == 1
    assert "is of another fit, with random_state 0 and not 1" in result.stderr
    assert not (folder / "other.zarr").exists()
    search = ("select", folder / "x.zarr", "--components", "1:2", "--covariances", "full", *LOCAL)
    result = run(*search, "--checkpoint", folder / "search", "--output", folder / "best.zarr")
    assert result.exit_code == 0, result.output
    assert list((folder / "search").glob("em-*"))


def test_json_has_no_infinities(data, tmp_path):
    """Which other programs do not read: a fit without a pass has no bound."""
    folder, _ = data
    options = ("--components", 1, "--max-iter", 0, "--subsample", 0, "--output", tmp_path / "m.zarr", "--json", *LOCAL)
    printed = run("fit", folder / "x.zarr", *options).stdout, run("show", tmp_path / "m.zarr", "--json").stdout
    for text in printed:
        assert json.loads(text, parse_constant=pytest.fail)["lower_bound"] is None


def test_what_is_missing_is_treated_as_in_the_fit_unless_told_otherwise(tmp_path):
    rows = np.random.default_rng(0).normal(size=(200, 2)) + [[0, 0], [9, 9]] * 100
    rows[7] = np.nan
    ds = xr.Dataset({"a": ("row", rows[:, 0]), "b": ("row", rows[:, 1])})
    ds.to_netcdf(tmp_path / "x.nc")
    model = tmp_path / "m.zarr"
    kinds = ("--variables", "a, b", "--components", 2)
    fitted = run("fit", tmp_path / "x.nc", *kinds, "--missing", "drop", "--output", model, "--json", *LOCAL)
    assert json.loads(fitted.stdout)["features"] == ["a", "b"]
    assert run("predict", model, tmp_path / "x.nc", "--output", tmp_path / "l.zarr", *LOCAL).exit_code == 0
    labels = xr.open_zarr(tmp_path / "l.zarr", mask_and_scale=False)["labels"].values
    assert np.flatnonzero(labels < 0).tolist() == [7]
    scored = run("score", model, tmp_path / "x.nc", "--json", *LOCAL)
    assert json.loads(scored.stdout)["n_samples"] == 199
    page = run("report", model, tmp_path / "x.nc", "--output", tmp_path / "p.html", *LOCAL)
    assert page.exit_code == 0, page.stderr
    refused = run("score", model, tmp_path / "x.nc", "--missing", "raise", *LOCAL)
    assert refused.exit_code == 1
    assert "pass --missing drop" in refused.stderr
