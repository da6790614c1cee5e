"""The products with φ against NumPy's."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm.em import layout
from daskgmm.em.kernel import ThetaGroups, joint, multiply

pytestmark = pytest.mark.usefixtures("one_thread")  # as passes call it


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 70),
    p=st.integers(1, 24),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    narrow=st.sampled_from([0, 8, 12]),
    rows_first=st.booleans(),
    wider=st.integers(0, 5),
    dtype=st.sampled_from([np.float64, np.float32]),
)
def test_products_are_numpy_s(
    n: int, p: int, sizes: list[int], narrow: int, rows_first: bool, wider: int, dtype: Any
) -> None:
    """By loops or by BLAS, either way round, for any split into groups, multiplied as any number of columns.

    Each row and component has its own value.
    """
    rng = np.random.default_rng(n + p)
    ends, k, tolerance = np.cumsum(sizes), sum(sizes), 100 * np.finfo(dtype).eps
    phi, theta = rng.standard_normal((p, n)).astype(dtype), rng.standard_normal((k, p)).astype(dtype)
    phi[0] = 1
    groups = ends, np.array(sizes) + (wider if rows_first and not narrow else 0)
    laid_out = ThetaGroups(layout._laid_out(theta, *groups), *groups, narrow, rows_first)
    widest = max(laid_out.widths)
    side, room = np.full(n * widest, np.nan, dtype), np.full(p * widest, np.nan, dtype)

    found = np.full((k, n), np.nan, dtype)
    joint(phi, laid_out, side, found)
    scale = np.abs(theta).astype(np.float64) @ np.abs(phi)
    assert (np.abs(found - theta.astype(np.float64) @ phi) <= tolerance * scale).all()

    own, moments = rng.random(k) < 0.3, np.ones((k, p))
    for first, last in pairwise([0, *ends]):
        multiply(phi, found, first, last, laid_out, side, room, own, moments)
    exact = np.where(own[:, None], 0, found.astype(np.float64) @ phi.T.astype(np.float64))
    scale = np.abs(found).astype(np.float64) @ np.abs(phi.T)
    assert (np.abs(moments - 1 - exact) <= tolerance * (scale + 1)).all()


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=20),
    most=st.sampled_from([16, 128]),
    wider=st.sampled_from([(), layout._WIDER]),
)
def test_groups_are_of_one_model_and_not_too_large(sizes: list[int], most: int, wider: Any) -> None:
    ends = np.cumsum(sizes)
    groups, widths = layout._groups(ends, most, wider)
    counts = np.diff(groups, prepend=0)
    assert np.isin(ends, groups).all()
    assert groups[-1] == ends[-1]
    assert (counts > 0).all()
    assert counts.max() < most + most // 4
    assert (widths >= counts).all()
    assert (widths - counts).max() <= max((short for _, short in wider), default=0)
