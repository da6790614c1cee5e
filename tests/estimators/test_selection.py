"""A search is as good as its fits alone, reads no more than the longest of them, and chooses as mclust does."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator
from zarr.storage import LocalStore

from daskgmm import GaussianMixture, GaussianMixtureIC, load
from daskgmm.cli import main
from daskgmm.families.covariance import MODELS
from daskgmm.plotting import plot_selection

CODES = [name for name in MODELS if name.isupper()]
CHOICES = json.loads((Path(__file__).parents[1] / "reference" / "mclust.json").read_text())["choices"]


@pytest.fixture(scope="module")
def rows():
    """Three groups in two features, two of which overlap: (3000, 2)."""
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [3, 0], [-8, 9]])[rng.integers(3, size=3000)]
    return centres + rng.normal(size=(3000, 2)) @ [[1, 0.6], [0, 0.5]]


@pytest.fixture(scope="module")
def search(rows):
    return GaussianMixtureIC(range(1, 5), covariance_type=["VVV", "EEE", "VVI"], random_state=0, subsample=1000).fit(
        rows
    )


# Each candidate


@pytest.mark.parametrize("subsample", [None, 1000, 100_000])
def test_candidates_are_as_they_would_be_alone(rows, subsample):
    """The same likelihoods, after the same number of passes: they share the data, and nothing else."""
    options = {"random_state": 0, "subsample": subsample, "tol": 1e-5, "n_init": 2}
    ks, names = [1, 2, 4], ["full", "tied", "VEE"]
    found = GaussianMixtureIC(ks, covariance_type=names, **options).fit(rows).results_
    for name in names:
        for k in ks:
            alone = GaussianMixture(k, covariance_type=name, **options).fit(rows)
            one = found.sel(covariance_type=name, n_components=k)
            assert one.log_likelihood == pytest.approx(len(rows) * alone.lower_bound_, rel=1e-10)
            assert one.n_iter == alone.n_iter_
            assert one.converged == alone.converged_
            assert one.n_parameters == alone._n_parameters()


def test_criteria_are_those_of_the_fitted_mixture(rows, search):
    """But for the last step, which gains less than the tolerance."""
    best, chosen = search.best_estimator_, search.results_.sel(**search.best_params_)
    slack = 2 * len(rows) * search.tol
    for name in ("bic", "aic"):
        assert float(chosen[name]) == pytest.approx(getattr(best, name)(rows), abs=slack)
    assert float(chosen.icl) == pytest.approx(best.icl(rows), rel=1e-4)
    assert search.best_score_ == search.results_.bic.min()
    assert search.best_params_["n_components"] == 3


@pytest.mark.parametrize("criterion", ["aic", "icl"])
def test_the_criterion_decides(rows, search, criterion):
    other = GaussianMixtureIC(
        range(1, 5), covariance_type=["VVV", "EEE", "VVI"], criterion=criterion, random_state=0, subsample=1000
    ).fit(rows)
    assert other.results_.equals(search.results_)
    best = search.results_[criterion].argmin(...)
    assert other.best_params_ == {
        name: search.results_[name].values[int(best[name])] for name in ("n_components", "covariance_type")
    }


def test_weights_are_repetitions(rows):
    some, times = rows[:400], np.arange(400) % 3
    options = {"n_components": [1, 2], "covariance_type": "diag", "random_state": 0, "subsample": None, "tol": 1e-9}
    weighted = GaussianMixtureIC(**options).fit(some, sample_weight=times).results_
    repeated = GaussianMixtureIC(**options).fit(np.repeat(some, times, axis=0)).results_
    for name in ("bic", "aic", "icl"):
        np.testing.assert_allclose(weighted[name], repeated[name], rtol=1e-5)


def test_it_predicts_as_the_best_does(rows, search):
    np.testing.assert_array_equal(search.predict(rows), search.best_estimator_.predict(rows))
    assert search.score(rows) == search.best_estimator_.score(rows)
    assert search.sample(5)[0].shape == (5, 2)


# All together


class CountingStore(LocalStore):
    """A store that keeps how many bytes were read from it."""

    read = 0

    async def get(self, *arguments, **options):
        found = await super().get(*arguments, **options)
        CountingStore.read += 0 if found is None else len(found)
        return found


def test_a_search_reads_what_its_longest_fit_reads(rows, tmp_path):
    zarr.create_array(tmp_path / "x.zarr", data=np.tile(rows, (4, 1)), chunks=(1000, 2))

    def bytes_read(estimator):
        CountingStore.read = 0
        estimator.fit(zarr.open_array(CountingStore(tmp_path / "x.zarr"), mode="r"))
        return CountingStore.read

    options = {"random_state": 0, "subsample": 2000, "persist": False, "tol": 1e-5}
    ks, names = [1, 2, 3, 5], ["full", "tied", "diag"]
    alone = [bytes_read(GaussianMixture(k, covariance_type=name, **options)) for name in names for k in ks]
    assert bytes_read(GaussianMixtureIC(ks, covariance_type=names, **options)) == max(alone) > min(alone)


@pytest.mark.parametrize("name", CHOICES)
def test_it_chooses_as_mclust(name):
    """Over 14 models and up to nine components, by BIC; ours has the opposite sign.

    Which optima are found depends on the start: with other seeds mixtures are found on iris that are likelier, as some
    of their components are all but singular, and on faithful that of the choice is missed.
    """
    choice = CHOICES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some candidates lose components, or do not converge
        search = GaussianMixtureIC(range(1, 10), covariance_type=CODES, reg_covar=0, random_state=1)
        search.fit(np.array(choice["rows"]))
    assert search.best_params_ == {"n_components": choice["k"], "covariance_type": choice["model"]}
    assert search.best_score_ <= -choice["bic"] + 1e-5 * abs(choice["bic"])


# What goes wrong


def test_a_candidate_that_fails_is_reported_and_the_others_go_on():
    rows = np.repeat(np.random.default_rng(0).normal(size=(4, 2)), 10, axis=0)  # four distinct rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = GaussianMixtureIC([1, 2, 4, 41], covariance_type=["full", "tied"], reg_covar=0, random_state=0)
        found = search.fit(rows).results_
    assert "collapsed" in str(found.failure.sel(covariance_type="full", n_components=4).values)
    assert "lower n_components" in str(found.failure.sel(covariance_type="tied", n_components=41).values)
    failed = found.failure.values != ""
    assert np.array_equal(np.isnan(found.bic.values), failed)
    assert not failed[:, 0].any()
    assert search.best_score_ == np.nanmin(found.bic)


def test_nothing_that_can_be_fitted_is_an_error(rows):
    search = GaussianMixtureIC([1], random_state=0).fit(rows)
    before = search.best_params_
    with pytest.raises(ValueError, match="lower n_components"):
        search.set_params(n_components=[50, 60]).fit(rows[:20])
    assert search.best_params_ == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_components": []}, "n_components is empty"),
        ({"n_components": [0, 1]}, "n_components 0"),
        ({"n_components": [2.5]}, "n_components 2.5"),
        ({"covariance_type": ["full", "VVX"]}, "'VVX' is not known"),
        ({"covariance_type": []}, "covariance_type is empty"),
        ({"criterion": "dic"}, "criterion"),
    ],
)
def test_what_is_no_candidate_is_refused(rows, options, words):
    with pytest.raises(ValueError, match=words):
        GaussianMixtureIC(**options).fit(rows)


def test_a_best_candidate_that_did_not_converge_is_said(rows):
    with pytest.warns(ConvergenceWarning, match="full with n_components=3"):
        GaussianMixtureIC([3], covariance_type="full", subsample=None, max_iter=2, random_state=0).fit(rows)


def test_it_is_an_estimator():
    check_estimator(GaussianMixtureIC([1, 2], covariance_type=("full", "diag"), random_state=0))


# Where it is seen


def test_the_command_writes_the_best_and_says_all(rows, search, tmp_path):
    zarr.create_array(tmp_path / "x.zarr", data=rows, chunks=(1000, 2))
    command = [
        "select",
        tmp_path / "x.zarr",
        "--components",
        "1:4",
        "--covariances",
        "VVV,EEE,VVI",
        "--subsample",
        1000,
    ]
    options = ["--output", tmp_path / "best.zarr", "--workers", 0]
    shown = CliRunner().invoke(main, list(map(str, [*command, *options])))
    assert shown.exit_code == 0, shown.output
    np.testing.assert_array_equal(load(tmp_path / "best.zarr").means_, search.best_estimator_.means_)
    assert all(name in shown.stdout for name in ("VVV", "EEE", "VVI"))
    told = CliRunner().invoke(main, list(map(str, [*command, *options, "--overwrite", "--json"])))
    result = json.loads(told.stdout)
    assert result["bic"] == search.best_score_
    assert len(result["candidates"]) == 12


@pytest.mark.parametrize(
    ("option", "value"), [("--components", "0:3"), ("--components", "a"), ("--covariances", "VVV,nought")]
)
def test_the_command_refuses_what_it_does_not_know(tmp_path, option, value):
    result = CliRunner().invoke(main, ["select", str(tmp_path), "--output", str(tmp_path / "out"), option, value])
    assert result.exit_code == 2
    assert repr(value if option == "--components" else "nought") in result.stderr


def test_a_model_of_which_all_failed_has_no_name_in_the_picture(search):
    results = search.results_.copy(deep=True)
    results["bic"].loc["EEE"] = np.nan
    axes = plot_selection(results).axes[0]
    low, high = axes.get_ylim()
    assert {text.get_text() for text in axes.texts} == {"VVV", "VVI"}
    assert all(low <= text.get_position()[1] <= high for text in axes.texts)


def test_its_picture_has_a_line_for_each_model(search):
    figure = search.plot()
    lines = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) > 1]
    for line, model in zip(lines, search.results_.covariance_type.values, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), search.results_.bic.sel(covariance_type=model))
    assert {"VVV", "EEE", "VVI"} <= {text.get_text() for text in figure.axes[0].texts}


def results_of(bic):
    """As a search has them, of models by all their names and from one component on."""
    models = ["EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE"][: len(bic)]
    ks = np.arange(1, bic.shape[1] + 1)
    dims = ("covariance_type", "n_components")
    return xr.Dataset({"bic": (dims, bic)}, {"covariance_type": models, "n_components": ks}, {"criterion": "bic"})


def test_the_picture_of_many_models_is_a_field_of_what_they_are_behind_the_best():
    bic = np.random.default_rng(0).uniform(100, 1000, (7, 4))
    bic[2, 1], bic[4, 3] = 7, np.nan
    axes, bar = plot_selection(results_of(bic)).axes
    (field,) = axes.collections
    shown = np.ma.filled(field.get_array(), np.nan)
    np.testing.assert_array_equal(shown, bic - 7)  # where it is NaN, blank
    (best,) = axes.get_lines()
    assert [*best.get_xdata(), *best.get_ydata()] == [2, 2]
    assert [label.get_text() for label in axes.get_yticklabels()][2] == "EEI"
    assert bar.get_ylabel() == "BIC above the best"


def test_a_field_of_candidates_that_are_all_alike_can_be_drawn():
    plot_selection(results_of(np.full((6, 1), 3.0))).savefig(io.BytesIO(), format="svg")


def test_names_of_lines_that_end_close_stand_apart_and_around_their_ends():
    bic = np.array([[900.0, 100.0], [800, 101], [700, 102], [0, 500]])
    axes = plot_selection(results_of(bic)).axes[0]
    low, high = axes.get_ylim()
    places = [text.get_position()[1] for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == ["EII", "VII", "EEI", "VEI"]
    assert min(np.diff(places)) >= 0.0449 * (high - low)
    assert np.mean(places[:3]) == pytest.approx(101)
    assert places[3] == pytest.approx(500)
