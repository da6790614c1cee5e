"""Annotations that are given along some of the samples' dimensions, for all samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class BroadcastArray:
    """An array that is repeated along the dimensions it lacks, without taking memory for the repetitions."""

    array: Any  # of some dimensions, read by `array[region]`
    axes: tuple[int, ...]  # of the samples' dimensions, those of `array`, in its order
    shape: tuple[int, ...]  # of the samples

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def origin(self) -> Any:
        """The Zarr array in which it is stored; an AttributeError where it is in memory."""
        return self.array.origin

    def __getitem__(self, region: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        values = np.asarray(self.array[tuple(region[axis] for axis in self.axes)])
        extent = [len(range(*s.indices(n))) for s, n in zip(region, self.shape, strict=True)]
        return np.broadcast_to(values[self._expand], extent)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        return np.asarray(self[tuple(map(slice, self.shape))], dtype)

    def rechunk(self, chunks: tuple[tuple[int, ...], ...]) -> Any:
        """Return a dask array of these chunks, each of which is broadcast on its own."""
        import dask.array as da

        values = da.asarray(self.array).rechunk(tuple(chunks[axis] for axis in self.axes))
        return da.broadcast_to(values[self._expand], self.shape, chunks)

    @property
    def _expand(self) -> tuple[slice | None, ...]:
        """The index that gives `array` all dimensions of the samples, of length 1 where it has none."""
        return tuple(slice(None) if axis in self.axes else None for axis in range(len(self.shape)))
