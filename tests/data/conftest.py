"""What the tests of inputs share."""

from __future__ import annotations

import pytest
from hypothesis import settings

import daskgmm.data.blocks
import daskgmm.data.dask

settings.register_profile("daskgmm", deadline=None)  # of a busy machine's clock, not of the code
settings.load_profile("daskgmm")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks and regions, of little data: 200 and 100 rows of three features, where storage's units allow it."""
    monkeypatch.setattr(daskgmm.data.blocks, "BLOCK_VALUES", 600)
    monkeypatch.setattr(daskgmm.data.dask, "BLOCK_VALUES", 600)
    monkeypatch.setattr(daskgmm.data.blocks, "_REGION_VALUES", 300)
