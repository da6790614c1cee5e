"""Zarr groups that daskgmm writes: they open when they are complete, and not before.

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

from daskgmm.data.retry import cause, flush_to_disk, retried, unread, unwritten
from daskgmm.urls import presentable

_MANIFEST = "daskgmm.json"
METADATA = "zarr.json"
_NEVER_WHOLE = re.compile(r"daskgmm\.json\.[0-9a-f]+\.partial")
ATTRIBUTE = "daskgmm"  # of the group: the manifest, once it is complete


@dataclass(frozen=True)
class Target:
    """A place for a group: a local path or an fsspec URL."""

    fs: Any = field(repr=False)  # which, as the root, may hold what is not for all eyes
    root: str = field(repr=False)
    shown: str

    @staticmethod
    def at(path: str) -> Target:
        fs, root = fsspec.core.url_to_fs(path)
        return Target(fs, root.rstrip("/"), presentable(path))

    def listing(self) -> dict[str, int]:
        """What is there, and its size. A link has a slash at its end, as nothing has that daskgmm writes.

        Raises
        ------
        OSError
        """
        try:
            found = sorted(retried(self._find).items())
        except Exception as error:
            raise unread(repr(self.shown), error) from cause(error)
        return {name[len(self.root) + 1 :] + "/" * bool(of.get("islink")): of["size"] or 0 for name, of in found}

    def _find(self) -> dict[str, Any]:
        self.fs.invalidate_cache()
        found: dict[str, Any] = self.fs.find(self.root, detail=True) if self.fs.exists(self.root) else {}
        return found

    def read(self, key: str) -> bytes:
        """What is kept under a key.

        Raises
        ------
        FileNotFoundError
            Nothing is; without its name, which may hold what is not for all eyes.
        OSError
        """
        try:
            data: bytes = retried(lambda: self.fs.cat_file(f"{self.root}/{key}"), final=(FileNotFoundError,))
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no {key!r} in {self.shown!r}") from None
        except Exception as error:
            raise unread(f"{key!r} of {self.shown!r}", error) from cause(error)
        return data

    def write(self, key: str, data: bytes) -> None:
        """Whole or not at all, and for good.

        Raises
        ------
        OSError
        """
        put = self._put_file if isinstance(self.fs, LocalFileSystem) else self.fs.pipe_file
        try:
            retried(lambda: put(f"{self.root}/{key}", data))
        except Exception as error:
            raise unwritten(f"{key!r} of {self.shown!r}", error) from cause(error)

    def _put_file(self, name: str, data: bytes) -> None:
        """What an object store does by itself: an object is seen when it is whole."""
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
        """Remove objects, and directories that held nothing else: one would be in the way of a chunk of its name."""
        folders = set()
        for key in keys:
            self.fs.rm_file(f"{self.root}/{key}")
            folders |= {key.rsplit("/", depth)[0] for depth in range(1, key.count("/") + 1)}
        for folder in sorted(folders, key=len, reverse=True):
            with suppress(OSError):  # it is not empty, or an object store knows no directories
                self.fs.rmdir(f"{self.root}/{folder}")


def manifest_of(target: Target) -> tuple[dict[str, Any] | None, bool]:
    """What daskgmm wrote or was writing there, and whether it is complete; None if it was not daskgmm."""
    keys = target.listing()
    try:
        if METADATA in keys:
            attributes = json.loads(target.read(METADATA)).get("attributes", {})
            return _checked(attributes[ATTRIBUTE]), True
        if _MANIFEST in keys:
            return _checked(target.read(_MANIFEST)), False
    except (AttributeError, KeyError, TypeError, ValueError):  # another program's, or torn: not ours to judge
        return None, False
    return None, False


def _checked(text: str | bytes) -> dict[str, Any]:
    """A manifest; its names say what may be deleted, so none may lead out of the group.

    Raises
    ------
    KeyError, TypeError, ValueError
        It is no manifest of ours.
    """
    manifest: dict[str, Any] = json.loads(text)
    return {**manifest, "arrays": plain_names(manifest["arrays"])}


def plain_names(names: Iterable[Any]) -> list[str]:
    """Names of arrays, none of which leads out of its group.

    Raises
    ------
    ValueError
    """
    found = [str(name) for name in names]
    for name in found:
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ValueError(f"{name!r} is not the name of an array in the group")
    return found


def _ours(keys: Iterable[str], arrays: Iterable[str]) -> set[str]:
    """Those of the keys that daskgmm gives to a group of these arrays, and to files that replace them when whole."""
    names = "|".join(re.escape(name) for name in arrays)
    ours = re.compile(rf"(zarr\.json|daskgmm\.json|({names})/(zarr\.json|c(/\d+)*))(\.[0-9a-f]+\.partial)?")
    return {key for key in keys if ours.fullmatch(key)}


@dataclass(frozen=True)
class UnfinishedGroup:
    """A group in the making."""

    target: Target
    arrays: tuple[str, ...]
    metadata: bytes  # of the group, to be written last
    done: frozenset[str]  # keys that an earlier run left: of chunks that need not be written again

    def discard(self) -> None:
        """What was begun makes no sense: remove it."""
        self.target.remove(_ours(self.target.listing(), self.arrays))

    def publish(self) -> None:
        """Everything is written: make the group one that opens."""
        ours = _ours(self.target.listing(), self.arrays)
        self.target.remove(key for key in ours if key.endswith(".partial"))  # of runs that were killed
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
        What the group will hold; dask arrays stand for data that come later, region by region.
    encoding : dict
        xarray's, of the variables.
    manifest : dict
        JSON-able; says what is written here: only a run with an equal one goes on with an unfinished group.
    overwrite : bool
        Replace what daskgmm wrote there before.

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
        # Of consolidated metadata and of strings, that the v3 specification does not have them yet.
        warnings.simplefilter("ignore")
        template.assign_attrs({ATTRIBUTE: json.dumps(manifest)}).to_zarr(
            MemoryStore(staged), encoding=encoding, compute=False, zarr_format=3, consolidated=True
        )
    objects = {key: value.to_bytes() for key, value in staged.items()}
    metadata = objects.pop(METADATA)
    keys = _there(target)
    if keys:
        found, complete = manifest_of(target)
        if complete or found != manifest:
            _check_ours(target, keys, overwrite)
            # From here on the group is not complete, and known for what it is, whenever this is interrupted.
            target.write(_MANIFEST, json.dumps(found).encode())
            target.remove(sorted(keys.keys() - {_MANIFEST}, key=lambda key: key != METADATA))
            keys = {}
    # Of what is written here and now, nothing older may stay: chunks of the fill value alone are not written.
    whole = tuple(f"{name}/" for name, variable in template.variables.items() if variable.chunks is None)
    target.remove(key for key in _ours(keys, arrays) if key.startswith(whole) and key not in objects)
    target.write(_MANIFEST, json.dumps(manifest).encode())
    for key, data in objects.items():
        target.write(key, data)
    # A chunk without a byte is one that a machine lost when it stopped.
    return UnfinishedGroup(target, arrays, metadata, frozenset(key for key, size in keys.items() if size))


def check_free(path: str, overwrite: bool) -> None:
    """Refuse a path before hours of work if the result could not be written there in the end.

    Raises
    ------
    FileExistsError
        There is something already, and it may not be replaced.
    """
    target = Target.at(path)
    if keys := _there(target):
        _check_ours(target, keys, overwrite)


def write_group(path: str, ds: xr.Dataset, manifest: dict[str, Any], overwrite: bool) -> None:
    """Write a Dataset that is in memory."""
    prepare(path, ds, {}, manifest, overwrite).publish()


def _there(target: Target) -> dict[str, int]:
    """What is there, but for manifests of runs that were killed before anything else was written."""
    return {key: size for key, size in target.listing().items() if not _NEVER_WHOLE.fullmatch(key)}


def _check_ours(target: Target, keys: Iterable[str], overwrite: bool) -> None:
    path = target.shown
    found, complete = manifest_of(target)
    if found is None:
        raise FileExistsError(f"{path!r} exists and daskgmm did not write it: choose another path")
    # An unfinished model is written at once: there is no work in it.
    if not overwrite and (complete or found.get("kind") != "model"):
        state = "exists" if complete else "was begun with other data or another model"
        raise FileExistsError(f"{path!r} {state}: choose another path, or overwrite it (overwrite=True, --overwrite)")
    if foreign := sorted(set(keys) - _ours(keys, found["arrays"])):
        raise FileExistsError(
            f"{path!r} holds {foreign[0]!r}, which daskgmm did not write: move it away, or choose another path"
        )
