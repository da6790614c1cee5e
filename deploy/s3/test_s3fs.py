"""s3:// URLs through fsspec and s3fs: the bits of a local disk, whatever the store does meanwhile."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import BUCKET, FIT, N_BLOCKS, N_CHUNKS, PASSES, arrays, begun, command, ended, fit, on_workers, same
from distributed import Client
from proxy import TRANSIENT, Proxy

from daskgmm import load, open_samples

pytestmark = pytest.mark.filterwarnings("ignore:EM did not converge")


def chunks(seen: list[tuple[str, str]], method: str, within: str) -> list[str]:
    return [path for asked, path in seen if asked == method and within in path]


def test_data_model_checkpoint_and_labels_are_those_of_a_disk(
    client: Client, remote: str, local: Path, expected: dict[str, Any], proxy: Proxy
) -> None:
    """And so are scores, and there is a report, while a tenth of the requests fail."""
    at = f"s3://{BUCKET}/failing"
    with proxy.failing(0.1) as faults:
        fit(remote, checkpoint=f"{at}/kept").save(f"{at}/model.zarr")
        model = f"{at}/model.zarr"
        of_labels = begun(client, "predict", model, remote, "--output", f"{at}/labels.zarr")
        of_scores = begun(client, "score", model, remote, "--json")
        of_report = begun(client, "report", model, remote, "--output", f"{at}/report.html")
        _, scores, _ = map(ended, (of_labels, of_scores, of_report))
    same(arrays(model), expected)
    same(arrays(f"{at}/labels.zarr"), expected)
    assert json.loads(scores) == load(local.with_name("model.zarr")).scores(open_samples(local))
    with fsspec.open(f"{at}/report.html") as page:
        assert b"</html>" in page.read()
    assert min(faults[kind] for kind in TRANSIENT) >= 5, faults
    assert faults.total() >= 40, faults


def test_a_command_that_is_killed_goes_on_from_its_checkpoint(
    client: Client, remote: str, expected: dict[str, Any], proxy: Proxy
) -> None:
    """Its process by SIGKILL, when it keeps the second pass; then the survey and those passes are not made again."""
    at = f"s3://{BUCKET}/killed"
    words = ("fit", remote, *FIT, "--checkpoint", f"{at}/kept", "--output", f"{at}/model.zarr")
    process = begun(client, *words)

    def kill(method: str, path: str) -> None:
        if method == "PUT" and "/kept/em-00000002" in path:
            process.kill()

    with proxy.watched(kill):
        assert process.wait(timeout=200) == -9
    proxy.quiet()
    with proxy.recording() as seen:
        command(client, *words)
    assert len(chunks(seen, "GET", "x.zarr/c/")) == (PASSES - 2) * N_CHUNKS
    same(arrays(f"{at}/model.zarr"), expected)


def test_a_prediction_that_is_killed_writes_only_what_is_missing(
    client: Client, remote: str, local: Path, expected: dict[str, Any], proxy: Proxy
) -> None:
    at = f"{BUCKET}/half/labels.zarr"
    words = ("predict", local.with_name("model.zarr"), remote, "--output", f"s3://{at}")
    process, begins = begun(client, *words), iter(range(N_BLOCKS))

    def kill(method: str, path: str) -> None:
        if method == "PUT" and "labels.zarr/labels/c/" in path and next(begins) == 4:
            process.kill()

    with proxy.watched(kill):
        assert process.wait(timeout=200) == -9
        proxy.quiet()
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    written = {f"/{key}" for key in fs.find(f"{at}/labels/c")}
    assert 4 <= len(written) < N_BLOCKS
    with pytest.raises(FileNotFoundError):
        arrays(f"s3://{at}")
    with proxy.recording() as seen:
        command(client, *words)
    again = chunks(seen, "PUT", "labels.zarr/labels/c/")
    assert sorted(again) == sorted({f"/{at}/labels/c/{i}" for i in range(N_BLOCKS)} - written)
    same(arrays(f"s3://{at}"), expected)


@pytest.mark.parametrize(("fault", "says"), [("SlowDown", "Service Unavailable"), ("AccessDenied", "Forbidden")])
def test_a_chunk_that_is_never_given_is_named_before_long(
    fault: str, says: str, client: Client, remote: str, proxy: Proxy
) -> None:
    begin = time.monotonic()
    with (
        on_workers(client, AWS_MAX_ATTEMPTS="2"),  # 5 by default: 37 s were measured
        proxy.failing(refused=("x.zarr/c/17/", fault)) as faults,
        pytest.raises(
            OSError, match=rf"^cannot read chunk 'c/17/0' of array '[^']*x\.zarr[^']*' \([^\n]*{says}\): see to "
        ) as caught,
    ):
        fit(remote)
    assert "its limits and the permissions, and run the same again" in str(caught.value)
    assert faults[fault] >= 5
    assert time.monotonic() - begin < 60


def test_workers_without_credentials_are_one_sentence(client: Client, remote: str) -> None:
    begin = time.monotonic()
    with (
        on_workers(client, AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None),
        pytest.raises(OSError, match=r"^cannot read '[^\n]*x\.zarr[^\n]*' \(Unable to locate credentials\): see to "),
    ):
        fit(remote)
    assert time.monotonic() - begin < 60


def test_no_secret_is_shown(client: Client, remote: str, tmp_path: Path, proxy: Proxy) -> None:
    """Of a URL, or of the environment, where a command fails."""
    named, queried = f"s3://user:hidden@{BUCKET}/none.zarr", f"s3://{BUCKET}/none.zarr?X-Amz-Signature=hidden"
    places = {"--checkpoint": f"{tmp_path}/kept", "--output": f"{tmp_path}/model.zarr"}
    failing = [
        (queried, places),
        (remote, {**places, "--checkpoint": named}),
        (remote, {**places, "--output": queried}),
    ]
    with proxy.failing(refused=("none.zarr", "AccessDenied")):
        for process in [
            begun(client, "fit", store, *FIT, *(word for place in where.items() for word in place))
            for store, where in failing
        ]:
            out, err = process.communicate(timeout=200)
            assert process.returncode == 1
            assert "Error: " in err
            for text in (out, err, json.dumps(client.get_worker_logs())):
                assert "hidden" not in text
                assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text
