"""A report is whole in itself, shows texts and runs none, and replaces nobody's file."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner

from daskgmm import BayesianGaussianMixture, BernoulliMixture, GaussianMixture, GaussianMixtureIC, load
from daskgmm.cli import main
from daskgmm.reporting.page import clean

EVIL = "<script>alert('$1$')&\"' onload=x"
NAMES = ("temperature", EVIL, "oxygen \U0001f600\u202e")


class Parsed(HTMLParser):
    """A page's tags, what they point to, and the texts between them by the section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.figures: dict[str, int] = {}
        self._section, self._open = "", []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag == "section":
            self._section = found["id"]
        if tag == "svg":
            self.figures[self._section] = self.figures.get(self._section, 0) + 1
        if tag not in ("meta", "link", "img", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self._section, []).append(data.strip())

    @property
    def urls(self):
        attributes = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "style", "clip-path")
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in attributes]


def run(*args: object):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def reported(folder, *args: object) -> Parsed:
    result = run("report", *args, "--workers", 0, "--overwrite", "--output", folder / "r.html")
    assert result.exit_code == 0, result.output
    return Parsed((folder / "r.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, blobs):
    folder = tmp_path_factory.mktemp("report")
    units = ("degC", "<b>x</b>", "umol")
    ds = xr.Dataset({n: ("row", c.copy(), {"units": u}) for n, c, u in zip(NAMES, blobs.T, units, strict=True)})
    ds[NAMES[0]][17] = 1000.0
    ds[NAMES[1]][3] = np.nan
    ds.chunk(row=100).to_zarr(folder / "x.zarr", zarr_format=3, consolidated=False)
    gm = GaussianMixture(3, random_state=0).fit(
        xr.Dataset({n: ("row", c) for n, c in zip(NAMES, blobs.T, strict=True)})
    )
    gm.save(folder / "m.zarr")
    return folder


def test_it_points_nowhere_and_runs_nothing(folder):
    page = reported(folder, folder / "m.zarr", folder / "x.zarr", "--missing", "drop")
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "iframe", "object", "embed", "link", "base", "form", "b>x"}
    )
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    for url in page.urls:
        assert "//" not in url.partition("data:image/png;base64,")[0]
        assert "url(" not in url.replace("url(#", "")
    text = (folder / "r.html").read_text("utf-8")
    assert "http:" not in text
    assert "https:" not in text
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = [url[1:] for url in page.urls if url.startswith("#")]
    assert set(used) <= set(ids)


def test_it_shows_what_is_there_as_it_is(folder):
    page = reported(folder, folder / "m.zarr", folder / "x.zarr", "--missing", "drop")
    assert page.figures == {"convergence": 1, "densities": 6, "uncertainty": 1}
    assert f"{EVIL} (<b>x</b>)" in page.texts["components"]
    assert "temperature (degC)" in page.texts["components"]
    assert "row=17" in page.texts["worst"]
    assert page.texts["worst"].index("row=17") == min(
        i for i, t in enumerate(page.texts["worst"]) if t.startswith("row=")
    )
    rows = [int(text) for text in page.texts["components"] if text.isdigit() and int(text) > 100]
    assert sum(rows) == 599  # one has no value
    assert any("script" in text for text in page.texts["densities"])
    assert not any("\u202e" in text for texts in page.texts.values() for text in texts)


def test_without_data_it_says_how_to_give_them(folder):
    page = reported(folder, folder / "m.zarr")
    assert page.figures == {"convergence": 1, "densities": 6}
    assert any("daskgmm report MODEL STORE" in text for text in page.texts["what"])
    assert "worst" not in page.texts


def test_without_data_units_are_those_of_the_fit(tmp_path, blobs):
    ds = xr.Dataset({"speed": ("row", blobs[:, 0], {"units": "m s-1"}), "other": ("row", blobs[:, 1])})
    GaussianMixture(3, random_state=0).fit(ds).save(tmp_path / "m.zarr")
    texts = reported(tmp_path, tmp_path / "m.zarr").texts["components"]
    assert "speed (m s-1)" in texts
    assert "other" in texts


