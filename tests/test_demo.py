"""The demo, on a corner of its photographs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import tempfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from PIL import Image

import daskgmm.demo.photographs
from daskgmm import load
from daskgmm.cli import main
from daskgmm.demo.photographs import CHANNELS, Photographs, build_patches, build_pixels
from daskgmm.demo.run import check, run

PICTURES = ("convergence.png", "eigenvectors.png", "segmentation.png")


@pytest.fixture(scope="module")
def corner():
    whole = Photographs.bundled()
    return Photographs(whole.images[:, 150:190, 250:298].copy(), whole.names)


@pytest.fixture(scope="module")
def demo(tmp_path_factory, corner):
    root = tmp_path_factory.mktemp("a demo")
    said = []
    run(str(root), said.append, workers=1, photographs=corner)
    return root, "\n".join(said)


def by_hand(images):
    n, height, width, channels = images.shape
    return np.array(
        [
            images[i, row : row + 8, column : column + 8, c].ravel()
            for i in range(n)
            for c in range(channels)
            for row in range(height - 7)
            for column in range(width - 7)
        ],
        dtype=np.float32,
    )


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_bundled_photographs_are_as_large_as_we_say():
    whole = Photographs.bundled()
    assert whole.n_pixels == 546_560
    assert whole.n_patches == 1_595_160
    assert set(whole.names) == {"china", "flower"}


def test_the_patch_store_holds_all_patches_features_last(demo, corner):
    root, _ = demo
    array = zarr.open_array(root / "patches.zarr", mode="r")
    assert array.dtype == np.float32
    assert array.metadata.zarr_format == 3
    np.testing.assert_array_equal(array[:], by_hand(corner.images))


def test_any_run_of_patches_can_be_cut_alone(corner):
    patches = by_hand(corner.images)
    for start, stop in ((0, 1), (1300, 1400), (corner.n_patches - 3, corner.n_patches + 5)):
        np.testing.assert_array_equal(corner.patches(start, stop), patches[start:stop])


def test_the_pixel_store_is_a_labelled_dataset(demo, corner):
    ds = xr.open_zarr(demo[0] / "pixels.zarr")
    assert ds["image"].values.tolist() == list(corner.names)
    np.testing.assert_array_equal(ds[list(CHANNELS)].to_array().transpose(..., "variable").values, corner.images)


def test_labels_are_what_the_models_say_on_the_dims_of_the_data(demo, corner):
    root, _ = demo
    pixels, labels = xr.open_zarr(root / "pixels.zarr"), xr.open_zarr(root / "pixel-labels.zarr")["labels"]
    assert labels.dims == ("image", "row", "column")
    assert set(labels.coords) == set(pixels.coords)
    for name in pixels.coords:
        np.testing.assert_array_equal(labels[name], pixels[name])
    model = load(root / "pixel-model.zarr")
    assert model.feature_names_in_.tolist() == list(CHANNELS)
    model.__dict__.pop("feature_names_in_")
    np.testing.assert_array_equal(labels.values.ravel(), model.predict(corner.images.reshape(-1, 3)))
    patch_labels = xr.open_zarr(root / "patch-labels.zarr")["labels"].values
    np.testing.assert_array_equal(patch_labels, load(root / "patch-model.zarr").predict(by_hand(corner.images)))


def test_the_segmentation_shows_each_pixel_in_its_components_mean_colour(demo, corner):
    root, _ = demo
    model = load(root / "pixel-model.zarr")
    labels = xr.open_zarr(root / "pixel-labels.zarr")["labels"].values
    picture = np.asarray(Image.open(root / "segmentation.png").convert("RGB"))
    commonest = np.rint(model.means_[np.bincount(labels.ravel()).argmax()])
    assert (picture == commonest).all(axis=-1).mean() > 0.05


def test_all_pictures_are_there(demo):
    for name in PICTURES:
        with Image.open(demo[0] / name) as picture:
            assert min(picture.size) > 500
            assert picture.info["Software"] == "daskgmm demo"


def test_it_says_what_it_did_in_figures(demo, corner):
    _, said = demo
    assert f"{corner.n_patches:,} patches of 8 × 8" in said
    assert f"{corner.n_pixels:,} pixels" in said
    assert re.search(r"[\d,]+ rows/s", said)
    assert re.search(
        r"Peak memory: \d+ MiB in the driver \(this process\); \d+ MiB in the workers, of 384 MiB each", said
    )
    assert "none was paused or killed" in said


def test_what_it_says_to_try_next_works(demo, monkeypatch):
    root, said = demo
    monkeypatch.setenv("MPLBACKEND", "agg")
    commands = re.findall(r"^  daskgmm (.*)$", said, re.MULTILINE)
    assert {shlex.split(command)[0] for command in commands} == {"show", "score", "predict", "fit"}
    for command in commands:
        here = [] if command.startswith("show") else ["--workers", "0"]
        result = CliRunner().invoke(main, [*shlex.split(command), *here])
        assert result.exit_code == 0, f"{command}\n{result.output}"
    assert (root / "patch-diag.zarr").is_dir()
    snippet = said.partition("Or in Python:\n")[2]
    names: dict[str, object] = {}
    exec("\n".join(line.strip() for line in snippet.splitlines()), names)
    stored = xr.open_zarr(root / "pixel-labels.zarr")["labels"]
    np.testing.assert_array_equal(names["labels"], stored)  # type: ignore[arg-type]


def test_a_second_run_uses_the_stores_again_and_touches_nothing_else(demo, corner):
    root, _ = demo
    (root / "notes.txt").write_text("mine")
    before, model = contents(root), load(root / "patch-model.zarr")
    said = []
    run(str(root), said.append, workers=0, photographs=corner)
    assert "\n".join(said).count("found there") == 2
    after = contents(root)
    same = [name for name in before if name.startswith(("patches.zarr/", "pixels.zarr/", "notes.txt"))]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert set(after) == set(before)
    np.testing.assert_array_equal(load(root / "patch-model.zarr").means_, model.means_)  # threads or workers: same bits


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(daskgmm.demo.photographs, "_SHARD", 1024)
    monkeypatch.setattr(daskgmm.demo.photographs, "_CHUNK", 256)


class Killed(BaseException):
    pass


def test_a_store_of_a_killed_run_is_not_taken_for_complete(tmp_path, corner, small_shards, monkeypatch):
    path = tmp_path / "patches.zarr"
    with monkeypatch.context() as patch:

        def killed(self, start, stop):
            if start == 3 * 1024:
                raise Killed
            return np.full((1024, 64), -1, dtype=np.float32)  # torn, as far as anyone knows

        patch.setattr(Photographs, "patches", killed)
        with pytest.raises(Killed):
            build_patches(path, corner)
    assert not path.exists()
    assert build_patches(path, corner)
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:], by_hand(corner.images))
    assert os.listdir(tmp_path) == ["patches.zarr"]
    assert not build_patches(path, corner)


def test_a_shard_that_was_lost_is_written_again(tmp_path, corner, small_shards):
    path = tmp_path / "patches.zarr"
    build_patches(path, corner)
    (path / "c/2/0").unlink()
    assert build_patches(path, corner)
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:], by_hand(corner.images))


def test_pixels_of_a_killed_run_are_written_again(tmp_path, corner):
    path = tmp_path / "pixels.zarr"
    assert build_pixels(path, corner)
    (path / "zarr.json").rename(path / "daskgmm.json")  # what is there last, and what is there before
    attributes = json.loads((path / "daskgmm.json").read_text())["attributes"]
    (path / "daskgmm.json").write_text(attributes["daskgmm"])
    assert build_pixels(path, corner)
    assert not build_pixels(path, corner)
    np.testing.assert_array_equal(xr.open_zarr(path)["green"], corner.images[..., 1])


def test_black_photographs_are_stored_whole(tmp_path):
    black = Photographs(np.zeros((1, 9, 10, 3), dtype=np.uint8), ("night",))
    build_patches(tmp_path / "patches.zarr", black)
    build_pixels(tmp_path / "pixels.zarr", black)
    assert (tmp_path / "patches.zarr/c/0/0").exists()
    assert (tmp_path / "pixels.zarr/red/c/0/0/0").exists()


def test_stores_of_other_photographs(tmp_path, corner, small_shards):
    other = Photographs(corner.images[:, ::-1].copy(), corner.names)
    for build in (build_patches, build_pixels):
        build(tmp_path / build.__name__, corner)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="not what the demo would write there: move it away"):
        build_patches(tmp_path / "build_patches", other)
    assert contents(tmp_path) == before
    assert build_pixels(tmp_path / "build_pixels", other)  # daskgmm's own, and replaced as a whole
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "build_pixels")["red"], other.images[..., 0])


@pytest.mark.parametrize("name", ["patches.zarr", "pixels.zarr", "patch-model.zarr", "pixel-labels.zarr", *PICTURES])
def test_nothing_of_others_is_replaced(tmp_path, corner, name):
    mine = tmp_path / name
    if name.endswith(".zarr"):
        mine.mkdir()
        mine = mine / "thesis.txt"
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match=re.escape(name)):
        run(str(tmp_path), print, workers=0, photographs=corner)
    assert mine.read_text() == "mine"
    assert not (tmp_path / "patch-labels.zarr").exists()


def test_a_directory_that_cannot_be_written_is_named_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["demo", "--output", str(tmp_path / "file")])
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: cannot write to '.*file' \(.*\): choose another directory\n", result.output)

    def refused(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    with pytest.raises(OSError, match=r"cannot write to .* \(Permission denied\): choose another directory"):
        check(str(tmp_path))


@pytest.mark.parametrize(("module", "name"), [("matplotlib", "matplotlib"), ("PIL", "Pillow")])
def test_what_is_not_installed_is_named_before_the_work(tmp_path, monkeypatch, module, name):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == module else found(asked))
    with pytest.raises(ImportError, match=rf"needs {name}, .*pip install 'daskgmm\[plot\]'"):
        run(str(tmp_path / "new"), print)
    assert not Path(tmp_path / "new").exists()
