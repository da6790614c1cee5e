"""Read arrays of a group by the layout that daskgmm writes, and refuse a group that declares any other.

Reading is JSON, zstd, and bytes as numbers or strings; nothing is found by a name in the file, so nothing can be run.
Sizes are compared with the stored bytes before anything is allocated: no more memory is taken than these can fill.
"""

from __future__ import annotations

import json
import struct
from asyncio import gather
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs.vlen import VLenUTF8
from numcodecs.zstd import Zstd
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from daskgmm.data.retry import PERMANENT, StoreUnavailable, raise_as, reason, retried
from daskgmm.urls import presentable

_MAX_DOCUMENT = 2**24  # bytes of JSON, which holds the levels of categorical features
_MAX_CHUNKS = 2**16  # of an array
# A frame of zstd holds blocks of up to 128 KiB, each of 4 bytes at least, so one byte expands to 2^15 at most. Chunks
# of the fill value alone are not stored: the arrays of a group are compared as a whole, with an allowance.
_EXPANSION, _ALLOWANCE = 2**15, 2**20
_TEXT_EXPANSION = 2**8  # names are short, and Python's strings take more memory than their bytes
_NUMBERS = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float32", "float64")
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class LoadedArray:
    """An array in memory, with the names of its dimensions."""

    dims: tuple[str, ...]
    values: npt.NDArray[Any]  # numbers, or str as objects
    attrs: dict[str, Any]


