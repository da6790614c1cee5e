"""obstore and icechunk: the bits of a local disk, too, from stores that the user opens and by URL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import icechunk
import obstore_files
import pytest
import xarray as xr
import zarr
from conftest import BUCKET, N_CHUNKS, ROWS, arrays, fit, same
from distributed import Client
from obstore.store import S3Store
from proxy import TRANSIENT, Proxy
from zarr.storage import ObjectStore

from daskgmm import load, open_samples
from daskgmm.prediction.predict import LABELS
from daskgmm.prediction.write import write_predictions

pytestmark = pytest.mark.filterwarnings("ignore:EM did not converge")

NAMES = ("x", "y", "z")
NAMED = ("feature", "feature_")  # by the variables: the data of the expected model have no names


def columns(rows: Any) -> xr.Dataset:
    return xr.Dataset({name: ("row", rows[:, i]) for i, name in enumerate(NAMES)})


ENCODING = {name: {"chunks": (ROWS // N_CHUNKS,)} for name in NAMES}


def found(data: Any, path: Path, **options: Any) -> dict[str, Any]:
    """What a model holds that is fitted to data."""
    fit(data, **options).save(path)
    return {name: array for name, array in arrays(path).items() if name not in NAMED}


def test_an_array_and_variables_in_obstore(
    rows: Any, client: Client, remote: str, expected: dict[str, Any], proxy: Proxy, tmp_path: Path
) -> None:
    columns(rows).to_zarr(f"s3://{BUCKET}/columns.zarr", encoding=ENCODING, consolidated=False)
    data = {
        prefix: open_samples(zarr.open(ObjectStore(S3Store(BUCKET, prefix=prefix), read_only=True), mode="r"))
        for prefix in ("x.zarr", "columns.zarr")
    }
    with proxy.failing(0.1) as faults:
        for prefix, samples in data.items():
            same(found(samples, tmp_path / prefix), expected)
    assert min(faults[kind] for kind in TRANSIENT) >= 5, faults


def test_a_chunk_that_is_never_given_to_obstore_is_named(client: Client, remote: str, proxy: Proxy) -> None:
    store = S3Store(BUCKET, prefix="x.zarr", retry_config={"max_retries": 2})
    node = zarr.open(ObjectStore(store, read_only=True), mode="r")
    with (
        proxy.failing(refused=("x.zarr/c/17/", "SlowDown")),
        pytest.raises(
            OSError, match=r"^cannot read chunk 'c/17/0' of array '[^\n]*' \([^\n]*503[^\n]*\): see to "
        ) as caught,
    ):
        fit(node)
    assert "Debug" not in str(caught.value)


@pytest.fixture
def s3a(client: Client) -> str:
    """A URL that obstore serves, here and on the workers."""
    obstore_files.register()
    client.run(obstore_files.register)
    return f"s3a://{BUCKET}"


def test_urls_by_obstore(s3a: str, client: Client, remote: str, expected: dict[str, Any], proxy: Proxy) -> None:
    """Data, checkpoint, model and labels; the same call again reads the data once at most.

    obstore does not ask again for an answer that is cut off, and lists each directory by a request of its own: so many
    are hardly all sound.
    """
    data, at = f"{s3a}/x.zarr", f"{s3a}/obstore"
    kinds = [kind for kind in TRANSIENT if kind != "cut"]
    with proxy.failing(0.1, kinds) as faults:
        fit(data, checkpoint=f"{at}/kept").save(f"{at}/model.zarr")
        model = load(f"{at}/model.zarr")._components()
        write_predictions(open_samples(data), model, (LABELS,), f"{at}/labels.zarr")
    same(arrays(f"{at}/model.zarr"), expected)
    same(arrays(f"{at}/labels.zarr"), expected)
    assert min(faults[kind] for kind in kinds) >= 5, faults
    with proxy.recording() as seen:
        fit(data, checkpoint=f"{at}/kept").save(f"{at}/again.zarr")
    same(arrays(f"{at}/again.zarr"), expected)
    assert sum("x.zarr/c/" in path for _, path in seen) <= N_CHUNKS + 1  # a list, too


def disk(folder: Path, proxy: Proxy) -> icechunk.Storage:
    return icechunk.local_filesystem_storage(str(folder))


def bucket(folder: Path, proxy: Proxy) -> icechunk.Storage:
    return icechunk.s3_storage(
        bucket=BUCKET,
        prefix=folder.name,
        from_env=True,
        endpoint_url=proxy.url,
        allow_http=True,
        force_path_style=True,
        region=os.environ["AWS_DEFAULT_REGION"],
    )


@pytest.mark.parametrize("where", [disk, bucket])
def test_what_is_committed_to_icechunk(
    where: Any, rows: Any, client: Client, expected: dict[str, Any], proxy: Proxy, tmp_path: Path
) -> None:
    """An array, variables of a group, and a Dataset; and a chunk that was never written is named."""
    repository = icechunk.Repository.create(where(tmp_path / "committed", proxy))
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="rows", data=rows, chunks=(ROWS // N_CHUNKS, 3))
    columns(rows).to_zarr(session.store, group="columns", encoding=ENCODING, consolidated=False)
    lacking = zarr.create_array(session.store, name="lacking", shape=(ROWS, 3), chunks=(ROWS // 2, 3), dtype="f4")
    lacking[: ROWS // 2] = rows[: ROWS // 2]
    session.commit("rows")
    store = repository.readonly_session("main").store
    inputs = {
        "array": zarr.open_array(store, path="rows", mode="r"),
        "group": zarr.open_group(store, path="columns", mode="r"),
        "Dataset": xr.open_zarr(store, group="columns", consolidated=False, chunks=None)[[*NAMES]],
    }
    with proxy.failing(0.1) as faults:
        for name, data in inputs.items():
            same(found(data, tmp_path / f"{name}.zarr", checkpoint=tmp_path / f"{name}.kept"), expected)
    assert where is disk or min(faults[kind] for kind in TRANSIENT) >= 5, faults
    # Whose tasks are xarray's and Dask's, so that nothing but icechunk itself asks again.
    lazy = xr.open_zarr(store, group="columns", consolidated=False)[[*NAMES]]
    same(found(lazy, tmp_path / "lazy.zarr"), expected)
    with pytest.raises(ValueError, match="chunk 'c/1/0' of array '/lacking' is missing"):
        fit(zarr.open_array(store, path="lacking", mode="r"))


def test_a_chunk_that_is_never_given_to_icechunk_is_named(rows: Any, client: Client, proxy: Proxy) -> None:
    retries = icechunk.StorageRetriesSettings(max_tries=2, initial_backoff_ms=10)  # by default 10: 25 s
    config = icechunk.RepositoryConfig(storage=icechunk.StorageSettings(retries=retries))
    repository = icechunk.Repository.create(bucket(Path("refused"), proxy), config=config)
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="rows", data=rows, chunks=(ROWS // N_CHUNKS, 3))
    session.commit("rows")
    array = zarr.open_array(repository.readonly_session("main").store, path="rows", mode="r")
    with (
        proxy.failing(refused=("refused/chunks/", "SlowDown")),
        pytest.raises(OSError, match=r"^cannot read chunk 'c/\d+/0' of array '[^']*/rows' \([^\n]*SlowDown") as caught,
    ):
        fit(array)
    assert str(caught.value).endswith("see to the store, its limits and the permissions, and run the same again")
    assert "icechunk::" not in str(caught.value)
