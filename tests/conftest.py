"""What several test modules share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from daskgmm.data.blocks import Source
from daskgmm.process import single_blas


@pytest.fixture(scope="session")
def blobs() -> npt.NDArray[np.float64]:
    """Three well separated groups of rows: (600, 3)."""
    rng = np.random.default_rng(7)
    centres = np.array([[0.0, 0.0, 0.0], [9.0, 1.0, -5.0], [-4.0, 8.0, 3.0]])
    rows: npt.NDArray[np.float64] = np.repeat(centres, 200, axis=0) + rng.standard_normal((600, 3))
    return rows


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """BLAS on one thread, for references on few rows: its threads wait for each other on a busy machine."""
    with single_blas():
        yield


class Reads:
    """Counts the rows that are read from a store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = 0
        read = Source.read

        def counted(source: Source, region: Any) -> Any:
            x, w = read(source, region)
            self.rows += len(x) if source.store_root is not None else 0
            return x, w

        monkeypatch.setattr(Source, "read", counted)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)