def test_other_families_and_one_feature(tmp_path, blobs):
    rng = np.random.default_rng(0)
    answers = (rng.random((600, 4)) < np.where(np.arange(600)[:, None] % 3, 0.2, 0.9)).astype(float)
    answers[5, 1] = np.nan
    zarr.create_array(tmp_path / "a.zarr", data=answers, chunks=(100, 4))
    BernoulliMixture(2, missing="skip", random_state=0).fit(answers).save(tmp_path / "b.zarr")
    page = reported(tmp_path, tmp_path / "b.zarr", tmp_path / "a.zarr", "--missing", "skip")
    assert page.figures == {"convergence": 1, "uncertainty": 1}
    one = blobs[:, :1]
    zarr.create_array(tmp_path / "one.zarr", data=one, chunks=(100, 1), attributes={"units": "m"})
    for model in (BayesianGaussianMixture(4, random_state=0), GaussianMixture(1, covariance_type="spherical")):
        model.fit(one).save(tmp_path / "one-model.zarr", overwrite=True)
        page = reported(tmp_path, tmp_path / "one-model.zarr", tmp_path / "one.zarr")
        assert page.figures["densities"] == 1
        assert "0 (m)" in page.texts["components"]


def test_nobodys_file_is_replaced(folder, tmp_path):
    args = ("report", folder / "m.zarr", "--output")
    (tmp_path / "mine.html").write_text("<!doctype html>my own")
    for option in ([], ["--overwrite"]):
        result = run(*args, tmp_path / "mine.html", *option)
        assert result.exit_code == 1
        assert "is no report of daskgmm's" in result.stderr
    assert (tmp_path / "mine.html").read_text() == "<!doctype html>my own"
    assert run(*args, tmp_path / "new" / "r.html").exit_code == 0
    first = (tmp_path / "new" / "r.html").read_bytes()
    result = run(*args, tmp_path / "new" / "r.html")
    assert result.exit_code == 1
    assert "exists: choose another path, or overwrite it" in result.stderr
    assert run(*args, tmp_path / "new" / "r.html", "--overwrite").exit_code == 0
    assert (tmp_path / "new" / "r.html").read_bytes() == first  # no time of day, no chance
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.html"]


def test_a_url_has_no_secrets_in_it(folder):
    from daskgmm import open_samples
    from daskgmm.reporting.page import page

    samples = open_samples(load(folder / "m.zarr").sample(50)[0])
    text = page(str(folder / "m.zarr"), samples, "s3://key:hunter2@bucket/x.zarr?token=abc")
    assert "bucket/x.zarr" in text
    assert "hunter2" not in text
    assert "abc" not in Parsed(text).texts["what"]


@pytest.mark.parametrize("text", ["\ud800", "a\x00b", "a\u202eb", "x" * 10_000, json.dumps({"a": 1})])
def test_texts_that_no_page_can_hold(text):
    shown = clean(text)
    assert len(shown) <= 120
    assert shown.isprintable()
    shown.encode()


def test_a_search_saves_what_it_tried_beside_the_best(tmp_path, blobs):
    search = GaussianMixtureIC(range(1, 5), covariance_type=("EII", "VVV"), random_state=0).fit(blobs)
    search.results_["bic"][1, 3] = np.nan  # as of one that failed
    search.results_["failure"] = search.results_["failure"].astype("U30")
    search.results_["failure"][1, 3] = "it <b>collapsed</b>"
    search.save(tmp_path / "best.zarr")
    best = load(tmp_path / "best.zarr")
    np.testing.assert_array_equal(best.means_, search.best_estimator_.means_)
    assert best.get_params() == {**search.best_estimator_.get_params(), "callbacks": ()}
    ds = xr.open_zarr(tmp_path / "best.zarr", consolidated=False)
    for name in search.results_:
        np.testing.assert_array_equal(ds[f"candidate_{name}"], search.results_[name])
    page = reported(tmp_path, tmp_path / "best.zarr")
    assert page.figures == {"convergence": 1, "selection": 1, "densities": 6}
    assert "it <b>collapsed</b>" in " ".join(page.texts["selection"])
