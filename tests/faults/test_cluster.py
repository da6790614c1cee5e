"""A cluster whose processes die: the bits of an undisturbed fit, or a named error within a bound."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import pytest
import zarr
from click.testing import CliRunner
from distributed import Client, LocalCluster, Status, wait
from distributed.chaos import KillWorker
from harness import ENVIRONMENT, HERE, Cluster, kill, meanwhile, until

import daskgmm.data.blocks
import daskgmm.fitting.checkpoint
from daskgmm import GaussianMixture
from daskgmm.cli import main

PASSES = 20
FITTED = ("weights_", "means_", "covariances_", "lower_bounds_", "n_passes_")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One wide heap of rows, in which EM goes on for long."""
    path: Path = tmp_path_factory.mktemp("data") / "x.zarr"
    zarr.create_array(str(path), data=np.random.default_rng(0).normal(size=(2400, 3)), chunks=(200, 3))
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """12 blocks, a tree of two levels; a checkpoint of each pass."""
    monkeypatch.setattr(daskgmm.data.blocks, "BLOCK_VALUES", 600)
    monkeypatch.setattr(daskgmm.data.blocks, "_REGION_VALUES", 600)
    monkeypatch.setattr(daskgmm.fitting.checkpoint, "_INTERVAL", 0)
    with dask.config.set({"distributed.comm.timeouts.connect": "5s"}):
        yield


@pytest.fixture(scope="module")
def undisturbed() -> dict[Any, GaussianMixture]:
    return {}


def fit(store: Path, **options: Any) -> GaussianMixture:
    defaults = {"random_state": 0, "subsample": 1000, "tol": 0, "max_iter": PASSES, "persist": False}
    return GaussianMixture(3, **{**defaults, **options}).fit(zarr.open_array(str(store), mode="r"))


@pytest.fixture
def assert_same(store: Path, small: None, undisturbed: dict[Any, GaussianMixture]) -> Callable[..., None]:
    def check(found: GaussianMixture) -> None:
        if not undisturbed:
            undisturbed[0] = fit(store)
        for name in FITTED:
            assert np.array_equal(getattr(found, name), getattr(undisturbed[0], name)), name
        assert found.n_iter_ == PASSES

    return check


@contextmanager
def connected(cluster: Cluster, workers: int) -> Iterator[Client]:
    client = Client(cluster.address)
    try:
        client.wait_for_workers(workers, timeout=60)
        yield client
    finally:
        client.close(timeout=2)


def at_pass(n: int, action: Callable[[], Any]) -> Callable[[Any], None]:
    """A callback that does something once, after the n-th pass of EM over the data."""
    seen = []

    def watch(info: Any) -> None:
        if info.stage == "data":
            seen.append(info)
        if len(seen) == n:
            seen.append(None)
            action()

    return watch


def replaced(cluster: Cluster, n: int) -> Callable[[], None]:
    """Start workers for those that have ended."""

    def action() -> None:
        cluster.workers = [worker for worker in cluster.workers if worker.poll() is None]
        cluster.add(max(0, n - len(cluster.workers)))

    return action


# Workers die


def test_a_worker_killed_in_a_pass(store: Path, tmp_path: Path, assert_same: Callable[..., None]) -> None:
    with Cluster(tmp_path, seconds=0.01) as cluster:
        cluster.add(2)
        with connected(cluster, 2):
            disturb = at_pass(2, lambda: threading.Timer(0.03, cluster.kill, cluster.workers[:1]).start())
            assert_same(fit(store, callbacks=[disturb]))
            assert len(cluster.workers) == 1


@pytest.mark.slow
def test_a_worker_killed_in_every_other_pass(store: Path, tmp_path: Path, assert_same: Callable[..., None]) -> None:
    """Any that has come, be it the only one; another is started for it."""
    with Cluster(tmp_path, seconds=0.05) as cluster:
        cluster.add(4)
        with connected(cluster, 4) as client:
            killed = []

            def disturb() -> None:
                killed.append(random.choice(until(lambda: cluster.working(client))))
                cluster.kill(killed[-1])
                cluster.add()

            def watch(info: Any) -> None:
                if info.stage == "data" and info.n_iter % 2:
                    threading.Timer(random.uniform(0, 0.1), disturb).start()

            found = fit(store, callbacks=[watch])
            assert len(killed) >= PASSES // 2
        assert_same(found)


@pytest.mark.slow
@pytest.mark.parametrize("many", [True, False])
def test_a_worker_that_freezes(many: bool, store: Path, tmp_path: Path, assert_same: Callable[..., None]) -> None:
    """It holds what it has and answers nothing: the scheduler gives it up after its ``worker-ttl``."""
    with Cluster(tmp_path, {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "3s"}, seconds=0.02) as cluster:
        cluster.add(1 + many)
        with connected(cluster, 1 + many):

            def disturb() -> None:
                cluster.workers[0].send_signal(signal.SIGSTOP)
                cluster.add(not many)

            assert_same(fit(store, callbacks=[at_pass(5, disturb)]))


