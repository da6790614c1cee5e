"""Laws of the blocks: they tile the samples, in whole units of storage, each row at one position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from unittest import mock

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskgmm.data import blocks as module
from daskgmm.data.blocks import Source, joined, of_numpy, region_size, regular_blocks
from daskgmm.data.dask import of_dask
from daskgmm.fitting.survey import draw
from daskgmm.passes.graph import assemble

sizes = st.integers(1, 12)


@st.composite
def grids(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Shape, chunks, and shards of one to three dimensions; a shard is whole chunks."""
    ndim = draw(st.integers(1, 3))
    shape = [draw(sizes) for _ in range(ndim)]
    chunks = [draw(st.integers(1, 5)) for _ in range(ndim)]
    shards = [chunk * draw(st.integers(1, 3)) for chunk in chunks]
    return shape, chunks, shards


def blocks_of(shape: Sequence[int], chunks: Sequence[int], shards: Sequence[int], block: int, region: int) -> Any:
    with mock.patch.multiple(module, BLOCK_VALUES=block, _REGION_VALUES=region):
        return regular_blocks(shape, 1, chunks, shards)


@given(grids(), st.integers(1, 500), st.integers(1, 100))
def test_blocks_tile_the_samples(grid: Any, block: int, region: int) -> None:
    shape, chunks, shards = grid
    times_read = np.zeros(shape, dtype=int)
    found = blocks_of(shape, chunks, shards, block, region)
    for each in found:
        for box in each.regions:
            times_read[box] += 1
        assert each.n == region_size(each.region)  # its regions fill a box
    assert (times_read == 1).all()


@given(grids(), st.integers(1, 500), st.integers(1, 100))
def test_a_block_is_whole_shards_and_a_region_whole_chunks(grid: Any, block: int, region: int) -> None:
    shape, chunks, shards = grid
    for each in blocks_of(shape, chunks, shards, block, region):
        assert_aligned(each.region, shards, shape)
        for box in each.regions:
            assert_aligned(box, chunks, shape)


def assert_aligned(box: tuple[slice, ...], unit: Sequence[int], shape: Sequence[int]) -> None:
    for at, step, size in zip(box, unit, shape, strict=True):
        assert at.start % step == 0
        assert at.stop % step == 0 or at.stop == size


@given(grids(), st.integers(1, 500), st.integers(1, 100))
def test_positions_are_contiguous(grid: Any, block: int, region: int) -> None:
    found = blocks_of(*grid, block, region)
    assert found[0].start == 0
    assert [each.index for each in found] == list(range(len(found)))
    assert all(b.start == a.start + a.n for a, b in pairwise(found))


@given(grids(), st.integers(1, 500), st.integers(1, 100))
def test_blocks_are_no_larger_than_asked_unless_storage_is(grid: Any, block: int, region: int) -> None:
    shape, chunks, shards = grid
    for each in blocks_of(shape, chunks, shards, block, region):
        assert each.n <= max(block, math.prod(shards))
        unit = shards if math.prod(shards) <= block else chunks
        assert all(region_size(box) <= max(region, math.prod(unit)) for box in each.regions)


@given(grids(), st.integers(1, 500), st.integers(1, 100), st.integers(1, 2000), st.integers(1, 8))
def test_joined_blocks_hold_the_same_rows_in_the_same_order(
    grid: Any, block: int, region: int, values: int, least: int
) -> None:
    found = blocks_of(*grid, block, region)
    samples = module.Samples(tuple(grid[0]), 1, np.dtype(float), found, Source(()))
    with mock.patch.multiple(module, _JOINED_VALUES=values, _LEAST_JOINED=least):
        fewer = joined(samples).blocks
    assert [box for each in fewer for box in each.regions] == [box for each in found for box in each.regions]
    assert [each.index for each in fewer] == list(range(len(fewer)))
    assert [each.start for each in fewer] == [sum(b.n for b in fewer[:i]) for i in range(len(fewer))]
    assert len(fewer) >= min(len(found), least)
    assert all(each.n <= max(values, found[0].n) for each in fewer)


def test_small_chunks_are_joined_along_every_axis() -> None:
    """One time step of a map in small tiles is not one task a tile."""
    assert len(regular_blocks((1, 1000, 1000), 2, (1, 10, 10))) == 1


def test_the_number_of_blocks_of_a_large_store_is_bounded() -> None:
    blocks = regular_blocks((10**10,), 16, (10**6,))
    assert len(blocks) <= 2 * module._MAX_BLOCKS  # a block of whole shards may be half of what is asked for


