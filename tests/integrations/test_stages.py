"""Laws of a pipeline's stages: whenever one is left, the same call ends with the same bits, and repeats no pass."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import daskgmm.data.blocks
import daskgmm.fitting.checkpoint
from daskgmm import stages
from daskgmm.stages import Place, ProgressEvent, Result
from daskgmm.storage.groups import Target

HERE = Place(workers=0)
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


class Killed(BaseException):
    """What no handler of errors catches."""


@pytest.fixture(autouse=True)
def _every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints after each pass, and small blocks."""
    monkeypatch.setattr(daskgmm.fitting.checkpoint, "_INTERVAL", 0)
    monkeypatch.setattr(daskgmm.data.blocks, "BLOCK_VALUES", 600)
    monkeypatch.setattr(daskgmm.data.blocks, "_REGION_VALUES", 300)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """1,200 rows of three groups that overlap, in three features."""
    rng = np.random.default_rng(3)
    rows = 1.5 * rng.normal(size=(3, 3))[rng.integers(0, 3, 1200)] + rng.normal(size=(1200, 3))
    path = tmp_path_factory.mktemp("data") / "x.zarr"
    zarr.create_array(str(path), data=rows, chunks=(100, 3))
    return str(path)


def fit(store: str, folder: Path, on_progress: Callable[[ProgressEvent], None]) -> Result:
    options: dict[str, Any] = {"n_components": 3, "subsample": 300, "tol": 0, "max_iter": 9, "accelerate": False}
    return stages.fit(store, f"{folder}/model.zarr", place=HERE, on_progress=on_progress, **options)


def select(store: str, folder: Path, on_progress: Callable[[ProgressEvent], None]) -> Result:
    options: dict[str, Any] = {"n_components": [1, 2], "covariance_type": ["VVV", "EEE"], "subsample": 300}
    return stages.select(store, f"{folder}/best.zarr", place=HERE, on_progress=on_progress, **options)


def predict(store: str, folder: Path, on_progress: Callable[[ProgressEvent], None]) -> Result:
    model = f"{Path(store).parent}/model.zarr"
    if not Path(model).exists():
        stages.fit(store, model, place=HERE, n_components=2, max_iter=3)
    return stages.predict(model, store, f"{folder}/labels.zarr", proba=True, place=HERE, on_progress=on_progress)


STAGES = [fit, select, predict]


def bits(path: str) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}


def passes(words: list[ProgressEvent]) -> list[int]:
    found = (re.match(r"EM on the data, pass (\d+)", word.text) for word in words)
    return [int(match[1]) for match in found if match]


@pytest.mark.parametrize("stage", STAGES)
def test_done_again_it_changes_nothing(stage: Any, store: str, tmp_path: Path) -> None:
    words: list[ProgressEvent] = []
    first = stage(store, tmp_path, words.append)
    assert words
    assert all(0 <= word.share <= 1 for word in words)
    before, again = bits(first.output), []
    second = stage(store, tmp_path, again.append)
    assert bits(second.output) == before
    assert {**first.message(), "seconds": 0} == {**second.message(), "seconds": 0}
    assert first.table == second.table
    assert passes(again) == []


@pytest.mark.parametrize("stage", STAGES)
def test_killed_it_goes_on_to_the_same_bits(stage: Any, store: str, tmp_path: Path) -> None:
    whole: list[ProgressEvent] = []
    expected = bits(stage(store, tmp_path / "whole", whole.append).output)
    for n in (4, 8):  # writes of the start, and of EM
        write, left, folder, words = Target.write, iter(range(n)), tmp_path / str(n), []

        def killing(self: Target, key: str, data: bytes, write: Any = write, left: Any = left) -> None:
            if next(left, None) is None:
                raise Killed
            write(self, key, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Target, "write", killing)
            with contextlib.suppress(Killed):
                stage(store, folder, words.append)
        done = passes(words)
        words.clear()
        assert bits(stage(store, folder, words.append).output) == expected
        repeated = set(done) & set(passes(words))
        assert len(repeated) <= 1  # the one that was not kept
        assert set(done) | set(passes(words)) == set(passes(whole))


@pytest.mark.parametrize("stage", STAGES)
def test_what_goes_on_is_scalars(stage: Any, store: str, tmp_path: Path) -> None:
    message = stage(store, tmp_path, lambda word: None).message()
    assert json.loads(json.dumps(message)) == message
    assert all(isinstance(value, str | int | float | bool) for value in message.values())
    assert Path(message["output"]).is_dir()


def test_a_mixture_that_is_not_known(store: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mixture 'Gauss' is not known: give one of GaussianMixture"):
        stages.fit(store, f"{tmp_path}/model.zarr", mixture="Gauss", n_components=2)


def test_what_others_wrote_is_refused_before_any_pass(store: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="daskgmm did not write it"):
        stages.fit(store, str(tmp_path), n_components=2, place=HERE)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("module", "needs"), [("prefect", "Prefect 3"), ("airflow", "Airflow 3")])
def test_without_what_it_is_for(module: str, needs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"daskgmm.integrations.{module}"
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match=f"^{name} needs {needs}: "):
        importlib.import_module(name)


def test_a_model_of_other_features_is_refused_before_anything_is_written(store: str, tmp_path: Path) -> None:
    model = fit(store, tmp_path, lambda _: None).output
    other = tmp_path / "other.zarr"
    zarr.create_array(str(other), data=np.ones((20, 2)), chunks=(10, 2))
    with pytest.raises(ValueError, match="has 2 features, but GaussianMixture is expecting 3 features"):
        stages.predict(model, str(other), f"{tmp_path}/labels.zarr", place=HERE)
    assert not (tmp_path / "labels.zarr").exists()
