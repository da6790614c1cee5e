"""Arrays in a store, as they are read: what is missing, torn or not to be trusted is never taken for data."""

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
from daskgmm.data.retry import cause, reason, retried, unread, what_is_wrong
from daskgmm.urls import presentable


class Guarded(WrapperStore[Store]):
    """A store whose metadata are checked before anybody reads by them, and whose chunks do not vanish unseen."""

    def __init__(self, store: Store, whole: set[str] | None = None) -> None:
        super().__init__(store)
        self.whole = set() if whole is None else whole  # prefixes of arrays of which every chunk is there

    def _with_store(self, store: Store) -> Guarded:
        return Guarded(store, self.whole)

    def __str__(self) -> str:
        return presentable(self._store)

    def __repr__(self) -> str:
        return f"Guarded({self})"

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
            if any(key.startswith(prefix) for prefix in self.whole) and not is_document(key):
                raise Missing(key)
        elif is_document(key):
            check_document(key, value.to_bytes())
        else:
            _check_length(len(value), byte_range)
        return value

    async def getsize(self, key: str) -> int:
        return await self._store.getsize(key)

    async def getsize_prefix(self, prefix: str) -> int:
        return await self._store.getsize_prefix(prefix)


class Missing(LookupError):
    """A chunk that was there is not: Zarr would read the fill value without a word."""


class ChunkUnavailable(OSError):
    """A store does not give a chunk, which says nothing of what is in it."""


def _check_length(n: int, byte_range: ByteRequest | None) -> None:
    """Refuse what was cut off: of a shard, Zarr would take it for chunks that were never written."""
    asked = byte_range.end - byte_range.start if isinstance(byte_range, RangeByteRequest) else 1
    if n < asked:
        raise ValueError(f"{n} bytes of {asked} or more are there")


def guarded(node: zarr.Array[Any] | zarr.Group) -> zarr.Array[Any] | zarr.Group:
    """An array or group that somebody opened, on a guarded store."""
    store = node.store
    if isinstance(store, Guarded):
        return node
    if isinstance(node, zarr.Array):
        check_metadata(node.path, node.metadata.to_dict())
    mode: Any = "r" if store.read_only else "r+"  # which makes no copy of the store
    return zarr.open(Guarded(store), path=node.path, mode=mode, zarr_format=node.metadata.zarr_format)


@dataclass(frozen=True)
class Lazy:
    """What is read by ``lazy[region]``, again where that fails: a variable of xarray's that is not in memory."""

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __getitem__(self, region: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        try:
            return retried(lambda: np.asarray(self.array[region]))
        except MemoryError:
            raise
        except Exception as error:
            place = ", ".join(
                f"{dim} {s.start} to {s.stop - 1}" for dim, s in zip(self.array.dims, region, strict=False)
            )
            raise unread(f"{place} of a variable", error) from cause(error)


@dataclass(frozen=True)
class Stored(Lazy):
    """An array of a store, or a variable that xarray decodes from it: the chunk that cannot be read is named."""

    origin: zarr.Array[Any]
    axes: tuple[int, ...]  # those of the array, in the order of the origin's

    @property
    def local(self) -> bool:
        """Is it in files of this machine?"""
        store = self.origin.store
        return isinstance(store._store if isinstance(store, Guarded) else store, LocalStore)

    def __getitem__(self, region: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        try:
            return self._read(region)
        except MemoryError:
            raise
        except Exception:  # whatever it was, it may not be again; and which chunk it was, only single reads tell
            return self._chunk_by_chunk((*region, *map(slice, self.shape[len(region) :])))

    def _chunk_by_chunk(self, region: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        box = [slice(*s.indices(n)) for s, n in zip(region, self.shape, strict=True)]
        out = np.empty([s.stop - s.start for s in box], self.dtype)
        for part in product(*map(_cuts, box, self._unit())):
            inside = tuple(slice(s.start - of.start, s.stop - of.start) for s, of in zip(part, box, strict=True))
            try:
                out[inside] = retried(partial(self._read, part))
            except MemoryError:
                raise
            except Exception as error:
                raise self._failure(part, error) from cause(error)
        return out

    def _read(self, region: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        return np.asarray(self.array[region])

    def _unit(self) -> list[int]:
        """Of what is decoded at a time, the extent along each axis of the array."""
        chunks = dict(zip(self.axes, self.origin.chunks, strict=True))
        return [chunks[axis] for axis in range(len(self.shape))]

    def _failure(self, part: tuple[slice, ...], error: Exception) -> OSError:
        """What is said of a part of one chunk that cannot be read."""
        unit = self.origin.shards or self.origin.chunks
        at = tuple(part[axis].start // extent for axis, extent in zip(self.axes, unit, strict=True))
        key = self.origin.metadata.encode_chunk_key(at)
        chunk = f"chunk {key!r} of array '{presentable(self.origin.store_path)}'"
        if isinstance(error, Missing):
            return OSError(
                f"{chunk} is missing, which was there before: write it again, or pass missing='fill' if absent chunks "
                f"stand for the fill value, {self.origin.fill_value}"
            )
        if isinstance(error, ChunkUnavailable):
            return unread(chunk, error)
        return OSError(
            f"{chunk} {what_is_wrong(error)}: if it is so again, write the chunk anew, or restore it from a copy"
        )


def _cuts(extent: slice, unit: int) -> list[slice]:
    """The parts of an extent along an axis, each of one chunk."""
    edges = [extent.start, *range((extent.start // unit + 1) * unit, extent.stop, unit), extent.stop]
    return [slice(a, b) for a, b in pairwise(edges)]
