"""Workers of Dask's use freed memory again: its default has each large buffer mapped, and cleared, anew."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

_FAULTS = """
import resource, sys
from daskgmm.data.open import open_samples
from daskgmm.passes import gather

samples = open_samples(sys.argv[1])
read = lambda block, pieces: sum(x.nbytes for x, _ in pieces)
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    decoded = sum(gather(samples, read))
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / decoded)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other limits")
def test_a_second_pass_clears_no_memory(tmp_path: Path) -> None:
    layout = {"chunks": (2**14, 16), "shards": (2**17, 16), "dtype": "float32"}
    array = zarr.create_array(tmp_path / "data.zarr", shape=(2**19, 16), **layout)
    array[:] = np.random.default_rng(0).normal(size=array.shape)
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}  # as Dask's nannies set it
    command = [sys.executable, "-c", _FAULTS, str(tmp_path / "data.zarr")]
    cleared = float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert cleared < 0.5  # bytes for each byte that is decoded: without, more than 2
