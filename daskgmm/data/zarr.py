"""Samples in Zarr arrays, v2 and v3, plain and sharded, on any store that Zarr or fsspec can open."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import zarr
from dask.base import is_dask_collection
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import Store
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore
from zarr.storage._common import make_store

from daskgmm.data.blocks import Samples, Source, region_size, regular_blocks
from daskgmm.data.broadcast import BroadcastArray
from daskgmm.data.checks import RowAnnotations, check_extent
from daskgmm.data.retry import PERMANENT, cause, raise_as, read_error, reason, retried
from daskgmm.data.stored import GuardedStore
from daskgmm.urls import presentable


def open_store(store: str | os.PathLike[str] | Store) -> zarr.Array[Any] | zarr.Group:
    """Open a Zarr array or group for reading.

    Raises
    ------
    ValueError
        There is no Zarr array or group, or it cannot be read.
    """
    try:
        return retried(lambda: zarr.open(store_at(store), mode="r"), final=PERMANENT)
    except Exception as error:  # each store raises errors of its own
        name = presentable(store if isinstance(store, Store) else os.fspath(store))
        raise ValueError(
            f"cannot open {name!r} as a Zarr array or group ({reason(error)}): "
            "check the path and the permissions, or write it again if its writer did not finish"
        ) from cause(error)


def store_at(path: str | os.PathLike[str] | Store) -> GuardedStore:
    """Return the store at a local path or fsspec URL, for reading."""
    return GuardedStore(sync(make_store(path if isinstance(path, Store) else os.fspath(path), mode="r")))


def of_zarr(
    arrays: Sequence[zarr.Array[Any]], shape: tuple[int, ...], n_features: int, annotations: RowAnnotations
) -> Samples:
    """Describe samples in Zarr arrays: one array with the features last, or one array per feature."""
    ndim = len(shape)
    chunks = _largest(array.chunks[:ndim] for array in arrays)
    shards = _largest((array.shards or array.chunks)[:ndim] for array in arrays)
    units = [str(dict(array.attrs).get("units", "")) for array in arrays]
    samples = of_stored(arrays, shape, n_features, chunks, shards, annotations)
    return replace(samples, units=tuple(units if len(units) == n_features else units * n_features))


def of_stored(
    arrays: Sequence[Any],
    shape: tuple[int, ...],
    n_features: int,
    chunks: Sequence[int],
    shards: Sequence[int],
    annotations: RowAnnotations,
) -> Samples:
    """Describe samples in arrays that each task reads region by region."""
    check_extent(shape, n_features)
    dtype = np.result_type(*(array.dtype for array in arrays))
    blocks = regular_blocks(shape, n_features, chunks, shards)
    return Samples(
        shape,
        n_features,
        dtype,
        blocks,
        Source(tuple(arrays), *map(_computed, annotations.checked(shape))),
        region_bytes=max(map(region_size, blocks[0].regions)) * n_features * dtype.itemsize,
    )


def _computed(array: Any) -> Any:
    """Compute a lazy annotation once here, rather than in each task."""
    if isinstance(array, BroadcastArray):
        return replace(array, array=_computed(array.array))
    return np.asarray(array) if is_dask_collection(array) else array


def _largest(grids: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Return the largest extent along each axis: whole units of all grids, where one's are multiples of another's."""
    return tuple(max(axis) for axis in zip(*grids, strict=True))


@dataclass(frozen=True)
class StoreRoot:
    """The array or group that holds the samples: a store, and the key of its metadata."""

    store: Store
    key: str

    @staticmethod
    def of(node: zarr.Array[Any] | zarr.Group) -> StoreRoot:
        v2 = ".zarray" if isinstance(node, zarr.Array) else ".zgroup"
        name = "zarr.json" if node.metadata.zarr_format == 3 else v2
        return StoreRoot(node.store, f"{node.path}/{name}" if node.path else name)

    def check(self) -> None:
        """Refuse to read where the store cannot be seen: every chunk would be absent and read as the fill value.

        Raises
        ------
        FileNotFoundError
            The store holds no such metadata.
        OSError
            The store cannot be asked, as with other credentials on a worker.
        """
        with raise_as(read_error, f"'{presentable(self.store)}/{self.key}'"):
            exists = retried(lambda: sync(self.store.exists(self.key)), final=PERMANENT)
        if not exists:
            raise FileNotFoundError(
                f"{presentable(self.store)}/{self.key} is not there for this worker: put the data where all workers "
                "can read them, or use workers that can"
            )

    def stamp(self) -> str | None:
        """Return a fingerprint of the files below, by name, size and time; None where the store gives no times."""
        store = self.store._store if isinstance(self.store, GuardedStore) else self.store
        prefix = self.key.rpartition("/")[0]
        if isinstance(store, LocalStore):
            found = retried(lambda: LocalFileSystem().find(str(store.root / prefix), detail=True))
        elif isinstance(store, FsspecStore):
            found = retried(lambda: sync(store.fs._find(f"{store.path}/{prefix}".rstrip("/"), detail=True)))
        else:
            return None
        times = [[info.get(name) for name in ("ETag", "mtime", "LastModified", "created")] for info in found.values()]
        if not all(map(any, times)):
            return None
        lines = (f"{name} {info['size']} {time}" for (name, info), time in zip(found.items(), times, strict=True))
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def check_complete(array: zarr.Array[Any]) -> None:
    """Refuse an array of which a chunk was never written, as it would silently read as the fill value.

    On a guarded store, a chunk that is lost later is refused, too.

    Raises
    ------
    ValueError
        A chunk is missing; the message names the first one.
    OSError
        The store does not list its chunks.
    """
    unit = array.shards or array.chunks
    grid = [range(-(-size // step)) for size, step in zip(array.shape, unit, strict=True)]
    prefix = f"{array.path}/" if array.path else ""
    with raise_as(read_error, f"the list of chunks of array '{presentable(array.store_path)}'"):
        present = set(retried(lambda: sync(_list(array.store, prefix)), final=PERMANENT))
    missing = [key for at in product(*grid) if prefix + (key := array.metadata.encode_chunk_key(at)) not in present]
    if missing:
        raise ValueError(
            f"chunk {missing[0]!r} of array {array.name or '/'!r} is missing ({len(missing)} of "
            f"{prod(map(len, grid))}): write it again, or pass missing='fill' if absent chunks stand for the "
            f"fill value, {array.fill_value}"
        )
    if isinstance(array.store, GuardedStore):
        array.store.complete.add(prefix)


async def _list(store: Store, prefix: str) -> list[str]:
    return [key async for key in store.list_prefix(prefix)]
