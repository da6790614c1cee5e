"""Workers of Dask's use freed memory again: its default has each large buffer mapped, and cleared, anew."""

from __future__ import annotations

import platform
import resource
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster

import daskgmm.process
from daskgmm.data.open import open_samples
from daskgmm.passes.cluster import workers
from daskgmm.passes.graph import gather
from daskgmm.passes.reader import Reader

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other limits")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("allocation") / "data.zarr"
    layout: dict[str, Any] = {"chunks": (2**14, 16), "shards": (2**17, 16), "dtype": "float32"}
    array = zarr.create_array(path, shape=(2**19, 16), **layout)
    array[:] = np.random.default_rng(0).normal(size=array.shape)
    return path


def test_a_second_pass_clears_no_memory(store: Path) -> None:
    def read(block: Any, pieces: Any) -> int:
        return sum(x.nbytes for x, _ in pieces)

    def cleared() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt * resource.getpagesize()

    samples = open_samples(store)
    with workers(None, 1, "1GiB") as client:
        gather(Reader(samples), read)
        (before,) = client.run(cleared).values()
        decoded = sum(gather(Reader(samples), read))
        (after,) = client.run(cleared).values()
    assert after - before < decoded  # without, more than twice as much


@pytest.mark.parametrize(("memory", "left"), [("384MiB", True), ("1GiB", False)])
def test_workers_with_little_memory_keep_dasks_limits(memory: str, left: bool, store: Path) -> None:
    """As they give back at once what is freed, which there is no room for."""

    def found(block: Any, pieces: Any) -> bool:
        return daskgmm.process._mallopt() is None

    with workers(None, 1, memory):
        assert set(gather(Reader(open_samples(store)), found)) == {left}


@pytest.mark.parametrize("threads", [True, False], ids=["a worker without a nanny", "no worker"])
def test_a_process_that_did_not_start_with_dasks_limits_is_left_alone(
    threads: bool, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")  # as a nanny leaves it in its own process
    with mock.patch.object(daskgmm.process, "ctypes") as ctypes:
        if threads:
            with LocalCluster(1, processes=False, dashboard_address=None) as cluster, Client(cluster):
                gather(Reader(open_samples(store)), lambda block, pieces: None)
        else:
            gather(Reader(open_samples(store)), lambda block, pieces: None)
    assert not ctypes.CDLL.return_value.mallopt.called
