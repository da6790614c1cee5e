"""Samples in dask arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.core import flatten

from daskgmm.data.blocks import BLOCK_VALUES, Region, Samples, Source, numbered, region_size
from daskgmm.data.broadcast import BroadcastArray
from daskgmm.data.checks import NO_ANNOTATIONS, RowAnnotations, check_dense, check_extent


def of_dask(
    arrays: Sequence[Any], shape: tuple[int, ...], n_features: int, annotations: RowAnnotations = NO_ANNOTATIONS
) -> Samples:
    """Describe samples in dask arrays: one array with the features last, or one per feature.

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
    given = (a if a is None or isinstance(a, BroadcastArray) else da.asarray(a) for a in annotations.checked(shape))
    annotations = RowAnnotations(*(None if a is None else a.rechunk(chunks) for a in given))
    arrays += [a for a in annotations if a is not None]
    graph: dict[Any, Any] = {}
    for array, optimized in zip(arrays, dask.optimize(*arrays), strict=True):
        graph.update(optimized.__dask_graph__())
        # The optimization drops the futures of an array that is persisted on a cluster.
        graph.update({key: array.dask[key] for key in flatten(array.__dask_keys__()) if key not in graph})

    edges = [np.cumsum((0, *axis)).tolist() for axis in chunks]
    groups: list[tuple[list[Region], list[Any]]] = []  # regions and keys of each block
    values = BLOCK_VALUES  # of the last group: none is open yet
    for at in product(*(range(len(axis)) for axis in chunks)):
        region = tuple(slice(e[i], e[i + 1]) for e, i in zip(edges, at, strict=True))
        added = region_size(region) * n_features
        if values + added > BLOCK_VALUES:
            groups.append(([], []))
            values = 0
        values += added
        groups[-1][0].append(region)
        groups[-1][1].append(tuple((a.name, *at, *(0,) * (a.ndim - ndim)) for a in arrays))
    blocks = numbered(groups)
    return Samples(
        shape,
        n_features,
        dtype,
        blocks,
        Source((), *annotations),
        region_bytes=max(block.n for block in blocks) * n_features * dtype.itemsize,
        graph=graph,
    )
