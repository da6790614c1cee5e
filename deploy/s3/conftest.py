"""moto's server, the proxy in front of it, two worker processes, and one store on disk and in the bucket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import botocore.session
import numpy as np
import pytest
import s3fs
import zarr
from distributed import Client, LocalCluster

import daskgmm.data.blocks
from daskgmm import GaussianMixture, load, open_samples
from daskgmm.prediction.predict import LABELS
from daskgmm.prediction.write import write_predictions

sys.path.insert(0, str(Path(__file__).parents[1]))

from proxy import Proxy
from walking import free_port, until

BUCKET = "bucket"
N_CHUNKS, N_BLOCKS = 24, 12
ROWS = 24_000
_SMALL = {"BLOCK_VALUES": 6000, "_REGION_VALUES": 3000}
PASSES = 4  # of EM, over all of the data
OPTIONS = {"random_state": 0, "subsample": 2000, "persist": False, "tol": 0, "max_iter": PASSES}
FIT = ("--components", 3, "--subsample", 2000, "--stream", "--tol", 0, "--max-iter", PASSES)
_COMMAND = f"""
import daskgmm.fitting.checkpoint, daskgmm.data.blocks
daskgmm.fitting.checkpoint._INTERVAL = 0  # each pass is kept
vars(daskgmm.data.blocks).update({_SMALL})
from daskgmm.cli import main
main()
"""


_started: list[subprocess.Popen[str]] = []


def pytest_configure() -> None:
    """What ends all, ends all that was started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def proxy() -> Iterator[Proxy]:
    """In front of a store; the environment says where, and with which credentials."""
    port = free_port()
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        proxy = Proxy(port)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "not-to-be-seen",
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ALLOW_HTTP": "true",  # obstore's
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
        }
        s3 = botocore.session.get_session().create_client("s3")
        until(lambda: _made(s3), "moto's server", 60)
        yield proxy
        proxy.shutdown()
    finally:
        server.kill()
        server.wait()


def _made(s3: Any) -> bool:
    try:
        s3.create_bucket(Bucket=BUCKET)
    except Exception:  # it does not answer yet
        return False
    return True


@pytest.fixture(scope="session")
def client(proxy: Proxy) -> Iterator[Client]:
    """Of two worker processes, which know of the store what their environment says."""
    with LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        yield client
        for process in _started:
            process.kill()
            process.wait()


def small(patch: pytest.MonkeyPatch) -> None:
    for name, values in _SMALL.items():
        patch.setattr(daskgmm.data.blocks, name, values)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)


@pytest.fixture(scope="session")
def rows() -> Any:
    """Of three features, in three groups that overlap."""
    rng = np.random.default_rng(0)
    groups = rng.normal(size=(3, 3))[rng.integers(0, 3, ROWS)]
    return (groups * 2 + rng.normal(size=(ROWS, 3))).astype("float32")


@pytest.fixture(scope="session")
def local(rows: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("local") / "x.zarr"
    zarr.create_array(path, data=rows, chunks=(ROWS // N_CHUNKS, 3))
    return path


@pytest.fixture(scope="session")
def remote(rows: Any, proxy: Proxy) -> str:
    url = f"s3://{BUCKET}/x.zarr"
    zarr.create_array(url, data=rows, chunks=(ROWS // N_CHUNKS, 3))
    return url


@pytest.fixture(scope="session")
def expected(local: Path, client: Client) -> dict[str, Any]:
    """Of a fit and a prediction, from disk to disk, with nothing in the way."""
    model, labels = local.with_name("model.zarr"), local.with_name("labels.zarr")
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        fit(local).save(model)
        write_predictions(open_samples(local), load(model)._components(), (LABELS,), str(labels))
    return arrays(model) | arrays(labels)


def fit(data: Any, **options: Any) -> GaussianMixture:
    """The same as the command."""
    return GaussianMixture(3, **{**OPTIONS, **options}).fit(data)


def arrays(group: Any) -> dict[str, Any]:
    """All of a group, as it is stored."""
    return {name: array[...] for name, array in zarr.open_group(group, mode="r").arrays()}


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every array that was found is as expected, to the bit."""
    assert found
    for name, array in found.items():
        assert array.dtype == expected[name].dtype, name
        assert array.tolist() == expected[name].tolist(), name


@contextmanager
def on_workers(client: Client, **environment: str | None) -> Iterator[None]:
    """Have workers find another environment when they come to the store next; None: nothing of that name."""
    before = {name: os.environ.get(name) for name in environment}
    client.run(_update, environment)
    try:
        yield
    finally:
        client.run(_update, before)


def _update(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    s3fs.S3FileSystem.clear_instance_cache()


def begun(client: Client, *arguments: Any) -> subprocess.Popen[str]:
    """A command on the workers, in blocks as small as the others."""
    words = [sys.executable, "-c", _COMMAND, *map(str, arguments), "--scheduler", client.scheduler.address]
    _started.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return _started[-1]


def command(client: Client, *arguments: Any) -> str:
    """What a command that succeeds prints."""
    return ended(begun(client, *arguments))


def ended(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out
