"""What is written is complete and right, or clearly unfinished: whatever kills the writer, however full the disk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr
from length import at_length

import daskgmm.data.retry
import daskgmm.prediction.write
import daskgmm.storage.groups
from daskgmm import GaussianMixture, load, open_samples
from daskgmm.prediction.predict import LABELS, LOG_DENSITY, PROBA
from daskgmm.prediction.write import write_predictions, write_samples
from daskgmm.storage.groups import Target

Array = npt.NDArray[np.float64]
LAYOUTS: dict[str, dict[str, Any]] = {
    "unaligned": {"chunks": (700, 3)},
    "sharded": {"chunks": (250, 3), "shards": (1000, 3)},
}


@pytest.fixture(autouse=True)
def _small_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskgmm.data.blocks.BLOCK_VALUES", 2000)
    monkeypatch.setattr(daskgmm.data.retry, "_PAUSES", (0.0,))


@pytest.fixture(scope="module")
def rows() -> Array:
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(size=(5000, 3)), rng.normal(size=(5000, 3)) + 3])


@pytest.fixture(scope="module")
def model(rows: Array) -> GaussianMixture:
    return GaussianMixture(2, random_state=0, subsample=2000).fit(rows)


def stored(rows: Array, path: Path, layout: str) -> Path:
    zarr.create_array(path, data=rows, **LAYOUTS[layout])
    return path


def write(store: Path, model: GaussianMixture, target: Path) -> None:
    write_predictions(open_samples(store), model._components(), (LABELS, PROBA), str(target), origin="x")


def unfinished(target: Path) -> bool:
    """Does nobody take it for a group?"""
    for opened in (zarr.open_group, xr.open_zarr):
        try:
            opened(target, mode="r") if opened is zarr.open_group else opened(target)
        except FileNotFoundError:
            continue
        return False
    return True


def right(target: Path, model: GaussianMixture, rows: Array, tidy: bool = True) -> None:
    with xr.open_zarr(target) as ds:
        np.testing.assert_array_equal(ds.labels, model.predict(rows))
        np.testing.assert_array_equal(ds.proba, model.predict_proba(rows))
    left = {path.name for path in target.rglob("*") if "partial" in path.name or path.name == "daskgmm.json"}
    assert left <= (set() if tidy else {"daskgmm.json"})  # which is the last to go


# Killed


class Killer:
    """Runs and kills predictions."""

    def __init__(self, model: Path) -> None:
        program = Path(__file__).with_name("killed.py")
        code = f"import daskgmm.data.blocks as b; b.BLOCK_VALUES = 2000; exec(open({str(program)!r}).read())"
        command = [sys.executable, "-c", code, str(model)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, store: Path, target: Path, n: int) -> tuple[int, int]:
        """The signal that ended a run, and how many changes it made if none did."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([str(store), str(target), n]), file=self.process.stdin, flush=True)
        signal, count = json.loads(self.process.stdout.readline())
        return signal, count

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def killer(model: GaussianMixture, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    path = tmp_path_factory.mktemp("killed") / "m.zarr"
    model.save(path)
    killer = Killer(path)
    yield killer
    killer.close()


def kill_and_run_again(
    killer: Killer, store: Path, moments: int, model: GaussianMixture, rows: Array, folder: Path
) -> None:
    signal, changes = killer(store, folder / "whole.zarr", 0)
    assert signal == 0
    right(folder / "whole.zarr", model, rows)
    # The first changes, the last and others between: the threads of each run come in an order of their own.
    for n in np.unique(np.linspace(1, changes, moments).astype(int)):
        target = folder / f"{n}.zarr"
        for moment in (int(n), int(n) // 2):  # and the run that goes on is killed too
            signal, made = killer(store, target, moment)
            assert signal == 9 or made < moment or moment == 0
            if complete := (target / "zarr.json").exists():
                right(target, model, rows, tidy=signal == 0)
                break
            assert signal == 9
            assert unfinished(target)
        if not complete:
            write(store, model, target)
            right(target, model, rows)


def test_a_run_that_is_killed_is_unfinished_and_the_next_completes_it(
    killer: Killer, model: GaussianMixture, rows: Array, tmp_path: Path
) -> None:
    kill_and_run_again(killer, stored(rows, tmp_path / "x.zarr", "unaligned"), 3, model, rows, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_of_any_layout_is_right(
    layout: str, model: GaussianMixture, rows: Array, tmp_path: Path
) -> None:
    write(stored(rows, tmp_path / "x.zarr", layout), model, tmp_path / "out.zarr")
    right(tmp_path / "out.zarr", model, rows)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_at_twenty_moments(layout: str, killer: Killer, model: GaussianMixture, rows: Array, tmp_path: Path) -> None:
    kill_and_run_again(killer, stored(rows, tmp_path / "x.zarr", layout), at_length(20), model, rows, tmp_path)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("complete", [True, False])
def test_a_run_that_is_killed_while_it_replaces_another_is_completed(
    complete: bool, model: GaussianMixture, rows: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any number of deletions."""
    store, other = stored(rows, tmp_path / "x.zarr", "unaligned"), GaussianMixture(1).fit(rows[:100])
    for survived in range(0, 30, 9):
        target = tmp_path / f"{survived}.zarr"
        write(store, other, target)
        if not complete:
            manifest = json.loads((target / "zarr.json").read_text())["attributes"]["daskgmm"]
            (target / "daskgmm.json").write_text(manifest)
            (target / "zarr.json").unlink()
        with monkeypatch.context() as patch:
            patch.setattr(os, "remove", _limited(os.remove, survived))
            patch.setattr(os, "unlink", _limited(os.unlink, survived))
            with pytest.raises(_Killed):
                write_predictions(
                    open_samples(store), model._components(), (LABELS, PROBA), str(target), origin="x", overwrite=True
                )
        write_predictions(
            open_samples(store), model._components(), (LABELS, PROBA), str(target), origin="x", overwrite=True
        )
        right(target, model, rows)


def _limited(action: Callable[..., Any], n: int) -> Callable[..., Any]:
    left = iter(range(n))

    def limited(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            raise _Killed
        return action(*args, **kwargs)

    return limited


def test_a_manifest_that_was_never_whole_is_nothing(model: GaussianMixture, rows: Array, tmp_path: Path) -> None:
    target = tmp_path / "out.zarr"
    target.mkdir()
    (target / "daskgmm.json.00ff.partial").write_bytes(b'{"kind"')
    write(stored(rows, tmp_path / "x.zarr", "sharded"), model, target)
    right(target, model, rows)


def test_a_chunk_that_a_machine_lost_when_it_stopped_is_written_again(
    model: GaussianMixture, rows: Array, tmp_path: Path
) -> None:
    """Its name was there, its content was not."""
    store, target = stored(rows, tmp_path / "x.zarr", "unaligned"), tmp_path / "out.zarr"
    write(store, model, target)
    manifest = json.loads((target / "zarr.json").read_text())["attributes"]["daskgmm"]
    (target / "daskgmm.json").write_text(manifest)
    (target / "zarr.json").unlink()
    (target / "labels/c/3").write_bytes(b"")
    write(store, model, target)
    right(target, model, rows)


def test_what_is_published_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before it has its name, and its name before anybody is told."""
    done: list[str] = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("named"), replace(a, b)))
    monkeypatch.setattr(os, "fsync", lambda f: (done.append("folder" if os.path.isdir(f) else "file"), fsync(f)))
    monkeypatch.setattr(os.path, "isdir", lambda f: os.stat(f).st_mode & 0o170000 == 0o040000)
    Target.at(str(tmp_path / "g")).write("a/zarr.json", b"{}")
    assert done == ["file", "named", "folder"]


# A full disk

WRITERS: dict[str, Callable[[GaussianMixture, Path, Path], None]] = {
    "predict": lambda model, store, target: write_predictions(
        open_samples(store), model._components(), (LABELS, PROBA, LOG_DENSITY), str(target), origin="x"
    ),
    "sample": lambda model, _, target: write_samples(model._fitted(), model._parameters(), 10_000, 3, str(target)),
    "save": lambda model, _, target: model.save(target),
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_said_and_when_there_is_room_the_same_call_ends(
    writer: str, model: GaussianMixture, rows: Array, tmp_path: Path, disk: Path
) -> None:
    store, target = stored(rows, tmp_path / "x.zarr", "unaligned"), disk / "out.zarr"
    (disk / "filler").write_bytes(bytes(disk_free(disk) - (2**14 if writer == "save" else 2**16)))
    with pytest.raises(
        OSError, match=r"^cannot write .* (of|in) '.*out\.zarr' \(.*No space left.*\): make space"
    ) as caught:
        WRITERS[writer](model, store, target)
    assert "\n" not in str(caught.value)
    assert unfinished(target)
    (disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
    WRITERS[writer](model, store, target)
    WRITERS[writer](model, store, tmp_path / "calm.zarr")
    assert files(target) == files(tmp_path / "calm.zarr")


def disk_free(path: Path) -> int:
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_bsize


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("n", [0, 1, 7, 15])
def test_a_disk_that_is_full_after_so_many_blocks(
    n: int, model: GaussianMixture, rows: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, target = stored(rows, tmp_path / "x.zarr", "sharded"), tmp_path / "out.zarr"
    put, left = daskgmm.prediction.write._put, iter(range(n))

    def full(*args: Any) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(*args)

    with monkeypatch.context() as patch:
        patch.setattr(daskgmm.prediction.write, "_put", full)
        with pytest.raises(OSError, match=r"^cannot write block \d+ of '\w+' in '.*out\.zarr' \(.*No space left"):
            write(store, model, target)
    assert unfinished(target)
    write(store, model, target)
    right(target, model, rows)


def test_writes_that_fail_once_change_nothing(
    model: GaussianMixture, rows: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of blocks, and of metadata."""
    rng, put, pipe = (
        np.random.default_rng(0),
        daskgmm.prediction.write._put,
        daskgmm.storage.groups.LocalFileSystem.pipe_file,
    )

    def flaky(action: Callable[..., Any]) -> Callable[..., Any]:
        failed: set[str] = set()

        def once(*args: Any) -> Any:
            if rng.random() < 0.3 and (key := str(args[:2])) not in failed:
                failed.add(key)
                raise ConnectionResetError("the other side has gone")
            return action(*args)

        return once

    monkeypatch.setattr(daskgmm.data.retry, "_PAUSES", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(daskgmm.prediction.write, "_put", flaky(put))
    monkeypatch.setattr(daskgmm.storage.groups.LocalFileSystem, "pipe_file", flaky(pipe))
    write(stored(rows, tmp_path / "x.zarr", "unaligned"), model, tmp_path / "out.zarr")
    right(tmp_path / "out.zarr", model, rows)


def test_a_model_survives_a_failed_attempt_to_replace_it(
    model: GaussianMixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written leaves an unfinished model, which the next attempt completes without being told to."""
    path = tmp_path / "m.zarr"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for key in ("weights/c/0", "zarr.json"):
        with monkeypatch.context() as patch:
            write = Target.write
            patch.setattr(Target, "write", lambda t, k, d, key=key, write=write: full() if k == key else write(t, k, d))
            with pytest.raises(OSError, match="No space left"):
                model.save(path, overwrite=True)
        assert unfinished(path)
        model.save(path)
        assert np.array_equal(load(path).means_, model.means_)
