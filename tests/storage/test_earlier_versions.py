"""Models and checkpoints of daskgmm 0.1.0, as `tests/reference/earlier.py` made them, are read by this version."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskgmm import BernoulliMixture, GaussianMixture, load

FILES = Path(__file__).parents[1] / "reference" / "0.1.0.zip"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("0.1.0")
    zipfile.ZipFile(FILES).extractall(folder)
    return folder


def rows_of(old: Path, name: str) -> Any:
    rows = np.load(old / "rows.npz")
    return rows["b"] if "bernoulli" in name else rows["x"].astype(float)


@pytest.mark.parametrize("name", ["full", "bayesian", "bernoulli"])
def test_a_model_says_of_rows_what_it_said(old: Path, name: str) -> None:
    model, rows = load(old / name), rows_of(old, name)
    expected = json.loads((old / "expected.json").read_text())[name]
    assert model.predict(rows)[:20].tolist() == expected["predict"]
    assert model.score(rows) == pytest.approx(expected["score"], rel=1e-12)
    assert model.lower_bound_ == expected["lower_bound"]


@pytest.mark.parametrize(("name", "mixture"), [("full", GaussianMixture), ("bernoulli", BernoulliMixture)])
def test_a_fit_that_was_left_after_six_passes_goes_on(old: Path, name: str, mixture: Any) -> None:
    """To what the whole fit found on another processor: to rounding, which EM's map shrinks."""
    expected = json.loads((old / "expected.json").read_text())[f"checkpoint-{name}"]
    stages: list[tuple[str, int]] = []
    model = mixture(
        3,
        random_state=0,
        subsample=None,
        init_params="random",
        tol=1e-9,
        max_iter=40,
        checkpoint=old / f"checkpoint-{name}",
        callbacks=[lambda info: stages.append((info.stage, info.n_iter))],
    ).fit(rows_of(old, name))
    assert stages[0] == ("data", 7)
    assert model.lower_bounds_[:6] == expected["lower_bounds"][:6]
    assert model.lower_bounds_[-1] == pytest.approx(expected["lower_bounds"][-1], abs=1e-7)
    assert model.means_ == pytest.approx(np.array(expected["means"]), abs=1e-3)
