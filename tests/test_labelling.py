"""Predictions written to Zarr: complete and right, or clearly unfinished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import dask
import numpy as np
import pytest
import xarray as xr
import zarr

import daskgmm.prediction.write
from daskgmm import GaussianMixture, open_samples
from daskgmm.prediction.predict import LABELS, LOG_DENSITY, PROBA
from daskgmm.prediction.write import write_predictions


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of many blocks, and a model of it."""
    monkeypatch.setattr("daskgmm.data.blocks.BLOCK_VALUES", 2000)
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(5000, 3)), rng.normal(size=(5000, 3)) + 6])
    path = tmp_path / "x.zarr"
    zarr.create_array(path, shape=X.shape, chunks=(500, 3), dtype="f8")[:] = X
    gm = GaussianMixture(2, random_state=0).fit(X)
    return path, X, gm


def write(path, gm, target, **options):
    write_predictions(
        open_samples(path), gm._components(), (LABELS, PROBA, LOG_DENSITY), str(target), origin=str(path), **options
    )


def test_what_is_written_is_what_predict_says(store, tmp_path):
    path, X, gm = store
    write(path, gm, tmp_path / "out.zarr")
    ds = xr.open_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(ds.labels, gm.predict(X))
    np.testing.assert_array_equal(ds.proba, gm.predict_proba(X))
    np.testing.assert_array_equal(ds.log_density, gm.score_samples(X))


def test_fields_keep_their_dims_and_coords(tmp_path):
    rng = np.random.default_rng(0)
    shape = (6, 8, 10)
    ds = xr.Dataset(
        {name: (("time", "lat", "lon"), rng.normal(size=shape)) for name in ("a", "b")},
        coords={"lat": np.linspace(-40, 40, 8), "depth": ("lat", np.arange(8.0))},
    )
    ds.chunk(time=2, lat=4).to_zarr(tmp_path / "ds.zarr")
    gm = GaussianMixture(3, random_state=0).fit(ds)
    write_predictions(open_samples(tmp_path / "ds.zarr"), gm._components(), (LABELS, PROBA), str(tmp_path / "o.zarr"))
    out = xr.open_zarr(tmp_path / "o.zarr").load()
    xr.testing.assert_equal(out.labels, gm.predict(ds).astype("int32"))
    assert out.proba.dims == ("time", "lat", "lon", "component")
    xr.testing.assert_equal(out.proba, gm.predict_proba(ds))


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [0, 1, 7, 19])
def test_a_killed_run_does_not_open_and_the_same_call_completes_it(store, tmp_path, monkeypatch, at):
    path, X, gm = store
    target = tmp_path / "out.zarr"
    written = []
    original = daskgmm.prediction.write._write

    def killed(path, name, block, result):
        if len(written) == 3 * at + 1:  # between two arrays of a block
            raise _Killed
        written.append((name, block.index))
        original(path, name, block, result)

    monkeypatch.setattr(daskgmm.prediction.write, "_write", killed)
    with dask.config.set(scheduler="synchronous"), pytest.raises(_Killed):
        write(path, gm, target)
    with pytest.raises(FileNotFoundError):
        zarr.open_group(target, mode="r")
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(target)

    monkeypatch.setattr(daskgmm.prediction.write, "_write", lambda *args: (written.append(args[1:2]), original(*args)))
    before = len(written)
    write(path, gm, target)
    assert len(written) - before == 3 * (20 - at)  # blocks that were complete are not written again
    np.testing.assert_array_equal(xr.open_zarr(target).labels, gm.predict(X))


def test_an_unfinished_output_of_another_model_is_refused(store, tmp_path, monkeypatch):
    path, X, gm = store
    target = tmp_path / "out.zarr"

    def killed(*_):
        raise _Killed

    with monkeypatch.context() as patched:
        patched.setattr(daskgmm.prediction.write, "gather", killed)
        with pytest.raises(_Killed):
            write(path, gm, target)
    other = GaussianMixture(3, random_state=0).fit(X)
    with pytest.raises(FileExistsError, match="begun with other data or another model"):
        write(path, other, target)
    write(path, other, target, overwrite=True)
    assert xr.open_zarr(target).sizes["component"] == 3


def test_existing_output_and_foreign_files_are_refused_and_kept(store, tmp_path):
    path, _, gm = store
    target = tmp_path / "out.zarr"
    write(path, gm, target)
    with pytest.raises(FileExistsError, match="exists: choose another path"):
        write(path, gm, target)
    for foreign in ("notes.txt", "labels/notes.txt", "labels/c/5/notes"):
        file = target / foreign
        saved = None
        if file.parent.is_file():
            saved = file.parent.read_bytes()
            file.parent.unlink()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
        with pytest.raises(FileExistsError, match="did not write"):
            write(path, gm, target, overwrite=True)
        assert file.read_text() == "mine"
        file.unlink()
        if saved is not None:
            file.parent.rmdir()
            file.parent.write_bytes(saved)
    write(path, gm, target, overwrite=True)


def test_data_that_are_refused_leave_nothing_behind(store, tmp_path):
    path, _, gm = store
    array = zarr.open_array(path, mode="r+")
    array[7777, 1] = np.nan
    target = tmp_path / "out.zarr"
    with pytest.raises(ValueError, match="row 7777, feature 1"):
        write(path, gm, target)
    assert not [p for p in target.rglob("*") if p.is_file()]
    write(path, gm, target, missing="drop")
    ds = xr.open_zarr(target, mask_and_scale={"labels": False})  # whose missing value is -1
    assert int(ds.labels[7777]) == -1
    assert np.isnan(ds.log_density[7777])
    assert np.isnan(ds.proba[7777]).all()
    assert (ds.labels == -1).sum() == 1


def test_a_run_killed_by_the_system_is_completed_by_the_same_command(tmp_path):
    rng = np.random.default_rng(0)
    n = 600_000
    array = zarr.create_array(tmp_path / "x.zarr", shape=(n, 8), chunks=(20_000, 8), dtype="f4")
    array[:] = rng.normal(size=(n, 8)) + rng.integers(2, size=(n, 1)) * 5
    gm = GaussianMixture(2, random_state=0, subsample=5000).fit(array)
    gm.save(tmp_path / "m.zarr")
    target = tmp_path / "out.zarr"
    command = [sys.executable, "-m", "daskgmm.cli", "predict", "m.zarr", "x.zarr", "--output", "out.zarr"]
    process = subprocess.Popen([*command, "--workers", "0"], cwd=tmp_path, stderr=subprocess.PIPE)
    while process.poll() is None and not list(target.glob("labels/c/*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stderr is not None
    process.stderr.close()
    if not (target / "zarr.json").exists():  # it may have been faster
        with pytest.raises(FileNotFoundError):
            zarr.open_group(target, mode="r")
        subprocess.run([*command, "--workers", "0"], cwd=tmp_path, check=True, capture_output=True)
    np.testing.assert_array_equal(xr.open_zarr(target).labels, gm.predict(array[:]))
    assert not [name for name in os.listdir(target) if name == "daskgmm.json" or "partial" in name]
