"""The process that drives a fit is killed: the same call goes on, and ends with the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from length import at_length


@pytest.mark.parametrize("n", [2, pytest.param(at_length(50), marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_same_call_ends_with_the_same_bits(n: int, tmp_path: Path) -> None:
    """At most one pass is lost."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 3))[rng.integers(0, 3, 12_000)] * 2 + rng.normal(size=(12_000, 3))
    zarr.create_array(str(tmp_path / "x.zarr"), data=rows, chunks=(500, 3))
    (tmp_path / "fits").mkdir()
    script = Path(__file__).with_name("driver.py")
    command = [sys.executable, str(script), str(tmp_path / "x.zarr"), str(tmp_path / "fits"), str(n), str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == n, done.stderr
    assert all(line["same"] for line in lines)
    assert max(line["lost"] for line in lines) <= 1