@given(grids(), st.integers(1, 500), st.integers(1, 100), st.sampled_from([(), (2,)]))
def test_assemble_puts_each_row_in_its_place(grid: Any, block: int, region: int, extra: tuple[int, ...]) -> None:
    shape = grid[0]
    whole = np.arange(math.prod((*shape, *extra))).reshape(*shape, *extra)
    for each in blocks_of(*grid, block, region):
        rows = np.concatenate([whole[box].reshape(-1, *extra) for box in each.regions])
        np.testing.assert_array_equal(assemble(each, rows), whole[each.region])


@given(grids(), st.integers(1, 3), st.integers(1, 500), st.integers(1, 100))
def test_a_source_reads_the_same_rows_from_one_array_and_from_one_a_feature(
    grid: Any, d: int, block: int, region: int
) -> None:
    shape = grid[0]
    array = np.arange(math.prod(shape) * d, dtype=float).reshape(*shape, d)
    weight = np.arange(math.prod(shape)).reshape(shape)
    together, apart = Source((array,), weight), Source(tuple(np.moveaxis(array, -1, 0)))
    for each in blocks_of(*grid, block, region):
        for box in each.regions:
            x, w = together.read(box)
            np.testing.assert_array_equal(x, apart.read(box)[0])
            np.testing.assert_array_equal(x[:, 0], w * d)
            assert x.shape == (region_size(box), d)
            assert apart.read(box)[1] is None


@st.composite
def chunked(draw: st.DrawFn) -> tuple[tuple[int, ...], ...]:
    """Ragged chunks of one or two dimensions, some of them empty, and the features'."""
    ndim = draw(st.integers(1, 2))
    axes = [draw(st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(sum)) for _ in range(ndim)]
    return (*(tuple(axis) for axis in axes), draw(st.sampled_from([(2,), (1, 1)])))


@given(chunked(), st.integers(1, 40))
def test_blocks_of_dask_arrays_take_each_row_once(chunks: tuple[tuple[int, ...], ...], size: int) -> None:
    shape = tuple(map(sum, chunks[:-1]))
    with mock.patch("daskgmm.data.dask.BLOCK_VALUES", size):
        samples = of_dask([da.zeros((*shape, 2), chunks=chunks)], shape, 2)
    times_read = np.zeros(shape, dtype=int)
    position = 0
    for block in samples.blocks:
        assert block.start == position
        position += block.n
        assert len(block.keys) == len(block.regions)
        for box in block.regions:
            times_read[box] += 1
    assert (times_read == 1).all()


@given(
    st.integers(1, 300),
    st.integers(1, 400),
    st.integers(1, 60),
    st.integers(0, 2**32 - 1),
)
def test_draw_is_a_sample_without_replacement_split_by_block(n: int, size: int, rows: int, seed: int) -> None:
    with mock.patch.object(module, "BLOCK_VALUES", rows):
        samples = of_numpy([np.zeros((n, 1))], (n,), 1)
    drawn = draw(samples, size, np.random.RandomState(seed))
    positions = np.concatenate(drawn)
    assert len(positions) == min(n, size)
    assert (np.diff(positions) > 0).all()
    assert len(drawn) == len(samples.blocks)
    for block, inside in zip(samples.blocks, drawn, strict=True):
        assert ((inside >= block.start) & (inside < block.start + block.n)).all()
    if n <= size:
        np.testing.assert_array_equal(positions, np.arange(n))


def test_draw_is_uniform() -> None:
    samples = of_numpy([np.zeros((50, 1))], (50,), 1)
    rng = np.random.RandomState(0)
    counts = np.bincount(np.concatenate([np.concatenate(draw(samples, 10, rng)) for _ in range(2000)]), minlength=50)
    # Each row is in 400 of the samples, ± 18 (binomial).
    assert abs(counts - 400).max() < 5 * 18


@pytest.mark.parametrize("position", [0, 7, 23, 59])
def test_a_position_is_located_where_its_value_stands(position: int) -> None:
    shape = (3, 4, 5)
    with mock.patch.multiple(module, BLOCK_VALUES=8, _REGION_VALUES=4):
        blocks = regular_blocks(shape, 1, (1, 2, 2), (2, 2, 4))
    samples = module.Samples(shape, 1, np.dtype(float), blocks, Source(()))
    order = [at for block in blocks for box in block.regions for at in np.ndindex(*shape) if inside(at, box)]
    assert samples.locate(position) == f"row {order[position]}"
    assert samples.locate(position, 0) == f"row {order[position]}, feature 0"


def inside(at: tuple[int, ...], box: tuple[slice, ...]) -> bool:
    return all(s.start <= i < s.stop for i, s in zip(at, box, strict=True))
