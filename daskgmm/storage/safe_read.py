"""Arrays of a group that daskgmm wrote, read by what they must be and not by what the group asks for.

Reading is JSON, zstd, and bytes as numbers or strings; nothing is found by a name in the file, so nothing can be run.
And no more memory is taken than what is stored can fill: sizes are compared with it before anything is allocated.
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
from numcodecs.zstd import Zstd
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from daskgmm.data.retry import PERMANENT, cause, reason, retried
from daskgmm.urls import presentable

_DOCUMENT = 2**24  # bytes of JSON, at most: the levels of categorical features are in it
_CHUNKS = 2**16  # of an array, at most
# A frame of zstd holds blocks of up to 128 KiB, of 4 bytes at least: so much can come out of one byte. Chunks of the
# fill value alone are not stored: they go with the other arrays of their group.
_EXPANSION, _AT_ONCE = 2**15, 2**20
_TEXT_EXPANSION = 2**8  # names are short, and Python's strings take more memory than their bytes
_NUMBERS = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float32", "float64")
_ZSTD = b"\x28\xb5\x2f\xfd"


class StoreUnavailable(OSError):
    """A store cannot be read, which says nothing of what is in it."""


@dataclass(frozen=True)
class LoadedArray:
    """An array with its names."""

    dims: tuple[str, ...]
    values: npt.NDArray[Any]  # numbers, or str as objects
    attrs: dict[str, Any]


@dataclass(frozen=True)
class _Layout:
    """What the metadata of an array say, as far as daskgmm writes it."""

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
        meta = parsed(data)
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
        if found.n_chunks > _CHUNKS:
            raise ValueError(f"{name!r} has {found.n_chunks} chunks")
        return found

    @property
    def n_chunks(self) -> int:
        return prod(-(-size // step) for size, step in zip(self.shape, self.chunks, strict=True))

    def keys(self) -> dict[str, tuple[slice, ...]]:
        """Those of its chunks, and where each belongs."""
        steps = self.chunks
        corners = product(*(range(0, size, step) for size, step in zip(self.shape, steps, strict=True)))
        return {
            "/".join([self.name, "c", *(str(start // step) for start, step in zip(corner, steps, strict=True))]): tuple(
                slice(start, start + step) for start, step in zip(corner, steps, strict=True)
            )
            for corner in corners
        }

    @property
    def nbytes(self) -> int:
        """Of the array, or of a chunk where that is larger."""
        return self.dtype.itemsize * max(prod(self.shape), prod(self.chunks)) if self.n_chunks else 0


def parsed(data: Any, finite: bool = False) -> dict[str, Any]:
    """A JSON object; finite: all of its numbers.

    Raises
    ------
    ValueError
    """
    if not isinstance(data, bytes | str) or len(data) > _DOCUMENT:
        raise ValueError(f"a document is not JSON of at most {_DOCUMENT} bytes")
    text = data if isinstance(data, str) else data.decode()  # json would guess another encoding
    found = json.loads(text, parse_constant=_refused if finite else None)
    if not isinstance(found, dict):
        raise ValueError("a document is not a JSON object")
    return found


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not a finite number")


def fetched(store: Store, keys: Iterable[str], most: int = _DOCUMENT) -> list[bytes | None]:
    """Objects of a store, None where one is missing; none is read that has more bytes than it may.

    Raises
    ------
    ValueError
        One has.
    Unread
    """
    keys, prototype = list(keys), default_buffer_prototype()

    async def size(key: str) -> int:
        try:
            return await store.getsize(key)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return 0

    async def all_of_them() -> list[Any]:
        sizes = dict(zip(keys, await gather(*map(size, keys)), strict=True))
        if large := [key for key, n in sizes.items() if n > most]:
            raise ValueError(f"{large[0]!r} has {sizes[large[0]]} bytes, more than the {most} that it may have")
        return await gather(*(store.get(key, prototype) for key in keys))

    try:
        found = retried(lambda: sync(all_of_them()), final=PERMANENT)
    except (MemoryError, *PERMANENT):
        raise
    except Exception as error:
        raise StoreUnavailable(
            f"cannot read {keys[0]!r} of {presentable(store)} ({reason(error)}): try it again"
        ) from cause(error)
    return [None if value is None else value.to_bytes() for value in found]


def arrays(store: Store, names: Iterable[str]) -> dict[str, LoadedArray]:
    """Arrays of a group, all of them in memory.

    Raises
    ------
    Exception
        Of whatever kind, if anything there is not as daskgmm writes it.
    """
    names = list(names)
    documents = fetched(store, (f"{name}/zarr.json" for name in names))
    layouts = [_Layout.of(name, data) for name, data in zip(names, documents, strict=True)]
    declared = sum(layout.nbytes for layout in layouts)
    places = [layout.keys() for layout in layouts]
    chunks = fetched(store, (key for some in places for key in some), most=declared + declared // 8 + _AT_ONCE)
    if declared > (there := sum(len(chunk or b"") for chunk in chunks)) * _EXPANSION + _AT_ONCE:
        raise ValueError(f"arrays of {declared} bytes cannot be in the {there} that are stored")
    left, found = iter(chunks), {}
    for layout, some in zip(layouts, places, strict=True):
        values = _filled(layout, [(place, next(left)) for place in some.values()])
        found[layout.name] = LoadedArray(layout.dims, values, layout.attrs)
    return found


def _filled(layout: _Layout, chunks: list[tuple[tuple[slice, ...], bytes | None]]) -> npt.NDArray[Any]:
    out = np.full(layout.shape, layout.fill, layout.dtype)
    for place, data in chunks:
        if data is not None:
            values = (_texts if layout.dtype == object else _numbers)(layout, data).reshape(layout.chunks)
            out[place] = values[tuple(map(slice, out[place].shape))]
    return out


def _numbers(layout: _Layout, data: bytes) -> npt.NDArray[Any]:
    expected = layout.dtype.itemsize * prod(layout.chunks)
    return np.frombuffer(_inflated(layout, data, expected, expected), layout.dtype.newbyteorder("<")).astype(
        layout.dtype
    )


def _texts(layout: _Layout, data: bytes) -> npt.NDArray[Any]:
    """Strings, each after its length, and before all their number."""
    data = _inflated(layout, data, 4, len(data) * _TEXT_EXPANSION + _AT_ONCE)
    n, at, found = prod(layout.chunks), 4, []
    if struct.unpack_from("<I", data) != (n,):
        raise ValueError(f"a chunk of {layout.name!r} does not hold {n} strings")
    for _ in range(n):
        (size,) = struct.unpack_from("<I", data, at)
        if at + 4 + size > len(data):
            raise ValueError(f"a chunk of {layout.name!r} is truncated")
        found.append(data[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return np.array(found, dtype=object)


def _inflated(layout: _Layout, data: bytes, least: int, most: int) -> bytes:
    """The bytes of a chunk, if there are as many as there must be."""
    size = _inflated_size(data) if layout.compressed else len(data)
    if not least <= size <= most:
        raise ValueError(f"a chunk of {layout.name!r} has {size} bytes, not {least}")
    return bytes(Zstd().decode(data)) if layout.compressed else data


def _inflated_size(frame: bytes) -> int:
    """What the header of a frame of zstd says of its content's size (RFC 8878, 3.1.1.1)."""
    if frame[:4] != _ZSTD:
        raise ValueError("a chunk is not a frame of zstd")
    descriptor = frame[4]
    single = descriptor >> 5 & 1
    at = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    n = (single, 2, 4, 8)[descriptor >> 6]
    field = frame[at : at + n]
    if not field or len(field) < n:
        raise ValueError("a chunk does not say how long it is")
    return int.from_bytes(field, "little") + 256 * (n == 2)


def _extents(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not all(type(size) is int and 0 <= size < 2**40 for size in given):
        raise ValueError(f"{given!r} is not the shape of an array")
    return tuple(given)
