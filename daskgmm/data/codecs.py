"""Which metadata of a store are trusted, before anything is read by them.

A codec is code, found by its name: those known here turn bytes to numbers and do nothing else, but pickle, say, runs
what the chunk tells it to.
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
_MOST = 2**26  # bytes of a document
_CODED = ("codecs", "index_codecs", "filters", "compressor", "storage_transformers")


def is_document(key: str) -> bool:
    return key.rpartition("/")[2] in DOCUMENTS


def check_document(key: str, data: bytes) -> None:
    """Refuse metadata by which more would be done than to read numbers and strings.

    Raises
    ------
    ValueError
    """
    if key.endswith(".zattrs"):
        return
    if len(data) > _MOST:
        raise ValueError(f"{key} has {len(data)} bytes, more than metadata need: write the store again")
    check_metadata(key, json.loads(data.decode()))


def check_metadata(name: str, metadata: Any) -> None:
    """The same, of metadata that are open already."""
    for node in _nodes(metadata):
        named = list(_codecs(node))
        for codec in named:
            if codec not in CODECS:
                raise ValueError(
                    f"{name} names the codec {codec!r}, which is not known to do no more than to decode: write the "
                    "array again with another, or open it yourself and pass it as a dask array if you trust it"
                )
        for dtype in (node[key] for key in ("data_type", "dtype") if key in node):
            kind = dtype.get("name") if isinstance(dtype, Mapping) else dtype
            if not isinstance(kind, str) or "struct" in kind or ("O" in kind and not _STRINGS & set(named)):
                raise ValueError(f"{name} has values of dtype {dtype!r}, which are not numbers: write them as such")


def _nodes(tree: Any) -> Iterator[Mapping[str, Any]]:
    """What describes an array, at whatever depth, but not in attributes."""
    if not isinstance(tree, Mapping):
        return
    if any(name in tree for name in _CODED):
        yield tree
        return
    for name, branch in tree.items():
        if name != "attributes" and not name.endswith(".zattrs"):
            yield from _nodes(branch)


def _codecs(node: Mapping[str, Any]) -> Iterator[str]:
    """The names of all codecs of an array, those within shards too."""
    for name in _CODED:
        given = node.get(name) or ()
        for codec in given if isinstance(given, list | tuple) else [given]:
            if not isinstance(codec, Mapping):
                yield str(codec)
                continue
            yield from (str(codec[key]) for key in ("id", "name") if key in codec)
            configuration = codec.get("configuration")
            if isinstance(configuration, Mapping):
                yield from _codecs(configuration)