@pytest.mark.slow
def test_paused_workers(store: Path, tmp_path: Path, assert_same: Callable[..., None]) -> None:
    """As where memory is nearly full: one, then all for two seconds."""

    def to(status: str, dask_worker: Any) -> None:
        dask_worker.monitor_paused = None
        dask_worker.memory_manager.memory_pause_fraction = False  # which would let it go on
        dask_worker.status = Status[status]

    with Cluster(tmp_path, seconds=0.02) as cluster:
        cluster.add(2)
        with connected(cluster, 2) as client:

            def pause(n: int) -> None:
                client.run(to, "paused", workers=list(client.scheduler_info(n_workers=-1)["workers"])[:n])

            def resume() -> None:
                client.run(to, "running")

            def pause_all() -> None:
                pause(2)
                threading.Timer(2, resume).start()

            assert_same(fit(store, callbacks=[at_pass(4, lambda: pause(1)), at_pass(9, pause_all)]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sys.exit", "graceful", "segfault"])
def test_chaos(mode: Any, store: Path, tmp_path: Path, assert_same: Callable[..., None]) -> None:
    with Cluster(tmp_path, seconds=0.05) as cluster:
        first = cluster.add(3)
        with connected(cluster, 3) as client:
            client.register_plugin(KillWorker("3s", mode))
            with meanwhile(replaced(cluster, 3), every=0.2):
                found = fit(store)
        print(f"{sum(worker.poll() is not None for worker in first)} of the first workers ended ({mode})")
        assert any(worker.poll() is not None for worker in first)
    assert_same(found)


@pytest.mark.slow
def test_the_worker_that_holds_the_last_statistic(
    store: Path, tmp_path: Path, assert_same: Callable[..., None]
) -> None:
    killed = []
    with Cluster(tmp_path) as cluster:
        cluster.add(2)
        with connected(cluster, 2) as client:
            gather, pids = client.gather, client.run(os.getpid)

            def disturbed(futures: Any, **options: Any) -> Any:
                if len(futures) == 1 and len(killed) < 3:  # the root of a tree
                    wait(futures)
                    (holders,) = client.who_has(futures).values()
                    pids.update(client.run(os.getpid))
                    for worker in [w for w in cluster.workers if w.pid in {pids[holder] for holder in holders}]:
                        cluster.add()
                        cluster.kill(worker)
                        killed.append(worker)
                return gather(futures, **options)

            client.gather = disturbed
            assert_same(fit(store))
    print(f"{len(killed)} killed")
    assert len(killed) >= 3


@pytest.mark.slow
def test_all_workers_killed_and_back(store: Path, tmp_path: Path, assert_same: Callable[..., None]) -> None:
    with Cluster(tmp_path, seconds=0.05) as cluster:
        cluster.add(2)
        with connected(cluster, 2):

            def disturb() -> None:
                cluster.kill_all()
                threading.Timer(5, cluster.add, (2,)).start()

            assert_same(fit(store, callbacks=[at_pass(7, disturb)]))


def test_no_worker_comes_back(store: Path, tmp_path: Path) -> None:
    begin: list[float] = []
    with Cluster(tmp_path) as cluster, dask.config.set({"daskgmm.worker-timeout": "3s"}):
        cluster.add()

        def disturb() -> None:
            cluster.kill_all()
            begin.append(time.monotonic())

        with connected(cluster, 1), pytest.raises(TimeoutError, match=r"no worker came to .* in 3.00 s: start some"):
            fit(store, callbacks=[at_pass(2, disturb)])
        assert time.monotonic() - begin[0] < 10


@pytest.mark.slow
def test_a_block_that_exits_the_process(store: Path, tmp_path: Path) -> None:
    with Cluster(tmp_path, row=1500) as cluster:
        cluster.add(2)
        ended = pytest.raises(RuntimeError, match=r"block 7 \(.*\) ended each worker that ran it, at last when alone")
        with connected(cluster, 2), meanwhile(replaced(cluster, 2), every=0.1), ended:
            fit(store)


@pytest.mark.slow
def test_rows_kept_in_memory_are_lost(store: Path, tmp_path: Path, assert_same: Callable[..., None]) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.add(2)
        with connected(cluster, 2):

            def disturb() -> None:
                cluster.add()
                cluster.kill(cluster.workers[0])

            watch = [at_pass(n, disturb) for n in (3, 6, 9)]
            assert_same(fit(store, persist=True, callbacks=watch))


# The cluster changes


@pytest.mark.slow
def test_resized_between_passes(store: Path, tmp_path: Path, assert_same: Callable[..., None]) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.add()
        with connected(cluster, 1) as client:

            def grow() -> None:
                cluster.add(2)
                client.wait_for_workers(3, timeout=60)

            def shrink() -> None:
                left = client.retire_workers(list(client.scheduler_info(n_workers=-1)["workers"])[:2])
                assert len(left) == 2

            assert_same(fit(store, callbacks=[at_pass(5, grow), at_pass(12, shrink)]))
            assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1


@pytest.mark.slow
def test_adaptive_scaling(store: Path, assert_same: Callable[..., None]) -> None:
    """Workers come when there is work, and leave when there is none, as it is between passes here."""
    seen = set()
    slow = {"preload": [str(HERE / "faulty.py")], "env": {"FAULTY_SECONDS": "0.05"}}

    def watch(info: Any) -> None:
        seen.add(len(client.scheduler_info(n_workers=-1)["workers"]))
        if info.stage == "data":
            time.sleep(0.3)

    with (
        LocalCluster(0, host="127.0.0.1", threads_per_worker=1, dashboard_address=None, **slow) as cluster,
        Client(cluster) as client,
    ):
        cluster.adapt(minimum=1, maximum=3, interval="100ms", wait_count=2, target_duration="100ms")
        assert_same(fit(store, callbacks=[watch]))
    print(f"{sorted(seen)} workers")
    assert len(seen) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "threads"), [(1, 2), (2, 1)])
