"""What the values of a row mean to a family: which it takes, and the columns that they are to φ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_STRIP_VALUES = 2**17  # 1 MiB as float64
_LEAST_ROWS = 1016  # of a strip: as many as a tile of the kernel may have


@dataclass(frozen=True)
class FeatureEncoding:
    """Real numbers, each the column that it is. Of other values, a family says more."""

    @property
    def plain(self) -> bool:
        """Is each value the column that it is?"""
        return True

    @property
    def needs(self) -> str:
        """What values must be, for errors."""
        return "real numbers"

    @property
    def skips(self) -> bool:
        """Does a missing value leave the others of its row to count?"""
        return False

    def outside(self, x: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
        """Which of the values x (n, d) the family has no place for, those that are not finite apart; None: none."""
        return None

    def encode(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Rows x (n, d) as the columns (n, q) of which φ is made; not finite where a row is to be left out."""
        return x

    def width(self, d: int) -> int:
        """Columns of d features."""
        return d

    def usable(self, finite: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which rows there is something to say of, given which of their values are finite (n, d): (n,)."""
        return np.asarray(finite.any(axis=1) if self.skips else finite.all(axis=1))


PLAIN = FeatureEncoding()


def strip_rows(width: int) -> int:
    """Count the rows of some width that are encoded or converted at a time, about a MiB of them."""
    return max(_LEAST_ROWS, _STRIP_VALUES // max(1, width))


def spans(n: int, rows: int) -> Iterator[slice]:
    """Cut n rows into slices of so many."""
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))
