"""The demo's data: photographs as a Dataset of their pixels, and as an array of all their 8 × 8 patches.

Mixtures of the patches of photographs are what Zoran & Weiss (2011, From Learning Models of Natural Image Patches to
Whole Image Restoration) restore photographs with.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SIDE = 8  # of a patch
CHANNELS = ("red", "green", "blue")
_CHUNK, _SHARD = 8192, 32768  # patches: 2 MiB are decoded at a time, 8 MiB written
_PIXEL_ROWS = 107  # a quarter of a photograph: four chunks, for workers to share


@dataclass(frozen=True)
class Photographs:
    """Photographs of one size."""

    images: npt.NDArray[np.uint8]  # (image, row, column, channel)
    names: tuple[str, ...]

    @staticmethod
    def bundled() -> Photographs:
        """The two that scikit-learn brings along."""
        from sklearn.datasets import load_sample_images

        found = load_sample_images()
        return Photographs(np.stack(found.images), tuple(Path(name).stem for name in found.filenames))

    @property
    def n_pixels(self) -> int:
        return int(np.prod(self.images.shape[:3]))

    @property
    def n_patches(self) -> int:
        """Those of each channel by itself."""
        return int(np.prod(self._patches.shape[:4]))

    def patches(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Patches in the order of image, channel, row and column: (stop - start, 64)."""
        at = np.unravel_index(np.arange(start, min(stop, self.n_patches)), self._patches.shape[:4])
        return self._patches[at].reshape(-1, SIDE * SIDE).astype(np.float32)

    @property
    def _patches(self) -> npt.NDArray[np.uint8]:
        views = np.lib.stride_tricks.sliding_window_view(self.images, (SIDE, SIDE), axis=(1, 2))
        return views.transpose(0, 3, 1, 2, 4, 5)  # (image, channel, row, column, 8, 8)

    @cached_property
    def digest(self) -> str:
        """Tells stores of these photographs from stores of others."""
        digest = hashlib.sha256(json.dumps([self.images.shape, self.names]).encode())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        return digest.hexdigest()


def build_pixels(path: Path, photographs: Photographs) -> bool:
    """Write an xarray Dataset, a variable a colour over (image, row, column); False if it was there already.

    Raises
    ------
    FileExistsError
        There is something at the path that daskgmm did not write.
    """
    import xarray as xr

    from daskgmm.storage.groups import Target, manifest_of, prepare

    manifest = {"kind": "demo pixels", "schema": 1, "photographs": photographs.digest}
    found, complete = manifest_of(Target.at(str(path)))
    if complete and found is not None and found.get("photographs") == photographs.digest:
        return False
    _, height, width, _ = photographs.images.shape
    ds = xr.Dataset(
        {
            name: (("image", "row", "column"), np.ascontiguousarray(photographs.images[..., c]))
            for c, name in enumerate(CHANNELS)
        },
        coords={"image": list(photographs.names), "row": np.arange(height), "column": np.arange(width)},
        attrs={"title": "Pixels of photographs, 0 to 255"},
    )
    chunks = (1, min(_PIXEL_ROWS, height), width)
    encoding: dict[str, Any] = {name: {"chunks": chunks, "write_empty_chunks": True} for name in CHANNELS}
    prepare(str(path), ds, encoding, manifest, overwrite=True).publish()
    return True


def build_patches(path: Path, photographs: Photographs) -> bool:
    """Write one Zarr array (patch, pixel), under another name until it is complete; False if it was there already.

    Shards that such an array lost are written again.

    Raises
    ------
    FileExistsError
        There is something else at the path.
    """
    import zarr

    shape, shards = (photographs.n_patches, SIDE * SIDE), (_SHARD, SIDE * SIDE)
    attributes: dict[str, Any] = {
        "title": f"All {SIDE} × {SIDE} patches of photographs, each colour channel by itself",
        "order": "image, channel, row, column of the first pixel",
        "source": "daskgmm demo",
        "photographs": photographs.digest,
    }
    unfinished = path.with_name(f"{path.name}.unfinished")
    place = path if path.exists() else unfinished
    if place is path or (unfinished / "zarr.json").exists():
        array = _open(place, shape, shards, attributes)
    else:
        array = zarr.create_array(
            unfinished,
            shape=shape,
            chunks=(_CHUNK, SIDE * SIDE),
            shards=shards,
            dtype=np.float32,
            attributes=attributes,
            dimension_names=("patch", "pixel"),
        )
    array = array.with_config({"write_empty_chunks": True})
    starts = [
        start
        for start in range(0, photographs.n_patches, _SHARD)
        if place is unfinished or not (path / array.metadata.encode_chunk_key((start // _SHARD, 0))).exists()
    ]
    for start in starts:
        array[start : start + _SHARD] = photographs.patches(start, start + _SHARD)
    if place is unfinished:
        unfinished.rename(path)
    return bool(starts)


def _open(path: Path, shape: tuple[int, ...], shards: tuple[int, ...], attributes: dict[str, Any]) -> Any:
    import zarr

    remedy = "move it away, or choose another directory"
    try:
        array = zarr.open_array(path, mode="r+")
    except Exception as error:  # each kind of damage raises an error of its own
        raise FileExistsError(f"{str(path)!r} is not a Zarr array that can be read: {remedy}") from error
    if (array.shape, array.shards, array.attrs.asdict()) != (shape, shards, attributes):
        raise FileExistsError(f"{str(path)!r} is not what the demo would write there: {remedy}")
    return array


def stored_bytes(path: Path) -> int:
    """What a store takes on disk."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
