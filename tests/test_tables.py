"""What a notebook shows of a fit."""

from __future__ import annotations

import pickle
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline

from daskgmm import BernoulliMixture, GaussianMixture, GaussianMixtureIC, Info

EVIL = "<script>alert(1)</script>"


class Tables(HTMLParser):
    """The texts of each row of pandas' tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[list[list[str]]] = []
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "table" and ("class", "dataframe") in attrs:
            self.found.append([])
        self._cell = bool(self.found) and tag in ("th", "td")
        if self.found and tag == "tr":
            self.found[-1].append([])
        if self._cell:
            self.found[-1][-1].append("")

    def handle_data(self, data):
        if self._cell:
            self.found[-1][-1][-1] += data.strip()

    def handle_endtag(self, tag):
        self._cell = False


def tables(html: str) -> list[list[list[str]]]:
    return Tables(html).found


def test_a_fitted_mixture_shows_its_components_below_what_scikit_learn_shows(blobs):
    gm = GaussianMixture(3, random_state=0)
    before = gm._repr_html_()
    assert tables(before) == []
    gm.fit(pd.DataFrame(blobs, columns=["a", EVIL, "b"]))
    html = gm._repr_html_()
    assert "sk-top-container" in html
    assert gm._repr_mimebundle_()["text/html"].count("Converged after") == 1
    assert EVIL not in html
    (table,) = tables(html)
    assert [row for row in table if EVIL in row]
    numbers = np.array([row[1:] for row in table[-3:]], dtype=float)
    np.testing.assert_allclose(numbers, np.column_stack([gm.weights_, gm.means_]), rtol=1e-5)
    make_pipeline(gm)._repr_html_()
    assert gm.set_params(covariance_type="diag", n_components=9)._repr_html_()  # which the fit knows nothing of


def test_many_components_and_features_are_cut_in_the_middle():
    rng = np.random.default_rng(0)
    mixture = BernoulliMixture(40, max_iter=1, random_state=0, subsample=None)
    with pytest.warns(match="did not converge"):
        mixture.fit((rng.random((400, 30)) < 0.5).astype(float))
    (table,) = tables(mixture._repr_html_())
    assert len(table) < 30
    assert max(map(len, table)) < 16


def test_a_search_shows_the_criterion_of_each_candidate(blobs):
    search = GaussianMixtureIC((1, 2), covariance_type=("EII", "VVV"), random_state=0).fit(blobs)
    (table,) = tables(search._repr_html_())
    numbers = np.array([row[1:] for row in table[-2:]], dtype=float)
    np.testing.assert_allclose(numbers, search.results_.bic.values.T, rtol=1e-5)


def test_a_history_is_a_tuple_and_a_table(blobs):
    gm = GaussianMixture(3, random_state=0).fit(blobs)
    assert isinstance(gm.history_, tuple)
    assert all(isinstance(info, Info) for info in gm.history_)
    assert pickle.loads(pickle.dumps(gm)).history_ == gm.history_
    (table,) = tables(gm.history_._repr_html_())
    for row, info in ((table[1], gm.history_[0]), (table[-1], gm.history_[-1])):
        assert row[:3] == [info.stage, str(info.n_iter), str(info.n_samples)]
        assert float(row[3]) == pytest.approx(info.lower_bound, rel=1e-5)
    assert len(table) < 30
