"""Arrays of a store, read so that a missing, torn or untrusted chunk is an error and never data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

from daskgmm.data.codecs import check_document, check_metadata, is_document
from daskgmm.data.retry import cause, chunk_fault, raise_as, read_error, reason, retried
from daskgmm.urls import presentable


class GuardedStore(WrapperStore[Store]):
    """A store that checks metadata before Zarr uses them, and raises where a chunk vanishes from a complete array."""

    def __init__(self, store: Store, complete: set[str] | None = None) -> None:
        super().__init__(store)
        self.complete = set() if complete is None else complete  # prefixes of arrays that had all their chunks

    def _with_store(self, store: Store) -> GuardedStore:
        return GuardedStore(store, self.complete)

    def __str__(self) -> str:
        return presentable(self._store)

    def __repr__(self) -> str:
        return f"GuardedStore({self})"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        try:
            value = await self._store.get(key, prototype, byte_range)
        except MemoryError:
            raise
        except Exception as error:
            if is_document(key):
                raise
            raise ChunkUnavailable(reason(error)) from cause(error)
        if value is None:
            if any(key.startswith(prefix) for prefix in self.complete) and not is_document(key):
                raise ChunkMissing(key)
        elif is_document(key):
            check_document(key, value.to_bytes())
        else:
            asked = byte_range.end - byte_range.start if isinstance(byte_range, RangeByteRequest) else 1
            if len(value) < asked:  # in a truncated shard, Zarr would take chunks for never written
                raise ValueError(f"{len(value)} bytes of {asked} or more are there")
        return value

    async def getsize(self, key: str) -> int:
        return await self._store.getsize(key)

    async def getsize_prefix(self, prefix: str) -> int:
        return await self._store.getsize_prefix(prefix)


class ChunkMissing(LookupError):
    """A chunk that existed is absent: Zarr would silently read the fill value."""


class ChunkUnavailable(OSError):
    """A store does not return a chunk, which says nothing of the chunk's contents."""


def guarded(node: zarr.Array[Any] | zarr.Group) -> zarr.Array[Any] | zarr.Group:
    """Reopen an array or group on a `GuardedStore`, unless it is on one already."""
    store = node.store
    if isinstance(store, GuardedStore):
        return node
    if isinstance(node, zarr.Array):
        check_metadata(node.path, node.metadata.to_dict())
    mode: Any = "r" if store.read_only else "r+"  # the store's own mode: with another one, Zarr would copy the store
    return zarr.open(GuardedStore(store), path=node.path, mode=mode, zarr_format=node.metadata.zarr_format)


@dataclass(frozen=True)
class LazyArray:
    """A variable of xarray that is not in memory, read by ``lazy[region]`` with retries."""

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __getitem__(self, region: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        with raise_as(self._failure, region):
            return retried(partial(self._read, region))

    def _read(self, region: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        return np.asarray(self.array[region])

    def _failure(self, region: tuple[slice, ...], error: Exception) -> OSError:
        """Build the error that a region cannot be read."""
        place = ", ".join(f"{dim} {s.start} to {s.stop - 1}" for dim, s in zip(self.array.dims, region, strict=False))
        return read_error(f"{place} of a variable", error)


@dataclass(frozen=True)
class StoredArray(LazyArray):
    """An array of a store, or the variable that xarray decodes from it, whose unreadable chunk is named."""

    origin: zarr.Array[Any]
    axes: tuple[int, ...]  # of `array`, in the order of the axes of `origin`

    @property
    def is_local(self) -> bool:
        """Whether the store is a directory of this machine."""
        store = self.origin.store
        return isinstance(store._store if isinstance(store, GuardedStore) else store, LocalStore)

    def __getitem__(self, region: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        try:
            return self._read(region)
        except MemoryError:
            raise
        except Exception:  # of any kind: it may not occur again, and only single reads show which chunk raised it
            return self._read_chunks((*region, *map(slice, self.shape[len(region) :])))

    def _read_chunks(self, region: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        """Read a region chunk by chunk, each with retries."""
        box = [slice(*s.indices(n)) for s, n in zip(region, self.shape, strict=True)]
        out = np.empty([s.stop - s.start for s in box], self.dtype)
        chunks = dict(zip(self.axes, self.origin.chunks, strict=True))
        for part in product(*(_cut(extent, chunks[axis]) for axis, extent in enumerate(box))):
            inside = tuple(slice(s.start - of.start, s.stop - of.start) for s, of in zip(part, box, strict=True))
            with raise_as(self._failure, part):
                out[inside] = retried(partial(self._read, part))
        return out

    def _failure(self, region: tuple[slice, ...], error: Exception) -> OSError:
        """Build the error that a region within one chunk cannot be read."""
        unit = self.origin.shards or self.origin.chunks
        at = tuple(region[axis].start // extent for axis, extent in zip(self.axes, unit, strict=True))
        key = self.origin.metadata.encode_chunk_key(at)
        chunk = f"chunk {key!r} of array '{presentable(self.origin.store_path)}'"
        if isinstance(error, ChunkMissing):
            return OSError(
                f"{chunk} is missing, which was there before: write it again, or pass missing='fill' if absent chunks "
                f"stand for the fill value, {self.origin.fill_value}"
            )
        if isinstance(error, ChunkUnavailable):
            return read_error(chunk, error)
        return OSError(
            f"{chunk} {chunk_fault(error)}: if it is so again, write the chunk anew, or restore it from a copy"
        )


def _cut(extent: slice, unit: int) -> list[slice]:
    """Cut an extent along an axis at the edges of chunks of ``unit``."""
    edges = [extent.start, *range((extent.start // unit + 1) * unit, extent.stop, unit), extent.stop]
    return [slice(a, b) for a, b in pairwise(edges)]
