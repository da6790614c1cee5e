"""Chunks that a store does not give: named, and not said to be damaged."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore, WrapperStore

import daskgmm.data.retry
from daskgmm import GaussianMixture, open_samples

Array = npt.NDArray[np.float64]

ERRORS = {
    "throttled": (OSError(16, "Service Unavailable"), r"\[Errno 16\] Service Unavailable"),
    "denied": (PermissionError("Forbidden."), "Forbidden"),
    "gone": (ConnectionResetError(), "ConnectionResetError"),
    "as botocore says it": (Exception("Unable to locate credentials"), "Unable to locate credentials"),
    "as obstore says it": (
        RuntimeError('Generic S3 error: 503\n\nDebug source:\nGeneric {\n  store: "S3" }'),
        "Generic S3 error: 503",
    ),
    "as icechunk says it": (
        RuntimeError(
            "  x I/O error\n  | \n  | context:\n  |    0: icechunk::get\n  | \n  |-> I/O error\n  `-> too slow\n"
        ),
        r"x I/O error \| \|-> I/O error `-> too slow",
    ),
    "words of a codec": (ValueError("3 bytes of 5: checksum truncated"), "3 bytes of 5: checksum truncated"),
    "a secret": (OSError("no answer from https://user:hidden@host/x?X-Amz-Signature=hidden"), r"no answer from [^ ]*"),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"chunks": (25, 3)},
    "shards": {"chunks": (25, 3), "shards": (100, 3)},
    "v2": {"chunks": (25, 3), "zarr_format": 2},
}


class Refusing(WrapperStore[Store]):
    """A store that does not give what one key is of."""

    def __init__(self, path: Path, key: str, error: Exception) -> None:
        super().__init__(LocalStore(path, read_only=True))
        self.key, self.error, self.asked = key, error, 0

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if key == self.key:
            self.asked += 1
            raise self.error
        return await self._store.get(key, prototype, byte_range)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daskgmm.data.retry, "_PAUSES", (0.0, 0.0))


@pytest.mark.parametrize("why", ERRORS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_chunk_that_a_store_refuses_is_named(layout: str, why: str, blobs: Array, tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "x.zarr", data=blobs, **LAYOUTS[layout])
    (error, says), key = ERRORS[why], array.metadata.encode_chunk_key((2, 0))
    refusing = zarr.open_array(Refusing(tmp_path / "x.zarr", key, error), mode="r")
    with pytest.raises(OSError, match=rf"^cannot read chunk '{key}' of array '[^']*' \({says}\): see to ") as caught:
        GaussianMixture(3, random_state=0).fit(refusing)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert "limits and the permissions, and run the same again" in str(caught.value)


def test_a_chunk_of_a_variable_that_a_store_refuses_is_named(blobs: Array, tmp_path: Path) -> None:
    cube = blobs.reshape(6, 10, 10, 3)
    ds = xr.Dataset({name: (("time", "lat", "lon"), cube[..., i]) for i, name in enumerate("abc")})
    ds.to_zarr(tmp_path / "x.zarr", encoding={name: {"chunks": (2, 10, 10)} for name in ds}, consolidated=False)
    refusing = Refusing(tmp_path / "x.zarr", "b/c/1/0/0", PermissionError("Forbidden"))
    with pytest.raises(OSError, match=r"^cannot read chunk 'c/1/0/0' of array '[^']*/b' \(Forbidden\): see to "):
        GaussianMixture(3, random_state=0).fit(zarr.open_group(refusing, mode="r"))


def test_a_store_without_memory_is_not_asked_again(blobs: Array, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=blobs, chunks=(25, 3))
    refusing = Refusing(tmp_path / "x.zarr", "c/2/0", MemoryError())  # type: ignore[arg-type]
    samples = open_samples(zarr.open_array(refusing, mode="r"))
    with pytest.raises(MemoryError):
        samples.source.read(samples.blocks[0].regions[0])
    assert refusing.asked == 1


@pytest.fixture
def opened(blobs: Array, tmp_path: Path) -> Any:
    """A Dataset that a user opens without Dask, on a store whose chunks fail as often as the test asks for."""
    ds = xr.Dataset({name: ("row", blobs[:, i]) for i, name in enumerate("abc")})
    ds.to_zarr(tmp_path / "x.zarr", encoding={name: {"chunks": (100,)} for name in ds}, consolidated=False)

    def opened(failures: int) -> xr.Dataset:
        left = iter(range(failures))

        class Failing(WrapperStore[Store]):
            def _with_store(self, store: Store) -> Failing:
                return self

            async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
                if key == "b/c/2" and next(left, None) is not None:
                    raise ConnectionResetError("the other side has gone")
                return await self._store.get(key, prototype, byte_range)

        store = Failing(LocalStore(tmp_path / "x.zarr", read_only=True))
        return xr.open_zarr(store, chunks=None, consolidated=False)[["a", "b", "c"]]  # a store has no order

    return opened


def test_a_variable_that_somebody_opened_is_read_again(opened: Any, blobs: Array) -> None:
    found = GaussianMixture(3, random_state=0, persist=False).fit(opened(2))
    expected = GaussianMixture(3, random_state=0, persist=False).fit(opened(0))
    assert np.array_equal(found.means_, expected.means_)


def test_of_a_variable_that_somebody_opened_the_rows_are_named(opened: Any) -> None:
    with pytest.raises(
        OSError, match=r"^cannot read row \d+ to \d+ of a variable \(the other side has gone\): see to the store"
    ):
        GaussianMixture(3, random_state=0).fit(opened(1000))


class Unlisted(WrapperStore[Store]):
    """A store that does not say what is there, some times in a row."""

    def __init__(self, path: Path, times: int) -> None:
        super().__init__(LocalStore(path, read_only=True))
        self.times = times

    async def list_prefix(self, prefix: str) -> Any:
        self.times -= 1
        if self.times >= 0:
            raise RuntimeError("Generic S3 error: response body error")
        async for key in self._store.list_prefix(prefix):
            yield key


def test_a_list_of_chunks_is_asked_for_again(blobs: Array, tmp_path: Path) -> None:
    """As often as any other read, and not again by the retry of all that opens the data."""
    zarr.create_array(tmp_path / "x.zarr", data=blobs, chunks=(25, 3))
    assert open_samples(zarr.open_array(Unlisted(tmp_path / "x.zarr", 2), mode="r")).shape == (600,)
    store = Unlisted(tmp_path / "x.zarr", 1000)
    with pytest.raises(
        OSError,
        match=r"^cannot read the list of chunks of array '.*' \(Generic .* error\): see to .* run the same again$",
    ):
        open_samples(zarr.open_array(store, mode="r"))
    assert store.times == 997


def test_a_client_that_tries_for_long_by_itself_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daskgmm.data.retry, "_PATIENCE", 0.1)
    asked: list[float] = []

    def slow(seconds: float) -> None:
        asked.append(seconds)
        time.sleep(seconds)
        raise ConnectionResetError

    for seconds, times in ((0.0, 3), (0.06, 2), (0.2, 1)):
        asked.clear()
        with pytest.raises(ConnectionResetError):
            daskgmm.data.retry.retried(lambda: slow(seconds))  # noqa: B023
        assert len(asked) == times
