"""What input must be, whatever holds it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class RowAnnotations(NamedTuple):
    """What a user gives for each sample."""

    weight: Any = None
    labels: Any = None

    @property
    def named(self) -> Iterator[tuple[str, Any]]:
        return zip(("sample_weight", "labels"), self, strict=True)

    @property
    def names(self) -> list[str]:
        """Of arrays of the data that these are, where a user gives their names."""
        return [each for each in self if isinstance(each, str)]

    def found(self, arrays: Mapping[str, Any]) -> RowAnnotations:
        """The arrays in place of their names."""
        return RowAnnotations(*(arrays[each] if isinstance(each, str) else each for each in self))

    def checked(self, shape: tuple[int, ...]) -> RowAnnotations:
        """As arrays of the shape of the sample dimensions.

        Raises
        ------
        ValueError
            Of another shape than the samples, or not numbers.
        """
        return RowAnnotations(*(_one_a_sample(name, array, shape) for name, array in self.named))


NO_ANNOTATIONS = RowAnnotations()


def _one_a_sample(name: str, array: Any, shape: tuple[int, ...]) -> Any:
    if array is None:
        return None
    array = array if hasattr(array, "dtype") else np.asarray(array)
    if array.shape != shape:
        one = "label" if name == "labels" else "weight"
        raise ValueError(f"{name}.shape == {array.shape}, expected {shape}: give one {one} a sample")
    check_real(array.dtype, name)
    check_unmasked(array, name)
    return array


def first(bad: npt.NDArray[np.bool_], x: npt.NDArray[Any]) -> tuple[int, int, float] | None:
    """The first value of rows (n, d) that is marked, if one is: its row, its feature and itself."""
    if not bad.any():
        return None
    row, feature = map(int, np.unravel_index(np.argmax(bad), bad.shape))
    return row, feature, float(x[row, feature])


def check_extent(shape: tuple[int, ...], n_features: int) -> None:
    """Refuse what holds nothing, with scikit-learn's words.

    Raises
    ------
    ValueError
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
    """
    if dtype.kind not in "biuf":
        remedy = "fit the real and imaginary parts as features" if dtype.kind == "c" else "convert them first"
        raise ValueError(f"{what} has dtype {dtype}, but a mixture needs real numbers: {remedy}")


def check_unmasked(array: Any, what: str) -> None:
    """Refuse NumPy's masks, under which there may be any values: other libraries' functions do not look at them.

    Raises
    ------
    ValueError
    """
    lazy = isinstance(getattr(array, "_meta", None), np.ma.MaskedArray)  # dask's
    if lazy or np.ma.is_masked(array):
        raise ValueError(
            f"{what} is masked: put NaN under the mask, by x.astype(float).filled(numpy.nan) or dask.array.ma.filled,"
            " and pass missing='drop' to leave such rows out"
        )


def check_kind(data: Any) -> None:
    """Refuse what holds an array and is none, and say how to get at it.

    Raises
    ------
    TypeError
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
    """Refuse sparse arrays, and dask's of sparse blocks.

    Raises
    ------
    TypeError
    """
    block = getattr(array, "_meta", array)
    for dense in ("toarray", "todense"):  # SciPy's name, and that of others
        if hasattr(block, dense):
            kind = f"({type(block).__name__}), but a mixture needs all values"
            if block is array:
                raise TypeError(f"the array is sparse {kind}: give its .{dense}()")
            raise TypeError(
                f"the array has sparse blocks {kind}: make them dense by x.map_blocks(lambda b: b.{dense}(), "
                "dtype=x.dtype)"
            )
