"""What the walks through schedulers share: samples, processes that end with the walk, and what a fit left."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import zarr

from daskgmm import stages

T = TypeVar("T")
MAX_ITER = 40
N_COMPONENTS = 8
# Passes that are of one kind and long enough to be interrupted, and always as many.
OPTIONS: dict[str, Any] = {
    "accelerate": False,
    "max_iter": MAX_ITER,
    "persist": False,
    "subsample": 2000,
    "tol": 0.0,
}
_BEFORE_A_KILL = 4  # passes that are kept


class Walk:
    """A folder, an environment, and processes on loopback, each the head of its group."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment}
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Walk:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for log in sorted(self.folder.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
        found = [child for child in psutil.Process().children(recursive=True) if child.is_running()]
        for end in ("terminate", "kill"):
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    getattr(process, end)()
            _, found = psutil.wait_procs(found, timeout=10)

    def start(self, *command: str, cwd: Path | None = None) -> psutil.Process:
        """A process beside this one, with its log in the folder."""
        log = self.folder / f"{len(self._started):02d}-{Path(command[0]).name}-{command[1]}.log"
        with open(log, "wb") as out:
            started = subprocess.Popen(
                command, cwd=cwd or self.folder, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )
        self._started.append(started)
        return psutil.Process(started.pid)

    def run(self, *command: str, cwd: Path | None = None, timeout: float = 240) -> str:
        """What a command prints; it must succeed."""
        ended = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}")
        return ended.stdout


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def until(look: Callable[[], T | None], what: str, seconds: float = 120) -> T:
    """What a look finds as soon as it finds something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.2)
    raise TimeoutError(f"not seen in {seconds:.0f} s: {what}")


def build_samples(path: Path) -> str:
    """1,000,000 rows of eight features in eight groups that overlap, in chunks of 50,000 rows."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(8, 8))
    store = zarr.create_array(str(path), shape=(1_000_000, 8), chunks=(50_000, 8), dtype="float32")
    for first in range(0, 1_000_000, 50_000):
        groups = rng.integers(0, 8, 50_000)
        store[first : first + 50_000] = means[groups] + rng.normal(size=(50_000, 8), scale=0.7)
    return str(path)


def undisturbed(store: str, folder: Path) -> str:
    """The digest of a model and labels that nothing happened to, from threads of this process."""
    here = stages.Place(workers=0)
    model = stages.fit(store, f"{folder}/model.zarr", n_components=N_COMPONENTS, place=here, **OPTIONS)
    stages.predict(model.output, store, f"{folder}/labels.zarr", place=here)
    return digest(folder)


def digest(folder: Path) -> str:
    """Of each array of the model and of the labels."""
    found = hashlib.sha256()
    for name in ("model", "labels"):
        group = zarr.open_group(str(folder / f"{name}.zarr"), mode="r")
        for key, array in sorted(group.arrays()):
            found.update(f"{key} {array.shape} {array.dtype}".encode())
            found.update(repr(array[...].tolist()).encode() if array.dtype.kind not in "if" else array[...].tobytes())
    return found.hexdigest()


def kept(folder: Path) -> int:
    """Passes over the data that are in the checkpoint."""
    found = (
        re.match(r"em-(\d+)-[0-9a-f]+\.safetensors$", p.name) for p in (folder / "model.zarr.checkpoint").glob("*")
    )
    return max((int(match[1]) for match in found if match), default=0)


def mid_fit(folder: Path) -> int:
    """Wait until some passes are kept, and others are to come."""
    found = until(lambda: (n := kept(folder)) >= _BEFORE_A_KILL and n, "passes in the checkpoint")
    if found >= MAX_ITER:
        raise RuntimeError(f"all {found} passes were done before anything could be killed: use more rows")
    return int(found)


def passes(log: str) -> list[int]:
    """Of the data, in a log, in its order."""
    return [int(number) for number in re.findall(r"EM on the data, pass (\d+) of", log)]


def check_resumed(log: str, before: int) -> str:
    """The last attempt of a log did the passes after those that were kept, and no others; says so."""
    now = passes(log.rpartition("the state of the fit is kept in")[2])
    if now != list(range(before + 1, MAX_ITER + 1)):
        raise AssertionError(f"{before} passes were kept, and then were done: {now}")
    return f"resumed after pass {before} of {MAX_ITER}"


def of_dask(root: psutil.Process) -> list[psutil.Process]:
    """Schedulers and workers that a process started, in the order of their start."""
    found = []
    for process in root.children(recursive=True):
        try:
            if "spec" in process.cmdline() and "dask" in " ".join(process.cmdline()[:4]):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return sorted(found, key=lambda process: process.create_time())
