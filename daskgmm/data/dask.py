"""Samples in dask arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.core import flatten

from daskgmm.data.blocks import BLOCK_VALUES, Block, Region, Samples, Source, region_size
from daskgmm.data.broadcast import BroadcastArray
from daskgmm.data.checks import NO_ANNOTATIONS, RowAnnotations, check_dense, check_extent


def of_dask(
    arrays: Sequence[Any], shape: tuple[int, ...], n_features: int, beside: RowAnnotations = NO_ANNOTATIONS
) -> Samples:
    """Samples in dask arrays: one with the features last, or one a feature.

    A row's features are needed side by side: chunks over the features are joined and all arrays chunked
    alike. Along the samples the first array's chunks are kept, and one task takes several small ones.

    Raises
    ------
    ValueError
        An array does not know its shape.
    """
    for array in arrays:
        check_dense(array)
    if any(np.isnan(size) for array in arrays for size in array.shape):
        raise ValueError("the dask array does not know its shape: call its compute_chunk_sizes() first")
    check_extent(shape, n_features)
    ndim = len(shape)
    chunks = tuple(tuple(c for c in axis if c) for axis in arrays[0].chunks[:ndim])
    arrays = [a.rechunk(chunks + tuple((size,) for size in a.shape[ndim:])) for a in arrays]
    dtype = np.result_type(*(a.dtype for a in arrays))
    beside = RowAnnotations(*(None if a is None else _lazy(a).rechunk(chunks) for a in beside.checked(shape)))
    arrays += [a for a in beside if a is not None]
    graph: dict[Any, Any] = {}
    for array, optimized in zip(arrays, dask.optimize(*arrays), strict=True):
        graph.update(optimized.__dask_graph__())
        # Of an array that a cluster holds, persisted, the optimization loses the futures.
        graph.update({key: array.dask[key] for key in flatten(array.__dask_keys__()) if key not in graph})

    corners = [np.cumsum((0, *axis)).tolist() for axis in chunks]
    blocks: list[Block] = []
    regions: list[Region] = []
    keys: list[tuple[Any, ...]] = []
    start = held = 0
    for at in product(*(range(len(axis)) for axis in chunks)):
        region = tuple(slice(c[i], c[i + 1]) for c, i in zip(corners, at, strict=True))
        if regions and (held + region_size(region)) * n_features > BLOCK_VALUES:
            blocks.append(Block(len(blocks), start, tuple(regions), tuple(keys)))
            start, held, regions, keys = start + held, 0, [], []
        regions.append(region)
        keys.append(tuple((a.name, *at, *(0,) * (a.ndim - ndim)) for a in arrays))
        held += region_size(region)
    if held:
        blocks.append(Block(len(blocks), start, tuple(regions), tuple(keys)))
    return Samples(
        shape,
        n_features,
        dtype,
        tuple(blocks),
        Source((), *beside),
        region_bytes=max((block.n for block in blocks), default=0) * n_features * dtype.itemsize,
        graph=graph,
    )


def _lazy(array: Any) -> Any:
    return array if isinstance(array, BroadcastArray) else da.asarray(array)
