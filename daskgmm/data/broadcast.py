"""What is given along some of the samples' dimensions, for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class BroadcastArray:
    """An array that is repeated along the dimensions that it lacks, and takes no more memory for it."""

    array: Any  # read by `array[region]`, of its own dimensions
    axes: tuple[int, ...]  # which of the samples' dimensions these are, in this order
    shape: tuple[int, ...]  # of the samples

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = self.array.dtype
        return found

    @property
    def origin(self) -> Any:
        """Where it is stored, if it is."""
        return self.array.origin

    def __getitem__(self, region: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        some = np.asarray(self.array[tuple(region[axis] for axis in self.axes)])
        extent = [len(range(*s.indices(n))) for s, n in zip(region, self.shape, strict=True)]
        return np.broadcast_to(some[self._own], extent)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        found = self[tuple(slice(n) for n in self.shape)]
        return found if dtype is None else found.astype(dtype)

    def rechunk(self, chunks: tuple[tuple[int, ...], ...]) -> Any:
        """A dask array of such chunks, none of which has been part of a larger one."""
        import dask.array as da

        few = da.asarray(self.array).rechunk(tuple(chunks[axis] for axis in self.axes))
        return da.broadcast_to(few[self._own], self.shape, chunks)

    @property
    def _own(self) -> tuple[slice | None, ...]:
        return tuple(slice(None) if axis in self.axes else None for axis in range(len(self.shape)))
