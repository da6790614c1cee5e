"""What several test modules share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest


@pytest.fixture(scope="session")
def blobs() -> npt.NDArray[np.float64]:
    """Three well separated groups of rows: (600, 3)."""
    rng = np.random.default_rng(7)
    centres = np.array([[0.0, 0.0, 0.0], [9.0, 1.0, -5.0], [-4.0, 8.0, 3.0]])
    rows: npt.NDArray[np.float64] = np.repeat(centres, 200, axis=0) + rng.standard_normal((600, 3))
    return rows