def test_any_workers(workers: int, threads: int, store: Path, tmp_path: Path, assert_same: Callable[..., None]) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.add(workers, threads)
        with connected(cluster, workers):
            assert_same(fit(store))


@pytest.mark.slow
def test_the_scheduler_killed(store: Path, tmp_path: Path, assert_same: Callable[..., None]) -> None:
    kept = tmp_path / "kept"
    with dask.config.set({"daskgmm.worker-timeout": "5s"}):
        with Cluster(tmp_path) as cluster:
            cluster.add(2)
            when: list[float] = []

            def disturb() -> None:
                kill(cluster.scheduler)
                when.append(time.monotonic())

            with connected(cluster, 2), pytest.raises(ConnectionError, match="does not answer: start one"):
                fit(store, checkpoint=kept, callbacks=[at_pass(8, disturb)])
            seconds = time.monotonic() - when[0]
            print(f"{seconds:.1f} s")
            assert seconds < 30
        with Cluster(tmp_path) as cluster:
            cluster.add(2)
            passes: list[Any] = []
            with connected(cluster, 2):
                assert_same(fit(store, checkpoint=kept, callbacks=[passes.append]))
    assert len(passes) <= PASSES - 7


def test_what_is_kept_does_not_grow_with_passes(store: Path) -> None:
    """No graph by the client, no span's times by a worker; nor by Dask in between."""
    kept = []

    def watch(info: Any) -> None:
        if info.stage == "data":
            (worker,) = cluster.workers.values()
            kept.append((len(client.scheduler_comm.recent_message_log), len(worker.digests_total)))

    with (
        LocalCluster(1, processes=False, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        fit(store, callbacks=[watch])
    assert max(log for log, _ in kept) <= 2
    assert kept[-1][1] <= kept[PASSES // 2][1] + 3  # some are of the first time that a thing happens


# The command is stopped


def command(store: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    """In a session of its own, as from a terminal."""
    fixed = ("--components", "3", "--tol", "0", "--max-iter", "100000", "--output", str(output))
    return subprocess.Popen(
        [sys.executable, "-m", "daskgmm.cli", "fit", str(store), *fixed, *options],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stderr is not None
    read = ""
    while not read.endswith(text):
        char = process.stderr.read(1)
        assert char, read
        read += char
    return read


@pytest.mark.parametrize(
    ("number", "group"),
    [
        (signal.SIGTERM, True),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
    ],
)
def test_stopped_with_workers_of_its_own(number: signal.Signals, group: bool, store: Path, tmp_path: Path) -> None:
    """The signal goes to the whole group, as of a terminal, or to the process alone."""
    process = command(store, tmp_path / "m.zarr", "--workers", "1", "--checkpoint", str(tmp_path / "kept"))
    read_until(process, "EM: ")
    started = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    lines = [line for line in err.splitlines() if line and "\r" not in line and "pass/s" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith(f"Stopped by {number.name}: ")
    assert out == ""
    until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in started), 10)
    assert len(started) >= 2
    assert not (tmp_path / "m.zarr").exists()
    assert list((tmp_path / "kept").glob("em-*"))


def n_tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_on_a_running_scheduler(number: signal.Signals, store: Path, tmp_path: Path) -> None:
    with Cluster(tmp_path, seconds=0.02) as cluster:
        cluster.add()
        process = command(store, tmp_path / "m.zarr", "--scheduler", cluster.address, "--stream")
        read_until(process, "EM: ")
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 128 + number
        assert f"Stopped by {number.name}: " in err.splitlines()[-1]
        assert "Traceback" not in err
        with connected(cluster, 1) as client:
            until(lambda: client.run_on_scheduler(n_tasks) == 0, 10)
        assert cluster.workers[0].poll() is None
        assert not (tmp_path / "m.zarr").exists()


@pytest.mark.slow
def test_the_worker_timeout_of_a_command(store: Path, tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        options = ("--scheduler", cluster.address, "--worker-timeout", "1s")
        process = command(store, tmp_path / "m.zarr", *options)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert f"no worker came to {cluster.address} in 1.00 s" in err


@pytest.mark.parametrize("value", ["soon", "", "0", "-1", "nan"])
def test_a_worker_timeout_is_a_time(value: str, store: Path) -> None:
    arguments = ["fit", str(store), "--components", "1", "--output", "m.zarr", "--worker-timeout", value]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert f"{value!r} is not a time" in result.stderr
