"""Zarr groups that daskgmm writes, which open once they are complete and not before.

A group's metadata object is the last thing written, so an unfinished output is not a Zarr group, on a disk
or in an object store. Until then a manifest beside the arrays says what is being written. A chunk of the output
is written whole by one task, so the chunks that are there are the journal: a second run writes the others.
"""

from __future__ import annotations

import json
import os
import re
import uuid
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import fsspec
import xarray as xr
from fsspec.implementations.local import LocalFileSystem
from zarr.storage import MemoryStore

from daskgmm.data.retry import flush_to_disk, raise_as, read_error, retried, write_error
from daskgmm.urls import presentable

METADATA = "zarr.json"
ATTRIBUTE = "daskgmm"  # of a complete group, which holds its manifest
_MANIFEST = "daskgmm.json"  # beside the arrays of an unfinished group
_PARTIAL_MANIFEST = re.compile(r"daskgmm\.json\.[0-9a-f]+\.partial")


# -----------------------------------------------------------------------------
# Objects below a path
# -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """The place of a group: a local path or an fsspec URL."""

    fs: Any = field(repr=False)  # its repr and that of the root may show secrets
    root: str = field(repr=False)
    shown: str

    @staticmethod
    def at(path: str) -> Target:
        fs, root = fsspec.core.url_to_fs(path)
        return Target(fs, root.rstrip("/"), presentable(path))

    def listing(self) -> dict[str, int]:
        """Return the size of each object by its key, with a slash appended to links, which daskgmm never writes.

        Raises
        ------
        OSError
            The place cannot be listed.
        """
        with raise_as(read_error, repr(self.shown)):
            found = retried(self._find)
        return {key[len(self.root) + 1 :] + "/" * bool(of.get("islink")): of["size"] or 0 for key, of in found}

    def _find(self) -> list[tuple[str, dict[str, Any]]]:
        self.fs.invalidate_cache()
        return sorted(self.fs.find(self.root, detail=True).items()) if self.fs.exists(self.root) else []

    def read(self, key: str) -> bytes:
        """Return the object that is stored under a key.

        Raises
        ------
        FileNotFoundError
            There is none; the message shows no secrets.
        OSError
            The object cannot be read.
        """
        try:
            with raise_as(read_error, f"{key!r} of {self.shown!r}", (MemoryError, FileNotFoundError)):
                return retried(lambda: self.fs.cat_file(f"{self.root}/{key}"), final=(FileNotFoundError,))
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no {key!r} in {self.shown!r}") from None

    def write(self, key: str, data: bytes) -> None:
        """Write an object whole or not at all, and flush it to the disk.

        Raises
        ------
        OSError
            The object cannot be written.
        """
        put = self._replace_file if isinstance(self.fs, LocalFileSystem) else self.fs.pipe_file
        with raise_as(write_error, f"{key!r} of {self.shown!r}"):
            retried(lambda: put(f"{self.root}/{key}", data))

    def _replace_file(self, name: str, data: bytes) -> None:
        """Write a local file so that it is seen once it is whole, as an object store does by itself."""
        folder = name.rpartition("/")[0]
        self.fs.makedirs(folder, exist_ok=True)
        partial = f"{name}.{uuid.uuid4().hex}.partial"
        try:
            self.fs.pipe_file(partial, data)
            flush_to_disk(partial)
            os.replace(partial, name)
        except Exception:
            with suppress(OSError):
                os.remove(partial)
            raise
        flush_to_disk(folder)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects, and directories that are empty then: one would be in the way of a chunk of its name."""
        folders = set()
        for key in keys:
            self.fs.rm_file(f"{self.root}/{key}")
            folders |= {key.rsplit("/", depth)[0] for depth in range(1, key.count("/") + 1)}
        for folder in sorted(folders, key=len, reverse=True):
            with suppress(OSError):  # it is not empty, or an object store knows no directories
                self.fs.rmdir(f"{self.root}/{folder}")


# -----------------------------------------------------------------------------
# The manifest of a group
# -----------------------------------------------------------------------------


def manifest_of(target: Target) -> tuple[dict[str, Any] | None, bool]:
    """Return the manifest of the group at a place, and whether the group is complete; None if daskgmm wrote none."""
    keys = target.listing()
    with suppress(AttributeError, KeyError, TypeError, ValueError):  # it is another program's, or torn
        if METADATA in keys:
            attributes = json.loads(target.read(METADATA)).get("attributes", {})
            return _parsed_manifest(attributes[ATTRIBUTE]), True
        if _MANIFEST in keys:
            return _parsed_manifest(target.read(_MANIFEST)), False
    return None, False


def _parsed_manifest(text: str | bytes) -> dict[str, Any]:
    """Parse a manifest, and check its names of arrays: they say what may be deleted.

    Raises
    ------
    KeyError, TypeError, ValueError
        It is no manifest of daskgmm's.
    """
    manifest: dict[str, Any] = json.loads(text)
    return {**manifest, "arrays": checked_names(manifest["arrays"])}


def checked_names(names: Iterable[Any]) -> list[str]:
    """Return names of arrays, none of which leads out of its group.

    Raises
    ------
    ValueError
        One does.
    """
    texts = [str(name) for name in names]
    for name in texts:
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ValueError(f"{name!r} is not the name of an array in the group")
    return texts


def _own_keys(keys: Iterable[str], arrays: Iterable[str]) -> set[str]:
    """Return the keys that daskgmm gives to the objects of a group of these arrays, and to their partial files."""
    names = "|".join(re.escape(name) for name in arrays)
    own = re.compile(rf"(zarr\.json|daskgmm\.json|({names})/(zarr\.json|c(/\d+)*))(\.[0-9a-f]+\.partial)?")
    return {key for key in keys if own.fullmatch(key)}


# -----------------------------------------------------------------------------
# Writing a group
# -----------------------------------------------------------------------------


@dataclass(frozen=True)
class UnfinishedGroup:
    """A group that is being written."""

    target: Target
    arrays: tuple[str, ...]
    metadata: bytes  # of the group, written last
    done: frozenset[str]  # keys that an earlier run left: their chunks need not be written again

    def discard(self) -> None:
        """Remove everything written so far, as it cannot be completed."""
        self.target.remove(_own_keys(self.target.listing(), self.arrays))

    def publish(self) -> None:
        """Complete the group, after all of its chunks are written, so that it opens."""
        own = _own_keys(self.target.listing(), self.arrays)
        self.target.remove(key for key in own if key.endswith(".partial"))  # of runs that were killed
        self.target.write(METADATA, self.metadata)
        self.target.remove([_MANIFEST])


def prepare(
    path: str, template: xr.Dataset, encoding: dict[str, Any], manifest: dict[str, Any], overwrite: bool
) -> UnfinishedGroup:
    """Make the arrays of a group, without data for the lazy ones; or find them, if an earlier run did.

    Parameters
    ----------
    path : str
        Local path or fsspec URL.
    template : Dataset
        The content of the group; dask arrays stand for data that come later, region by region.
    encoding : dict
        xarray's, of the variables.
    manifest : dict
        JSON-able; identifies the output: only a run with an equal manifest continues an unfinished group.
    overwrite : bool
        Replace an earlier output of daskgmm.

    Returns
    -------
    UnfinishedGroup

    Raises
    ------
    FileExistsError
        There is something already, and it may not be replaced.
    """
    target = Target.at(path)
    arrays = tuple(sorted(map(str, template.variables)))
    manifest = json.loads(json.dumps({**manifest, "arrays": arrays}))
    staged: dict[str, Any] = {}
    with warnings.catch_warnings():
        # Zarr warns that the v3 specification does not have consolidated metadata and strings yet.
        warnings.simplefilter("ignore")
        template.assign_attrs({ATTRIBUTE: json.dumps(manifest)}).to_zarr(
            MemoryStore(staged), encoding=encoding, compute=False, zarr_format=3, consolidated=True
        )
    objects = {key: value.to_bytes() for key, value in staged.items()}
    metadata = objects.pop(METADATA)
    keys = _existing(target)
    if keys:
        found, complete = manifest_of(target)
        if complete or found != manifest:
            _check_replaceable(target, keys, overwrite)
            # The manifest comes first and the metadata go first: if this is interrupted, the group is known as
            # unfinished.
            target.write(_MANIFEST, json.dumps(found).encode())
            target.remove(sorted(keys.keys() - {_MANIFEST}, key=lambda key: key != METADATA))
            keys = {}
    # Nothing older may stay of the arrays that are written here: their chunks of the fill value alone are not written.
    whole = tuple(f"{name}/" for name, variable in template.variables.items() if variable.chunks is None)
    target.remove(key for key in _own_keys(keys, arrays) if key.startswith(whole) and key not in objects)
    target.write(_MANIFEST, json.dumps(manifest).encode())
    for key, data in objects.items():
        target.write(key, data)
    # A chunk of no bytes is one that a machine lost when it stopped.
    return UnfinishedGroup(target, arrays, metadata, frozenset(key for key, size in keys.items() if size))


def write_group(path: str, ds: xr.Dataset, manifest: dict[str, Any], overwrite: bool) -> None:
    """Write a Dataset that is in memory."""
    prepare(path, ds, {}, manifest, overwrite).publish()


def check_free(path: str, overwrite: bool) -> None:
    """Refuse a path before hours of work if the result could not be written there in the end.

    Raises
    ------
    FileExistsError
        There is something already, and it may not be replaced.
    """
    target = Target.at(path)
    if keys := _existing(target):
        _check_replaceable(target, keys, overwrite)


def _existing(target: Target) -> dict[str, int]:
    """List a place, without manifests of runs that were killed before they wrote anything else."""
    return {key: size for key, size in target.listing().items() if not _PARTIAL_MANIFEST.fullmatch(key)}


def _check_replaceable(target: Target, keys: Iterable[str], overwrite: bool) -> None:
    """Refuse to replace another program's objects, and a group of daskgmm's without ``overwrite``."""
    path = target.shown
    found, complete = manifest_of(target)
    if found is None:
        raise FileExistsError(f"{path!r} exists and daskgmm did not write it: choose another path")
    # An unfinished model may always be replaced: it is written at once, so no work is lost.
    if not overwrite and (complete or found.get("kind") != "model"):
        state = "exists" if complete else "was begun with other data or another model"
        raise FileExistsError(f"{path!r} {state}: choose another path, or overwrite it (overwrite=True, --overwrite)")
    if foreign := sorted(set(keys) - _own_keys(keys, found["arrays"])):
        raise FileExistsError(
            f"{path!r} holds {foreign[0]!r}, which daskgmm did not write: move it away, or choose another path"
        )
