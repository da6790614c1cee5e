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
from daskgmm.data.checks import NO_ANNOTATIONS, RowAnnotations, check_extent
from daskgmm.data.retry import PERMANENT, cause, reason, retried, unread
from daskgmm.data.stored import Guarded
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


def store_at(path: str | os.PathLike[str] | Store) -> Guarded:
    """The store at a local path or fsspec URL, to be read."""
    return Guarded(sync(make_store(path if isinstance(path, Store) else os.fspath(path), mode="r")))


def of_zarr(
    arrays: Sequence[zarr.Array[Any]], shape: tuple[int, ...], n_features: int, beside: RowAnnotations = NO_ANNOTATIONS
) -> Samples:
    """Samples in Zarr arrays: one with the features last, or one a feature."""
    ndim = len(shape)
    chunks = _common(array.chunks[:ndim] for array in arrays)
    shards = _common((array.shards or array.chunks)[:ndim] for array in arrays)
    units = [str(dict(array.attrs).get("units", "")) for array in arrays]
    samples = of_stored(arrays, shape, n_features, chunks, shards, beside)
    return replace(samples, units=tuple(units if len(units) == n_features else units * n_features))


def of_stored(
    arrays: Sequence[Any],
    shape: tuple[int, ...],
    n_features: int,
    chunks: Sequence[int],
    shards: Sequence[int],
    beside: RowAnnotations = NO_ANNOTATIONS,
) -> Samples:
    """Samples in arrays that are read region by region, by whoever needs them."""
    check_extent(shape, n_features)
    dtype = np.result_type(*(array.dtype for array in arrays))
    blocks = regular_blocks(shape, n_features, chunks, shards)
    beside = beside.checked(shape)
    return Samples(
        shape,
        n_features,
        dtype,
        blocks,
        Source(tuple(arrays), *map(_computed, beside)),
        region_bytes=max((region_size(r) for b in blocks[:1] for r in b.regions), default=0)
        * n_features
        * dtype.itemsize,
    )


def _computed(array: Any) -> Any:
    """What comes beside a store, where that is lazy: once, and not by each reader."""
    if isinstance(array, BroadcastArray):
        return replace(array, array=_computed(array.array))
    return np.asarray(array) if is_dask_collection(array) else array


def _common(grids: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The largest extent along each axis: whole units of all, where one's are multiples of the other's."""
    return tuple(max(axis) for axis in zip(*grids, strict=True))


@dataclass(frozen=True)
class StoreRoot:
    """Where arrays are stored."""

    store: Store
    key: str  # of the metadata

    @staticmethod
    def of(node: zarr.Array[Any] | zarr.Group) -> StoreRoot:
        v2 = ".zarray" if isinstance(node, zarr.Array) else ".zgroup"
        name = "zarr.json" if node.metadata.zarr_format == 3 else v2
        return StoreRoot(node.store, f"{node.path}/{name}" if node.path else name)

    def check(self) -> None:
        """Refuse to read where the store cannot be seen: every chunk would be missing, and read as the fill value.

        Raises
        ------
        FileNotFoundError
        OSError
            It does not say so, as where a worker's credentials are others.
        """
        try:
            there = retried(lambda: sync(self.store.exists(self.key)), final=PERMANENT)
        except Exception as error:
            raise unread(f"'{presentable(self.store)}/{self.key}'", error) from cause(error)
        if not there:
            raise FileNotFoundError(
                f"{presentable(self.store)}/{self.key} is not there for this worker: put the data where all workers "
                "can read them, or use workers that can"
            )

    def stamp(self) -> str | None:
        """The same as long as nothing is written below the metadata; None where the store does not tell when it was."""
        store = self.store._store if isinstance(self.store, Guarded) else self.store
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
    """Refuse an array of which a chunk was never written: it would read as the fill value without a word.

    On a guarded store, one that is lost later is not read either.

    Raises
    ------
    ValueError
        Names the first missing chunk.
    OSError
        The store does not say which there are.
    """
    unit = array.shards or array.chunks
    grid = [range(-(-size // step)) for size, step in zip(array.shape, unit, strict=True)]
    try:  # a listing may take many requests: it is tried again by itself, and not only with all else that opens data
        present = set(retried(lambda: sync(_keys(array)), final=PERMANENT))
    except Exception as error:
        raise unread(f"the list of chunks of array '{presentable(array.store_path)}'", error) from cause(error)
    missing = [key for at in product(*grid) if (key := array.metadata.encode_chunk_key(at)) not in present]
    if missing:
        raise ValueError(
            f"chunk {missing[0]!r} of array {array.name or '/'!r} is missing ({len(missing)} of "
            f"{prod(map(len, grid))}): write it again, or pass missing='fill' if absent chunks stand for the "
            f"fill value, {array.fill_value}"
        )
    if isinstance(array.store, Guarded):
        array.store.whole.add(_prefix(array))


async def _keys(array: zarr.Array[Any]) -> list[str]:
    prefix = _prefix(array)
    return [key.removeprefix(prefix) async for key in array.store.list_prefix(prefix)]


def _prefix(array: zarr.Array[Any]) -> str:
    """What the keys of its chunks begin with."""
    return f"{array.path}/" if array.path else ""
