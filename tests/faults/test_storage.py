"""Faults of storage: what passes leaves no trace, what stays is named, and nothing is taken for data that is not."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr
from fsspec.implementations.local import LocalFileSystem
from numcodecs import Zlib
from zarr.abc.store import Store
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, WrapperStore

import daskgmm.data.retry
from daskgmm import GaussianMixture, open_samples
from daskgmm.passes.graph import gather
from daskgmm.passes.reader import Reader

Array = npt.NDArray[np.float64]

pytestmark = [
    pytest.mark.filterwarnings("ignore:EM did not converge"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata"),
]

SUMS = {
    "zstd with a checksum": {"compressors": [ZstdCodec(checksum=True)]},
    "crc32c": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "crc32c alone": {"compressors": [Crc32cCodec()]},
    "shards": {"compressors": [ZstdCodec(checksum=True)], "shards": (100, 3)},
    "zlib, v2": {"zarr_format": 2, "compressors": Zlib()},
}
LAYOUTS = {
    **SUMS,
    "zstd": {"compressors": [ZstdCodec()]},
    "raw": {"compressors": None, "serializer": BytesCodec()},
    "raw, v2": {"zarr_format": 2, "compressors": None},
}
START = {"random_state": 0, "means_init": [[1.0, 1, 0], [8, 0, -3], [-2, 5, 2]], "weights_init": [0.3, 0.3, 0.4]}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daskgmm.data.retry, "_PAUSES", (0.0, 0.001, 0.001))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daskgmm.data.blocks, "BLOCK_VALUES", 600)
    monkeypatch.setattr(daskgmm.data.blocks, "_REGION_VALUES", 300)


def stored(rows: Array, path: Path, **layout: Any) -> zarr.Array[Any]:
    return zarr.create_array(path, data=rows, chunks=(25, 3), overwrite=True, **layout)


def labelled(rows: Array, path: Path, **layout: Any) -> Path:
    """Three variables with scale and offset, which xarray decodes, the second with its dimensions in another order."""
    cube = rows.reshape(6, 10, 10, 3)
    ds = xr.Dataset({name: (("time", "lat", "lon"), cube[..., i]) for i, name in enumerate("abc")})
    ds["b"] = ds["b"].transpose("lon", "time", "lat")
    packed = {"dtype": "i4", "scale_factor": 1e-7, "_FillValue": -(2**31), "compressors": [ZstdCodec(checksum=True)]}
    ds.to_zarr(path, encoding={name: {**packed, "chunks": [3 if n == 6 else 5 for n in ds[name].shape]} for name in ds})
    return path


class Flaky(WrapperStore[Store]):
    """A store whose reads fail once with a probability, half of them by an error and half by a transfer cut short."""

    def __init__(self, store: Store, share: float = 0.1, log: Path | None = None) -> None:
        super().__init__(store)
        self.share, self.rng, self.failed, self.log = share, random.Random(3), 0, log

    def _with_store(self, store: Store) -> Flaky:
        return self

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        value = await self._store.get(key, prototype, byte_range)
        if value is None or self.rng.random() >= self.share:
            return value
        self.failed += 1
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(f"{os.getpid()}\n")
        if self.rng.random() < 0.5 or "json" in key:
            raise ConnectionResetError("the other side has gone")
        return value[: len(value) // 2]


# Transient


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("layout", ["zstd", "shards", "raw, v2"])
def test_reads_that_fail_once_change_nothing(layout: str, blobs: Array, tmp_path: Path) -> None:
    array = stored(blobs, tmp_path / "x.zarr", **LAYOUTS[layout])
    calm = GaussianMixture(3, tol=0, max_iter=8, persist=False, **START).fit(array)
    flaky = Flaky(LocalStore(tmp_path / "x.zarr", read_only=True))
    found = GaussianMixture(3, tol=0, max_iter=8, persist=False, **START).fit(zarr.open_array(flaky, mode="r"))
    assert flaky.failed > 5
    for name in ("weights_", "means_", "covariances_", "lower_bounds_"):
        assert np.array_equal(getattr(found, name), getattr(calm, name)), name


@pytest.mark.usefixtures("small_blocks")
def test_reads_of_variables_that_fail_once_change_nothing(blobs: Array, tmp_path: Path) -> None:
    path = labelled(blobs, tmp_path / "x.zarr")
    calm = GaussianMixture(3, tol=0, max_iter=4, persist=False, **START).fit(path)
    flaky = Flaky(LocalStore(path, read_only=True))
    found = GaussianMixture(3, tol=0, max_iter=4, persist=False, **START).fit(zarr.open_group(flaky, mode="r"))
    assert flaky.failed > 5
    assert np.array_equal(found.means_, calm.means_)


@pytest.mark.usefixtures("small_blocks")
def test_reads_that_fail_once_on_workers_of_their_own_change_nothing(blobs: Array, tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    array = stored(blobs, tmp_path / "x.zarr")
    calm = GaussianMixture(3, tol=0, max_iter=20, persist=False, **START).fit(array)
    flaky = Flaky(LocalStore(tmp_path / "x.zarr", read_only=True), 0.05, tmp_path / "log")
    with LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        client.run(partial(setattr, daskgmm.data.retry, "_PAUSES", (0.0, 0.001, 0.001)))
        found = GaussianMixture(3, tol=0, max_iter=20, persist=False, **START).fit(zarr.open_array(flaky, mode="r"))
    failed = (tmp_path / "log").read_text().split()
    assert len(failed) > 5
    assert set(failed) - {str(os.getpid())}
    for name in ("weights_", "means_", "covariances_", "lower_bounds_"):
        assert np.array_equal(getattr(found, name), getattr(calm, name)), name


def test_many_small_chunks_need_not_all_be_read_at_once(blobs: Array, tmp_path: Path) -> None:
    """A region of 120 chunks, of which each read fails one time in five."""
    zarr.create_array(tmp_path / "x.zarr", data=blobs, chunks=(5, 3))
    flaky = Flaky(LocalStore(tmp_path / "x.zarr", read_only=True), share=0.0)
    samples = open_samples(zarr.open_array(flaky, mode="r"))
    flaky.share = 0.2
    x, _ = samples.source.read(samples.blocks[0].regions[0])
    assert np.array_equal(x, blobs[: len(x)])


def test_a_listing_that_fails_once_changes_nothing(
    blobs: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That by which a checkpoint knows its data again, too."""
    samples = open_samples(stored(blobs, tmp_path / "x.zarr"))
    stamp, find, failures = samples.source.stamp(), LocalFileSystem.find, iter([True])

    def flaky(*args: Any, **options: Any) -> Any:
        if next(failures, False):
            raise ConnectionResetError("the other side has gone")
        return find(*args, **options)

    monkeypatch.setattr(LocalFileSystem, "find", flaky)
    assert samples.source.stamp() == stamp
    assert stamp is not None