def read_arrays(store: Store, names: Iterable[str]) -> dict[str, LoadedArray]:
    """Read arrays of a group into memory.

    Raises
    ------
    Exception
        Of any type, if anything in the store is not as daskgmm writes it.
    """
    names = list(names)
    documents = fetch(store, (f"{name}/zarr.json" for name in names))
    layouts = [_Layout.of(name, data) for name, data in zip(names, documents, strict=True)]
    declared = sum(layout.nbytes for layout in layouts)
    regions = [layout.chunk_regions() for layout in layouts]
    keys = [key for of_array in regions for key in of_array]
    chunks = fetch(store, keys, most=declared + declared // 8 + _ALLOWANCE)
    if declared > (stored := sum(len(chunk or b"") for chunk in chunks)) * _EXPANSION + _ALLOWANCE:
        raise ValueError(f"arrays of {declared} bytes cannot be in the {stored} that are stored")
    by_key = dict(zip(keys, chunks, strict=True))
    return {
        layout.name: LoadedArray(layout.dims, _filled(layout, of_array, by_key), layout.attrs)
        for layout, of_array in zip(layouts, regions, strict=True)
    }


def fetch(store: Store, keys: Iterable[str], most: int = _MAX_DOCUMENT) -> list[bytes | None]:
    """Return objects of a store, None where one is missing.

    Raises
    ------
    ValueError
        An object has more than ``most`` bytes; none is read then.
    StoreUnavailable
        The store cannot be read.
    """
    keys, prototype = list(keys), default_buffer_prototype()

    async def size(key: str) -> int:
        try:
            return await store.getsize(key)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return 0

    async def objects() -> list[Any]:
        sizes = dict(zip(keys, await gather(*map(size, keys)), strict=True))
        if large := [key for key, n in sizes.items() if n > most]:
            raise ValueError(f"{large[0]!r} has {sizes[large[0]]} bytes, more than the {most} that it may have")
        return await gather(*(store.get(key, prototype) for key in keys))

    with raise_as(_unavailable, f"{keys[0]!r} of {presentable(store)}", (MemoryError, *PERMANENT)):
        found = retried(lambda: sync(objects()), final=PERMANENT)
    return [None if value is None else value.to_bytes() for value in found]


def _unavailable(what: str, error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"cannot read {what} ({reason(error)}): try it again")


def parse_object(data: Any, finite: bool = False) -> dict[str, Any]:
    """Parse a JSON object, and refuse infinities and NaN in it if ``finite``.

    Raises
    ------
    ValueError
        The data are no such JSON.
    """
    if not isinstance(data, bytes | str) or len(data) > _MAX_DOCUMENT:
        raise ValueError(f"a document is not JSON of at most {_MAX_DOCUMENT} bytes")
    text = data if isinstance(data, str) else data.decode()  # json would guess another encoding
    found = json.loads(text, parse_constant=_refuse if finite else None)
    if not isinstance(found, dict):
        raise ValueError("a document is not a JSON object")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a finite number")


# -----------------------------------------------------------------------------
# The layout that the metadata of an array declare
# -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """The parts of an array's metadata that daskgmm varies."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...]
    compressed: bool
    fill: Any
    attrs: dict[str, Any]

    @staticmethod
    def of(name: str, data: bytes | None) -> _Layout:
        if data is None:
            raise ValueError(f"{name!r} is missing")
        meta = parse_object(data)
        shape, chunks = _extents(meta["shape"]), _extents(meta["chunk_grid"]["configuration"]["chunk_shape"])
        dims = tuple(map(str, meta.get("dimension_names") or ()))
        text = meta["data_type"] == "string"
        codecs = [(codec["name"], codec.get("configuration") or {}) for codec in meta["codecs"]]
        if (
            (meta["zarr_format"], meta["node_type"], meta["chunk_grid"]["name"]) != (3, "array", "regular")
            or meta["chunk_key_encoding"] != {"name": "default", "configuration": {"separator": "/"}}
            or meta.get("storage_transformers")
            or not (text or meta["data_type"] in _NUMBERS)
            or [codec for codec, _ in codecs] not in (first := ["vlen-utf8" if text else "bytes"], [*first, "zstd"])
            or (not text and codecs[0][1].get("endian", "little") != "little")
        ):
            raise ValueError(f"the metadata of {name!r} are not as daskgmm writes them")
        if not len(shape) == len(chunks) == len(dims) == len(set(dims)) or 0 in chunks:
            raise ValueError(f"shape {shape}, chunks {chunks} and dimensions {dims} of {name!r} do not fit")
        dtype = np.dtype(object if text else meta["data_type"])
        fill = str(meta["fill_value"]) if text else dtype.type(float(meta["fill_value"]))
        found = _Layout(name, shape, chunks, dtype, dims, len(codecs) > 1, fill, dict(meta.get("attributes") or {}))
        if prod(found.grid) > _MAX_CHUNKS:
            raise ValueError(f"{name!r} has {prod(found.grid)} chunks")
        return found

    @property
    def grid(self) -> list[int]:
        """The number of chunks along each axis."""
        return [-(-size // step) for size, step in zip(self.shape, self.chunks, strict=True)]

    @property
    def nbytes(self) -> int:
        """The bytes of the array, or of one chunk where that is larger."""
        return self.dtype.itemsize * max(prod(self.shape), prod(self.chunks)) if prod(self.grid) else 0

    def chunk_regions(self) -> dict[str, tuple[slice, ...]]:
        """Return the region of each chunk by its key."""
        return {
            "/".join([self.name, "c", *map(str, at)]): tuple(
                slice(i * step, (i + 1) * step) for i, step in zip(at, self.chunks, strict=True)
            )
            for at in product(*map(range, self.grid))
        }


def _extents(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not all(type(size) is int and 0 <= size < 2**40 for size in given):
        raise ValueError(f"{given!r} is not the shape of an array")
    return tuple(given)


# -----------------------------------------------------------------------------
# Decoding chunks
# -----------------------------------------------------------------------------


def _filled(
    layout: _Layout, regions: dict[str, tuple[slice, ...]], chunks: dict[str, bytes | None]
) -> npt.NDArray[Any]:
    """Decode the chunks of an array, whose absent chunks hold its fill value."""
    out = np.full(layout.shape, layout.fill, layout.dtype)
    for key, region in regions.items():
        if (data := chunks[key]) is not None:
            values = (_texts if layout.dtype == object else _numbers)(layout, data).reshape(layout.chunks)
            out[region] = values[tuple(map(slice, out[region].shape))]
    return out


def _numbers(layout: _Layout, data: bytes) -> npt.NDArray[Any]:
    expected = layout.dtype.itemsize * prod(layout.chunks)
    data = _inflated(layout, data, expected, expected)
    return np.frombuffer(data, layout.dtype.newbyteorder("<")).astype(layout.dtype)


def _texts(layout: _Layout, data: bytes) -> npt.NDArray[Any]:
    """Decode strings, after a check of their number: the codec allocates as many as the chunk says."""
    data, n = _inflated(layout, data, 4, len(data) * _TEXT_EXPANSION + _ALLOWANCE), prod(layout.chunks)
    if struct.unpack_from("<I", data) != (n,):
        raise ValueError(f"a chunk of {layout.name!r} does not hold {n} strings")
    return VLenUTF8().decode(data)


def _inflated(layout: _Layout, data: bytes, least: int, most: int) -> bytes:
    """Decompress a chunk, if its size is within bounds."""
    size = _inflated_size(data) if layout.compressed else len(data)
    if not least <= size <= most:
        raise ValueError(f"a chunk of {layout.name!r} has {size} bytes, not {least}")
    return bytes(Zstd().decode(data)) if layout.compressed else data


def _inflated_size(frame: bytes) -> int:
    """Return the size of a zstd frame's content as its header declares it (RFC 8878, 3.1.1.1)."""
    if frame[:4] != _ZSTD_MAGIC:
        raise ValueError("a chunk is not a frame of zstd")
    descriptor = frame[4]
    single = descriptor >> 5 & 1
    at = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    n = (single, 2, 4, 8)[descriptor >> 6]
    field = frame[at : at + n]
    if not field or len(field) < n:
        raise ValueError("a chunk does not say how long it is")
    return int.from_bytes(field, "little") + 256 * (n == 2)
