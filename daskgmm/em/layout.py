"""Models as the kernel takes them: laid out once a pass, for all of its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daskgmm.em import kernel
from daskgmm.families.base import Components
from daskgmm.families.frame import Array
from daskgmm.process import architectures

Precision = np.dtype[np.floating[Any]]
DOUBLE, SINGLE = np.dtype(np.float64), np.dtype(np.float32)
_TILE_VALUES = 40_000  # 320 kB, well inside a core's second-level cache (measured: D = 4 … 64, K = 8 … 64)
# Rows of a tile. Not a power of two, for which all rows of φ would share one place in the cache.
LARGEST_TILE = 1016
_WIDE = 100  # values a row from which on φ is wide
# With AVX-512, OpenBLAS multiplies matrices of up to 100³ multiplications without copying them first: up to 1.9 times
# faster here, if the tile is not too small for that, and fastest with 16 columns of a wide φ.
_WITHOUT_COPIES = {"SkylakeX", "Cooperlake", "SapphireRapids"}
_SMALL_PRODUCT, _LEAST_SMALL, _GROUP = 100**3, 72, 16
# Columns so few short of a multiple are multiplied as that many: 13 to 15 took 1.4 to 1.7 times as long as 16, 3 1.6
# times as long as 4, and none less (measured: 16 features, double precision).
_WIDER = (16, 5), (4, 1)
# Elsewhere, to copy φ takes as long as 15 columns, so there are many: 64 components of 16 features take 1.4 times less
# than 16 by 16.
_LARGE_GROUP = 128
_NARROW = 16  # components that loops multiply as fast, or faster (measured: with 4, 8, 9, 12 and 16 features)
_LOOP = 256  # values that are subtracted in one loop
# exp(-300) is nothing beside 1, and far from the denormals, which are 5 to 10 times slower to work with.
_LOG_FLOOR = {DOUBLE: -300.0, SINGLE: -60.0}
# γ below which a row is left out of a component's own sums, as another component holds it: less than rounding, and than
# what makes a component dead. The rows of an ill-conditioned component are so much nearer than all others that this may
# be too much of it.
LEAST, _LEAST_TIGHT = {DOUBLE: 1e-16, SINGLE: 1e-12}, 1e-100
# Rows of a triangular factor that are multiplied at a time: 16 of 64 leave out 3/8 of the work, fewer gain no more.
_STEP = 16


@dataclass(frozen=True)
class KernelLayout:
    """Models that share φ, laid out for the kernel: made once a pass, for all of its blocks."""

    places: npt.NDArray[np.intp]  # of the models among those of the pass
    shape: tuple[int, int]  # of all moments: (Σk, p)
    models: kernel.Layout
    room: tuple[Any, ...]  # arguments of `kernel.workspace`

    @staticmethod
    def of(models: Sequence[Components], places: npt.NDArray[np.intp], dtype: Precision, pool: bool) -> KernelLayout:
        frame, (left, right) = models[0].frame, models[0].products
        d = len(frame.shift)
        none = left[:0]
        lean, diagonal = models[0].shares_quadratic, models[0].factors.ndim == 2
        pooled = (left, right) if lean and pool else (none, none)
        ends = np.cumsum([len(model.means) for model in models])
        apart = np.concatenate([model.uses_distances for model in models])
        columns = np.flatnonzero(apart)
        k, p = len(apart), 1 + d + (0 if lean else len(left))
        # Where all components are direct, none needs θ, which may be large.
        theta = np.concatenate([model.theta[:, :p] for model in models]) if len(columns) < k else np.empty((k, 0))
        wide = p >= _WIDE
        without_copies = bool(architectures() & _WITHOUT_COPIES)
        rows_first = wide and without_copies
        # Where φ is the rows themselves, they are multiplied as they are.
        most, wider = (_GROUP, _WIDER if p > 1 + d else ()) if rows_first else (_LARGE_GROUP, ())
        group_ends, widths = _groups(ends, most, wider)
        tile = tile_rows(d if len(columns) == k else p)
        turn = np.empty((0, 0)) if frame.directions is None else frame.whitening.T
        layout = kernel.Layout(
            ends=ends,
            transform=kernel.RowTransform(
                shift=np.tile(frame.shift, -(-_LOOP // d)),
                units=np.tile(1 / frame.scale, -(-_LOOP // d)),
                turn=np.ascontiguousarray(turn, dtype=dtype),
            ),
            products=kernel.Products(*((none, none) if lean else (left, right)), *pooled),
            theta=kernel.ThetaGroups(
                values=_laid_out(theta, group_ends, widths).astype(dtype),
                ends=group_ends,
                widths=widths,
                narrow=0 if without_copies else _NARROW,
                rows_first=rows_first,
            ),
            distances=distance_inputs(models, columns, dtype),
            own=kernel.OwnSums(
                always=apart,
                centres=np.concatenate([model.centres for model in models]).astype(dtype),
                least=np.concatenate([np.where(model.ill_conditioned, _LEAST_TIGHT, LEAST[dtype]) for model in models]),
                allowed=wide and not diagonal and not lean,
            ),
            tile=tile,
            floor=dtype.type(_LOG_FLOOR[dtype]),
        )
        return KernelLayout(places, (k, p), layout, (tile, d, p, k, int(widths.max()), dtype))

    def sums(self) -> kernel.Sums:
        """Allocate sums of no rows."""
        log_likelihoods, log_certainties = np.zeros((2, len(self.models.ends)))
        scatter = np.zeros(len(self.models.products.pooled_left))
        return kernel.Sums(log_likelihoods, log_certainties, np.zeros(self.shape), scatter)


def prepare(
    models: Sequence[Components], dtype: Precision | Sequence[Precision] = DOUBLE, pool: bool = True
) -> tuple[KernelLayout, ...]:
    """What `sums` needs to know of some models; those that are alike share φ.

    Parameters
    ----------
    models : sequence of Components
    dtype : dtype or sequence of dtype
        Precision within a tile, double or single, of all or of each; sums over tiles are double.
    pool : bool
        Sum the scatter once for all components where a model's components share the quadratic part of θ; False: the
        caller knows it already.
    """
    dtypes = [dtype] * len(models) if isinstance(dtype, np.dtype) else dtype
    alike: dict[Any, list[int]] = {}
    for place, (model, of) in enumerate(zip(models, dtypes, strict=True)):
        alike.setdefault((of, *kind(model), model.shares_quadratic, model.ill_conditioned.any()), []).append(place)
    return tuple(
        KernelLayout.of([models[place] for place in places], np.array(places), of, pool)
        for (of, *_), places in alike.items()
    )


def kind(model: Components) -> tuple[int, bool]:
    """What says which φ a model is summed with: its frame, and whether that is diagonal."""
    return id(model.frame), model.factors.ndim == 2


def distance_inputs(
    models: Sequence[Components], columns: npt.NDArray[np.intp], dtype: np.dtype[np.floating]
) -> kernel.DistanceInputs:
    """Lay out the components in ``columns`` of all models for `kernel.distances`."""
    factors = np.concatenate([model.factors for model in models])[columns]
    triangular = factors.ndim == 3 and not np.tril(factors, -1).any()
    means, constants = (
        np.concatenate([getattr(model, name) for model in models])[columns].astype(dtype)
        for name in ("means", "constants")
    )
    rows = np.swapaxes(factors, 1, 2) if factors.ndim == 3 else factors[:, None]
    transposed = np.ascontiguousarray(rows, dtype=dtype)
    return kernel.DistanceInputs(columns, means, transposed, constants, _STEP if triangular else means.shape[1])


def tile_rows(p: int) -> int:
    """Rows of a tile with p values a row."""
    rows = min(_TILE_VALUES // p, LARGEST_TILE, max(_SMALL_PRODUCT // (p * _GROUP), _LEAST_SMALL))
    rows = max(rows // 8 * 8, _LEAST_SMALL)
    return rows - 8 * (rows & (rows - 1) == 0)


def _groups(
    ends: npt.NDArray[np.intp], most: int, wider: Sequence[tuple[int, int]]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Where groups of components end that φ is multiplied with at a time, and the columns that they are multiplied as.

    They are of one model, which so has its own bits.
    """
    found: list[int] = []
    for start, end in zip([0, *ends], ends, strict=False):
        # A group of less than a quarter is better done with the one before it.
        found += [*range(start + most, end - most // 4 + 1, most), end]
    widths = np.diff(found, prepend=0)
    for step, short in wider:
        widths += np.where(-widths % step <= short, -widths % step, 0)
    return np.array(found), widths


def _laid_out(theta: Array, ends: npt.NDArray[np.intp], widths: npt.NDArray[np.intp]) -> Array:
    """θ (k, p) as (p, width) of each group, one after another; what is not a component's is zero."""
    parts = np.split(theta, ends[:-1])
    columns = [np.zeros((theta.shape[1], width), theta.dtype) for width in widths]
    for part, wide in zip(parts, columns, strict=True):
        wide[:, : len(part)] = part.T
    return np.concatenate([wide.ravel() for wide in columns])
