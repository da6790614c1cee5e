"""What one pass over the data finds under a model: counts, and the rows that the model explains worst."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.data.blocks import Block, Region, Samples, joined
from daskgmm.em.estep import compile_prediction
from daskgmm.families.base import Components
from daskgmm.families.encoding import PLAIN, FeatureEncoding
from daskgmm.families.frame import Array, Rows
from daskgmm.passes.graph import total
from daskgmm.passes.memory import check_memory
from daskgmm.passes.reader import Kernel, Reader
from daskgmm.prediction.predict import LABELS, LOG_CERTAINTY, LOG_DENSITY, block_kernel
from daskgmm.reporting.grid import Grid

UNCERTAINTIES = np.linspace(0, 1, 51)  # edges of the bins of 1 - max γ
WORST = 20  # rows that are kept, of the lowest densities

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Worst:
    """The rows of the lowest densities, at most `WORST`, from the lowest on; of equal ones the first."""

    log_density: Array  # (m,)
    index: Counts  # (m,)  number of the row in the order of the data, whatever their blocks
    label: Counts  # (m,)
    x: Array  # (m, d)

    def __add__(self, other: Worst) -> Worst:
        log_density, index, label, x = (
            np.concatenate([getattr(some, name) for some in (self, other)]) for name in self.__dataclass_fields__
        )
        lowest = np.lexsort((index, log_density))[:WORST]
        return Worst(log_density[lowest], index[lowest], label[lowest], x[lowest])


@dataclass(frozen=True)
class DataSummary:
    """What some rows show. ``Seen(rows A) + Seen(rows B) == Seen(A and B)``, sums to rounding and the rest exactly."""

    n: int  # rows without missing values
    n_missing: int  # others
    log_density: float  # Σ log p(x)
    marginals: Counts  # (f, bins)  rows in the bins of each feature of the grid
    joints: Counts  # (pairs, bins, bins)
    uncertainty: Counts  # (k, bins)  rows by their component and by 1 - max γ
    doubt: Array  # (k,)  Σ 1 - max γ of the rows of each component
    worst: Worst

    def __add__(self, other: DataSummary) -> DataSummary:
        return DataSummary(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})

    @property
    def counts(self) -> Counts:
        """Rows of each component: (k,)."""
        return self.uncertainty.sum(axis=1)


def see(
    samples: Samples, model: Components, grid: Grid, missing: str, encoding: FeatureEncoding = PLAIN
) -> DataSummary:
    """Look at all samples under a model, in one pass.

    Parameters
    ----------
    samples : Samples
    model : Components
        In the user's units.
    grid : Grid
    missing : {"raise", "drop", "skip", "fill"}
    encoding : FeatureEncoding
        Of the model's family.

    Raises
    ------
    ValueError
        A value is not finite and ``missing`` is not "drop", or there is nothing else.
    MemoryError
        A block does not fit in a worker's memory.
    """
    samples = joined(samples)
    check_memory(samples)
    compile_prediction(model)
    predict = block_kernel(samples, model, (LABELS, LOG_DENSITY, LOG_CERTAINTY), missing, encoding)
    kernel = partial(_see, predict=predict, grid=grid, shape=samples.shape, k=len(model.means))
    found: DataSummary = total(Reader(samples), kernel)[0]
    if found.n == 0:
        raise ValueError("no sample without missing values: there is nothing to report of these data")
    return found


def place(samples: Samples, index: int) -> str:
    """Where a row of that number stands, in words."""
    return samples.locator(Block(0, 0, (tuple(map(slice, (0,) * len(samples.shape), samples.shape)),)), index, None)


def _see(
    block: Block, pieces: Iterator[Rows], predict: Kernel, grid: Grid, shape: tuple[int, ...], k: int
) -> tuple[DataSummary]:
    found = []
    for region, (x, _) in zip(block.regions, pieces, strict=True):
        labels, log_density, log_certainty = predict(replace(block, regions=(region,)), iter([(x, None)]))
        found.append(_of_rows(x, labels, log_density, log_certainty, grid, region, shape, k))
    return (reduce(add, found),)


def _of_rows(
    x: npt.NDArray[Any],
    labels: Counts,
    log_density: Array,
    log_certainty: Array,
    grid: Grid,
    region: Region,
    shape: tuple[int, ...],
    k: int,
) -> DataSummary:
    there = labels >= 0
    # Of a row so far off that its distances overflow, nothing is a number: no component explains it at all.
    log_density = np.where(np.isnan(log_density), -np.inf, log_density)
    labels, doubt = labels[there], np.nan_to_num(np.maximum(-np.expm1(log_certainty[there]), 0), nan=1.0)
    n_bins = grid.edges.shape[1] - 1
    bins = [_binned(x[there, i], edges) for i, edges in zip(grid.features, grid.edges, strict=True)]
    doubts = len(UNCERTAINTIES) - 1
    return DataSummary(
        int(there.sum()),
        int((~there).sum()),
        float(log_density[there].sum()),
        np.array([_counted(some, n_bins) for some in bins], dtype=np.int64).reshape(-1, n_bins),
        np.array([_crossed(bins[i], bins[j], n_bins) for i, j in grid.pairs], dtype=np.int64).reshape(
            -1, n_bins, n_bins
        ),
        np.bincount(labels * doubts + _binned(doubt, UNCERTAINTIES), minlength=k * doubts).reshape(k, doubts),
        np.bincount(labels, doubt, minlength=k).astype(np.float64),
        _worst(x, labels, log_density, np.flatnonzero(there), region, shape),
    )


def _worst(
    x: npt.NDArray[Any], labels: Counts, log_density: Array, rows: Counts, region: Region, shape: tuple[int, ...]
) -> Worst:
    """Of a region, in which rows stand in the order of the data."""
    some = log_density[rows]
    lowest = np.argsort(some, kind="stable")[:WORST]
    at = rows[lowest]
    corner = np.array([s.start for s in region])[:, None]
    inside = np.array(np.unravel_index(at, [s.stop - s.start for s in region]))
    index = np.ravel_multi_index(tuple(inside + corner), shape)
    return Worst(some[lowest], index.astype(np.int64), labels[lowest].astype(np.int64), x[at].astype(np.float64))


def _binned(values: npt.NDArray[Any], edges: Array) -> Counts:
    """The bin of each value, as NumPy's histograms take them: the last one holds its upper edge; -1: none."""
    found = np.searchsorted(edges, values, side="right") - 1
    n = len(edges) - 1
    found[values == edges[-1]] = n - 1
    found[found >= n] = -1  # NaN is sorted to the end
    return found


def _counted(bins: Counts, n: int) -> Counts:
    return np.bincount(bins[bins >= 0], minlength=n)


def _crossed(left: Counts, right: Counts, n: int) -> Counts:
    both = (left >= 0) & (right >= 0)
    return np.bincount(left[both] * n + right[both], minlength=n * n).reshape(n, n)
