"""Refuse metadata of a store that would have Zarr run untrusted code.

A codec is code that is found by its name. The codecs that are listed here turn bytes into numbers and do nothing else;
pickle, for one, runs what a chunk tells it to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_NUMCODECS = {
    *("adler32", "astype", "bitround", "blosc", "bz2", "crc32", "crc32c", "delta", "fixedscaleoffset", "fletcher32"),
    *("gzip", "jenkins_lookup3", "lz4", "lzma", "packbits", "pcodec", "quantize", "shuffle", "zfpy", "zlib", "zstd"),
}
_STRINGS = {"vlen-utf8", "vlen-bytes"}
CODECS = frozenset(
    {"blosc", "bytes", "crc32c", "endian", "gzip", "sharding_indexed", "transpose", "zstd"}
    | _NUMCODECS
    | {f"numcodecs.{name}" for name in _NUMCODECS}
    | _STRINGS
)
DOCUMENTS = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_MAX_BYTES = 2**26  # of a document
_CODEC_FIELDS = ("codecs", "index_codecs", "filters", "compressor", "storage_transformers")


def is_document(key: str) -> bool:
    """Whether a key is that of a metadata document."""
    return key.rpartition("/")[2] in DOCUMENTS


def check_document(key: str, data: bytes) -> None:
    """Refuse a metadata document that names an untrusted codec or dtype.

    Raises
    ------
    ValueError
        It does, or is larger than any metadata, or is no JSON.
    """
    if key.endswith(".zattrs"):
        return
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{key} has {len(data)} bytes, more than metadata need: write the store again")
    check_metadata(key, json.loads(data.decode()))


def check_metadata(name: str, metadata: Any) -> None:
    """Refuse parsed metadata of an array or a group that name an untrusted codec or dtype.

    Raises
    ------
    ValueError
        They do.
    """
    for description in _array_descriptions(metadata):
        names = list(_codec_names(description))
        for codec in names:
            if codec not in CODECS:
                raise ValueError(
                    f"{name} names the codec {codec!r}, which is not known to do no more than to decode: write the "
                    "array again with another, or open it yourself and pass it as a dask array if you trust it"
                )
        for dtype in (description[key] for key in ("data_type", "dtype") if key in description):
            kind = dtype.get("name") if isinstance(dtype, Mapping) else dtype
            if not isinstance(kind, str) or "struct" in kind or ("O" in kind and not _STRINGS & set(names)):
                raise ValueError(f"{name} has values of dtype {dtype!r}, which are not numbers: write them as such")


def _array_descriptions(metadata: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the descriptions of arrays in metadata, at any depth but not within attributes."""
    if isinstance(metadata, Mapping) and any(name in metadata for name in _CODEC_FIELDS):
        yield metadata
    elif isinstance(metadata, Mapping):
        for name, branch in metadata.items():
            if name != "attributes" and not name.endswith(".zattrs"):
                yield from _array_descriptions(branch)


def _codec_names(description: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all codecs of an array, with those within its shards."""
    for field in _CODEC_FIELDS:
        given = description.get(field) or ()
        for codec in given if isinstance(given, list | tuple) else [given]:
            settings = codec if isinstance(codec, Mapping) else {"name": codec}
            yield from (str(settings[key]) for key in ("id", "name") if key in settings)
            if isinstance(configuration := settings.get("configuration"), Mapping):
                yield from _codec_names(configuration)
