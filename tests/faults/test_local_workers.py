"""The workers that a command starts for itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr
from harness import ENVIRONMENT, until

from daskgmm.passes.cluster import workers

pytestmark = pytest.mark.slow


def test_a_scheduler_that_says_much_goes_on() -> None:
    """The warning of one lost worker names all keys that it held."""
    with workers(None, 1, "1GiB") as client:
        for _ in range(5):
            client.sync(client._run_on_scheduler, lambda: sys.stderr.write("x" * 70_000), callback_timeout=10)


def test_nothing_is_left_of_a_command_that_was_killed(tmp_path: Path) -> None:
    """By a signal that it does not see."""
    zarr.create_array(str(tmp_path / "x.zarr"), data=np.random.default_rng(0).normal(size=(2400, 3)), chunks=(100, 3))
    options = ("--components", "3", "--tol", "0", "--max-iter", "100000", "--workers", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "daskgmm.cli", "fit", str(tmp_path / "x.zarr"), *options, "--output", "m.zarr"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    read = b""
    while not read.endswith(b"EM: "):
        read += process.stderr.read(1)
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(started) >= 2
    until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in started), 20)
