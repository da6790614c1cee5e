"""Values of coordinates, for people to find a row again by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Axis = npt.NDArray[np.generic]

_LONGEST = 2**14  # values: they go to workers with each task


def axes(coords: Mapping[Any, Any] | None, dims: Sequence[str] | None) -> tuple[Axis | None, ...]:
    """The coordinates of dimensions, None where one has none, has very many, or would first have to be read."""
    return tuple(_axis((coords or {}).get(dim)) for dim in dims or ())


def _axis(variable: Any) -> Axis | None:
    if variable is None or variable.ndim != 1 or variable.size > _LONGEST or not variable._in_memory:
        return None
    # A worker may not know the class of a time in a model's calendar.
    texts = variable.dtype.kind == "O"
    return np.array([str(value) for value in variable.values]) if texts else np.asarray(variable.values)


def shown(value: Any) -> str:
    """2001-02-01, -59.25 and such."""
    if isinstance(value, np.datetime64):
        return str(np.datetime_as_string(value, unit="auto"))
    return f"{value:.8g}" if isinstance(value, np.floating) else str(value)
