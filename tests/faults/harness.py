"""Schedulers and workers as processes of their own on 127.0.0.1, to be killed, stopped and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import daskgmm

HERE = Path(__file__).parent
PATHS = [str(Path(daskgmm.__file__).parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(PATHS),
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
}
Process = subprocess.Popen[bytes]


def until(condition: Callable[[], Any], seconds: float = 60, step: float = 0.02) -> Any:
    """Wait for something that is to become true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(step)
    return value


class Cluster:
    """A scheduler, and workers without nannies; as a context, all of them end with it."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None, **faults: Any) -> None:
        self._file = folder / f"scheduler-{id(self)}.json"
        self._faults = {f"FAULTY_{name.upper()}": str(value) for name, value in faults.items()}
        self._environment = {**ENVIRONMENT, **(environment or {}), **self._faults}
        self.workers: list[Process] = []
        self._names: dict[Process, str] = {}
        self.scheduler = self._start("scheduler", "--scheduler-file", str(self._file), "--port", "0")
        until(self._file.exists)
        self.address: str = until(self._address)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for process in [*self.workers, self.scheduler]:
            kill(process)

    def add(self, n: int = 1, threads: int = 1, *options: str) -> list[Process]:
        """More workers, on their way."""
        preload = ("--preload", str(HERE / "faulty.py")) if self._faults else ()
        common = ("--nthreads", str(threads), "--memory-limit", "1GiB", "--death-timeout", "30", *preload, *options)
        nanny = () if "--nanny" in options else ("--no-nanny",)
        names = [str(len(self._names) + i) for i in range(n)]
        new = [self._start("worker", self.address, "--name", name, *common, *nanny) for name in names]
        self._names.update(zip(new, names, strict=True))
        self.workers += new
        return new

    def working(self, client: Any) -> list[Process]:
        """Workers of which the scheduler knows."""
        known = {str(worker["name"]) for worker in client.scheduler_info(n_workers=-1)["workers"].values()}
        return [worker for worker in self.workers if self._names[worker] in known]

    def kill(self, *workers: Process) -> None:
        for worker in workers:
            kill(worker)
            self.workers.remove(worker)

    def kill_all(self) -> None:
        self.kill(*self.workers)

    def _start(self, what: str, *options: str) -> Process:
        command = [sys.executable, "-m", "dask", what, "--host", "127.0.0.1", "--no-dashboard", *options]
        return subprocess.Popen(
            command,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=None if "FAULTS_LOUD" in os.environ else subprocess.DEVNULL,
            start_new_session=True,
        )

    def _address(self) -> str | None:
        try:
            return str(json.loads(self._file.read_text())["address"])
        except ValueError:  # half written
            return None


def kill(process: Process) -> None:
    """With all that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def meanwhile(action: Callable[[], Any], every: float, times: int = 10**6) -> Iterator[list[float]]:
    """Do something again and again; yields when it was done."""
    done: list[float] = []
    ended = threading.Event()

    def loop() -> None:
        while len(done) < times and not ended.wait(every):
            action()
            done.append(time.monotonic())

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield done
    finally:
        ended.set()
        thread.join()
