"""Checks that any input must pass, whichever library holds it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class RowAnnotations(NamedTuple):
    """The arrays that a user gives beside the features, with one value per sample; or their names in the data."""

    weight: Any = None
    labels: Any = None

    @property
    def named(self) -> Iterator[tuple[str, Any]]:
        """The annotations with the names of the arguments by which they are given."""
        return zip(("sample_weight", "labels"), self, strict=True)

    @property
    def array_names(self) -> list[str]:
        """The names of the data's arrays that are annotations."""
        return [each for each in self if isinstance(each, str)]

    def resolve(self, arrays: Mapping[str, Any]) -> RowAnnotations:
        """Replace names by the arrays of these names."""
        return RowAnnotations(*(arrays[each] if isinstance(each, str) else each for each in self))

    def checked(self, shape: tuple[int, ...]) -> RowAnnotations:
        """Return the annotations as arrays of the shape of the sample dimensions.

        Raises
        ------
        ValueError
            An array has another shape than the samples, is masked, or does not hold real numbers.
        """
        return RowAnnotations(*(_checked(name, array, shape) for name, array in self.named))


NO_ANNOTATIONS = RowAnnotations()


def _checked(name: str, array: Any, shape: tuple[int, ...]) -> Any:
    if array is None:
        return None
    array = array if hasattr(array, "dtype") else np.asarray(array)
    if array.shape != shape:
        one = "label" if name == "labels" else "weight"
        raise ValueError(f"{name}.shape == {array.shape}, expected {shape}: give one {one} a sample")
    check_real(array.dtype, name)
    check_unmasked(array, name)
    return array


def first_marked(mask: npt.NDArray[np.bool_], x: npt.NDArray[Any]) -> tuple[int, int, float] | None:
    """Return row, feature and value of the first marked value of rows x (n, d), or None if no value is marked."""
    if not mask.any():
        return None
    row, feature = map(int, np.unravel_index(np.argmax(mask), mask.shape))
    return row, feature, float(x[row, feature])


def check_extent(shape: tuple[int, ...], n_features: int) -> None:
    """Refuse data without samples or features, with scikit-learn's messages.

    Raises
    ------
    ValueError
        There are none.
    """
    if n_features == 0:
        raise ValueError(f"0 feature(s) (shape={(*shape, 0)}) while a minimum of 1 is required.")
    if math.prod(shape) == 0:
        raise ValueError(
            f"Found array with 0 sample(s) (shape={(*shape, n_features)}) while a minimum of 1 is required."
        )


def check_real(dtype: np.dtype[Any], what: str) -> None:
    """Refuse values that are not real numbers.

    Raises
    ------
    ValueError
        The dtype is complex, or not numeric.
    """
    if dtype.kind not in "biuf":
        remedy = "fit the real and imaginary parts as features" if dtype.kind == "c" else "convert them first"
        raise ValueError(f"{what} has dtype {dtype}, but a mixture needs real numbers: {remedy}")


def check_unmasked(array: Any, what: str) -> None:
    """Refuse masked arrays: the values under a mask are arbitrary, and most libraries' functions ignore the mask.

    Raises
    ------
    ValueError
        A value is masked, or a dask array has masked blocks.
    """
    lazy = isinstance(getattr(array, "_meta", None), np.ma.MaskedArray)  # dask's
    if lazy or np.ma.is_masked(array):
        raise ValueError(
            f"{what} is masked: put NaN under the mask, by x.astype(float).filled(numpy.nan) or dask.array.ma.filled,"
            " and pass missing='drop' to leave such rows out"
        )


def check_kind(data: Any) -> None:
    """Refuse containers of arrays and sparse arrays, and say how to get the array.

    Raises
    ------
    TypeError
        The data are of such a kind.
    """
    remedy = None
    if hasattr(data, "to_dask_array"):
        remedy = "its .to_dask_array(lengths=True)"
    elif hasattr(data, "X") and not hasattr(data, "__array__"):  # AnnData
        remedy = "the array that it holds, its .X"
    if remedy is not None:
        raise TypeError(f"cannot read samples from {type(data).__name__}: give {remedy}")
    check_dense(data)


def check_dense(array: Any) -> None:
    """Refuse sparse arrays, and dask arrays of sparse blocks.

    Raises
    ------
    TypeError
        The array is sparse.
    """
    block = getattr(array, "_meta", array)
    for dense in ("toarray", "todense"):  # the method's name in SciPy, and in other libraries
        if hasattr(block, dense):
            kind = f"({type(block).__name__}), but a mixture needs all values"
            if block is array:
                raise TypeError(f"the array is sparse {kind}: give its .{dense}()")
            raise TypeError(
                f"the array has sparse blocks {kind}: make them dense by x.map_blocks(lambda b: b.{dense}(), "
                "dtype=x.dtype)"
            )