def test_a_lack_of_memory_is_not_asked_again(blobs: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def full(*_: Any, **__: Any) -> None:
        asked.append(1)
        raise MemoryError

    samples = open_samples(stored(blobs, tmp_path / "x.zarr"))
    monkeypatch.setattr(zarr.Array, "__getitem__", full)
    with pytest.raises(MemoryError):
        samples.source.read(samples.blocks[0].regions[0])
    assert len(asked) == 1


# For good


def test_a_store_that_refuses_is_one_sentence(blobs: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an object store does whose credentials a worker lacks: it does not even say what is there."""

    async def refuse(*_: Any) -> bool:
        raise PermissionError("Forbidden")

    samples = open_samples(stored(blobs, tmp_path / "x.zarr"))
    monkeypatch.setattr(LocalStore, "exists", refuse)
    with pytest.raises(
        OSError, match=r"^cannot read 'file://.*/x\.zarr/zarr\.json' \(Forbidden\): see to .* permissions"
    ):
        GaussianMixture(3, **START).fit(samples)


def delete(chunk: Path) -> None:
    chunk.unlink()


def truncate(chunk: Path) -> None:
    data = chunk.read_bytes()
    chunk.write_bytes(data[: len(data) - 9])


def empty(chunk: Path) -> None:
    chunk.write_bytes(b"")


def flip(chunk: Path) -> None:
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)


def garble(chunk: Path) -> None:
    chunk.write_bytes(np.random.default_rng(0).bytes(chunk.stat().st_size))


def after(n: int, action: Callable[[], Any]) -> Callable[[Any], None]:
    """A callback of a fit."""
    calls = iter(range(1000))

    def callback(info: Any) -> None:
        if info.stage == "data" and next(calls) + 1 == n:
            action()

    return callback


WORDS = {
    delete: "is missing, which was there before: write it again, or pass missing='fill'",
    empty: r"is truncated \(0 bytes of 1 or more are there\): if it is so again, write the chunk anew",
    truncate: r"(is truncated|fails its checksum|cannot be read) \(",
    garble: r"(fails its checksum|cannot be read) \(",
    flip: r"(fails its checksum|cannot be read) \(",
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("layout", "damage"),
    [
        *((layout, damage) for layout in LAYOUTS for damage in (delete, truncate, empty)),
        *((layout, damage) for layout in SUMS for damage in (flip, garble)),
    ],
)
def test_a_chunk_that_is_damaged_in_mid_fit_is_named(
    layout: str, damage: Callable[[Path], None], blobs: Array, tmp_path: Path
) -> None:
    array = stored(blobs, tmp_path / "x.zarr", **LAYOUTS[layout])
    key = array.metadata.encode_chunk_key((2, 0))
    gm = GaussianMixture(
        3, tol=0, persist=False, callbacks=[after(2, lambda: damage(tmp_path / "x.zarr" / key))], **START
    )
    with pytest.raises(OSError, match=rf"^chunk '{key}' of array 'file://.*/x\.zarr' {WORDS[damage]}") as caught:
        gm.fit(array)
    assert "\n" not in str(caught.value)
    assert not hasattr(gm, "means_")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("byte", [4, 5, 6, 7])
@pytest.mark.parametrize("layout", ["raw", "raw, v2"])
def test_a_flip_that_no_checksum_tells_is_seen_by_what_a_pass_must_find(
    layout: str, byte: int, blobs: Array, tmp_path: Path
) -> None:
    """From the fourth byte on it is worth more than 2⁻²⁰ of a value, and the error that the mean may have is less."""
    array = stored(blobs, tmp_path / "x.zarr", **LAYOUTS[layout])
    chunk = tmp_path / "x.zarr" / array.metadata.encode_chunk_key((7, 0))

    def damage() -> None:
        data = bytearray(chunk.read_bytes())
        data[8 * 30 + byte] ^= 64
        chunk.write_bytes(data)

    gm = GaussianMixture(3, tol=0, persist=False, callbacks=[after(2, damage)], **START)
    with pytest.raises((RuntimeError, ValueError), match=r"first between row 0 and row 199 |row 185, feature 0"):
        gm.fit(array)
    assert not hasattr(gm, "means_")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("damage", [delete, truncate, flip])
def test_a_chunk_of_a_variable_is_named_by_the_axes_of_its_array(
    damage: Callable[[Path], None], blobs: Array, tmp_path: Path
) -> None:
    path = labelled(blobs, tmp_path / "x.zarr")
    gm = GaussianMixture(3, tol=0, persist=False, callbacks=[after(2, lambda: damage(path / "b/c/1/0/1"))], **START)
    with pytest.raises(OSError, match=rf"^chunk 'c/1/0/1' of array 'file://.*/x\.zarr/b' {WORDS[damage]}"):
        gm.fit(path)


@pytest.mark.usefixtures("small_blocks")
def test_weights_and_labels_are_read_with_the_same_care(blobs: Array, tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x.zarr")
    group.create_array("rows", data=blobs, chunks=(25, 3))
    group.create_array("area", data=np.ones(len(blobs)), chunks=(50,))
    lost = after(2, lambda: delete(tmp_path / "x.zarr/area/c/7"))
    with pytest.raises(OSError, match=r"^chunk 'c/7' of array '.*x\.zarr/area' is missing"):
        GaussianMixture(3, tol=0, persist=False, callbacks=[lost], **START).fit(
            tmp_path / "x.zarr", sample_weight="area"
        )


@pytest.mark.usefixtures("small_blocks")
def test_absent_chunks_that_are_meant_are_read_as_such(blobs: Array, tmp_path: Path) -> None:
    """As the fill value, where it is said so; as missing values, where the fill value is NaN."""
    rows = blobs.copy()
    rows[100:125] = 0
    array = stored(rows, tmp_path / "x.zarr")
    assert not (tmp_path / "x.zarr/c/4/0").exists()
    filled = GaussianMixture(3, persist=False, missing="fill", **START).fit(array)
    np.testing.assert_allclose(filled.means_, GaussianMixture(3, **START).fit(rows).means_, rtol=1e-9)
    rows[100:125] = np.nan
    array = stored(rows, tmp_path / "y.zarr", fill_value=np.nan)
    assert GaussianMixture(3, persist=False, missing="drop", **START).fit(array).n_samples_ == 575


def test_a_shard_that_is_cut_off_behind_its_index_is_not_read_as_the_fill_value(tmp_path: Path) -> None:
    from zarr.codecs import ShardingCodec

    codec = ShardingCodec(chunk_shape=(25, 3), codecs=[BytesCodec()], index_location="start")
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=(100, 3), chunks=(100, 3), dtype="f8", serializer=codec, compressors=None
    )
    array[:] = 1.5
    samples = open_samples(array)
    chunk = tmp_path / "x.zarr/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:200])
    with pytest.raises(OSError, match=r"chunk 'c/0/0' of array .* is truncated"):
        samples.source.arrays[0][slice(75, 100), slice(0, 3)]


def _count(block: Any, pieces: Any) -> int:
    return len(list(pieces))


def test_gather_is_not_slowed_by_what_is_guarded(blobs: Array, tmp_path: Path) -> None:
    """One request a chunk and pass, as without a guard."""
    asked: list[str] = []

    class Counting(WrapperStore[Store]):
        def _with_store(self, store: Store) -> Counting:
            return self

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            asked.append(key)
            return await self._store.get(key, prototype, byte_range)

    stored(blobs, tmp_path / "x.zarr")
    samples = open_samples(zarr.open_array(Counting(LocalStore(tmp_path / "x.zarr", read_only=True)), mode="r"))
    asked.clear()
    gather(Reader(samples), _count)
    assert sorted(asked) == sorted(f"c/{i}/0" for i in range(24))


@pytest.mark.usefixtures("small_blocks")
def test_workers_in_other_processes_name_the_chunk_too(blobs: Array, tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    with LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        client.run(partial(setattr, daskgmm.data.retry, "_PAUSES", (0.0,)))
        for damage in (delete, flip):
            array = stored(blobs, tmp_path / "x.zarr", **LAYOUTS["crc32c"])
            lost = after(2, partial(damage, tmp_path / "x.zarr/c/7/0"))
            with pytest.raises(OSError, match=rf"^chunk 'c/7/0' of array 'file://.*x\.zarr' {WORDS[damage]}"):
                GaussianMixture(3, tol=0, persist=False, callbacks=[lost], **START).fit(array)
