"""The compiled loops over rows: tiles of them to responsibilities, and those to moments.

A tile is small enough that φ stays in cache, and has its features first, so that each of φ's rows is one contiguous
vector operation; so have responsibilities their components. All of it runs without Python's lock, so that one thread
can read while another computes.

Numba knows what it cached by the file that a function stands in, not by those that it calls: whoever changes `softmax`,
`products`, `moments` or `distances` deletes the cache, ``rm daskgmm/em/__pycache__/*.nb?``.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

from daskgmm.em.distances import distances
from daskgmm.em.moments import hold, holders, pool, release
from daskgmm.em.products import fill, joint, joint_of_rows, multiply, multiply_rows, transpose
from daskgmm.em.softmax import compiled, soften

# What a row of a component costs, and a squared feature of it, where a product with φ costs p a row and component
# (measured: with 16 features and components, 28 to 40 ns; the two ways meet at 1.4 components a row, with 64 at 5).
_PAIR, _PAIR_SQUARE = 1200, 2
_LINE = 64  # bytes of a cache line
_last = threading.local()  # what each thread worked in last
_HELD_VALUES, _LEAST_HELD, _MOST_HELD = 2**17, 8, 128  # 1 MiB of rows that are held; of one component


def workspace(tile: int, d: int, p: int, k: int, widest: int, dtype: Any) -> tuple[Any, ...]:
    """Room for `accumulate` to work in, that this thread had last: where memory is returned, it is dear to come by."""
    wanted = tile, d, p, k, widest, dtype
    if getattr(_last, "wanted", None) != wanted:
        _last.wanted, _last.room = wanted, _workspace(*wanted)
    return _last.room


def _workspace(tile: int, d: int, p: int, k: int, widest: int, dtype: Any) -> tuple[Any, ...]:
    many = min(max(_HELD_VALUES // (k * d), _LEAST_HELD), _MOST_HELD)
    return (
        _aligned((tile, d), dtype),
        _aligned((tile,), np.float64),
        _aligned((p * tile,), dtype),
        _aligned((k * tile,), dtype),
        _aligned((tile * widest,), dtype),
        _aligned((p * max(widest, 2),), dtype),  # d² too, where φ has all products
        _aligned((2, tile * d), dtype),
        _aligned((3, tile), dtype),
        _aligned((k, many, d), dtype),
        _aligned((k, many), dtype),
        np.zeros(k, np.intp),
        np.empty(tile, np.intp),
    )


def _aligned(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array that starts with a cache line, as the longest vectors then do, too."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].view(dtype).reshape(shape)


@compiled
def accumulate(
    x: Any,  # (n · d,) float64 or float32, as bytes
    single: bool,  # are they float32?
    weights: Any,  # (n,) float64, or empty: all 1
    shift: Any,  # of the frame, for several rows: (rows · d,)
    units: Any,  # 1 / scale of the frame, the same way
    turn: Any,  # (d, d) the frame's whitening, transposed, in the precision of the tiles; or (0, 0): none
    products: Any,  # of φ: left (q,), right (q,)
    pooled: Any,  # the products that are summed over all components at once
    theta: Any,  # (p, width) of each group of components, one after another, p > d, in that precision
    groups: tuple[Any, Any],  # where each ends: some components of one model, which so has its own bits; and widths
    ends: Any,  # (models,) where each model's components end
    direct: tuple[Any, ...],  # columns (m,), means, Fᵀ or diagonals, constants, step: see `distances`
    own: Any,  # (k,) whose moments are always summed over their own rows: those of the direct components
    centres: Any,  # (k, d) that these are about
    tile: int,  # rows
    narrow: int,  # groups of at most so many are multiplied by loops
    rows_first: bool,  # is φ multiplied with its rows first?
    sparse: bool,  # may moments be summed over the rows that a component really holds?
    floor: Any,  # of log γ
    least: Any,  # (k,) γ that counts
    room: tuple[Any, ...],  # from `workspace`
    log_likelihoods: Any,  # (models,) the sums to add to
    log_certainties: Any,  # (models,)
    moments: Any,  # (k, p)
    scatter: Any,  # (pooled,)
) -> int:
    """Add the statistics of some rows to the sums; returns how many rows were finite and weighed something."""
    k, p = moments.shape
    columns, _, transposed, _, _ = direct
    (
        row_buffer,
        weight_buffer,
        phi_buffer,
        joint_buffer,
        side,
        product,
        deviations,
        vectors,
        held,
        roots,
        many,
        places,
    ) = room
    d = row_buffer.shape[1]
    loose, diagonal = len(columns) < k, transposed.shape[1] < d
    # Where φ is 1 and the rows themselves, it need not be laid out features first.
    flat = len(products[0]) == 0 and len(columns) == 0 and len(turn) == 0
    kept, cuts = (held, roots, many), -np.log(least)
    used = 0
    row = d * (4 if single else 8)  # bytes
    for start in range(0, len(x) // row, tile):
        stop = start + tile
        some, w = x[start * row : stop * row], weights[start:stop]
        if single:
            rows, w = _deviations(some.view(np.float32), w, shift, units, row_buffer, weight_buffer)
        else:
            rows, w = _deviations(some.view(np.float64), w, shift, units, row_buffer, weight_buffer)
        n = len(rows)
        if n == 0:
            continue
        used += n
        if flat:
            log_joint = joint_buffer[: k * n].reshape(k, n)
            joint_of_rows(rows, theta, groups[0], log_joint)
            soften(log_joint, ends, w, floor, vectors[0, :n], vectors[1, :n], log_likelihoods, log_certainties)
            multiply_rows(rows, log_joint, groups[0], product, moments)
            if len(scatter):
                phi = phi_buffer[: p * n].reshape(p, n)
                transpose(rows, phi[1 : d + 1])
                pool(phi, d, pooled, w, scatter)
            continue
        phi = phi_buffer[: p * n].reshape(p, n)
        phi[0] = 1
        z = phi[1 : d + 1]
        if len(turn):
            np.dot(turn.T, rows.T, z)
        else:
            transpose(rows, z)
        log_joint = joint_buffer[: k * n].reshape(k, n)
        if loose:
            fill(phi, d, products)
            joint(phi, theta, groups, narrow, rows_first, side, log_joint)
        if len(columns):
            if len(turn):
                transpose(z, rows)
            distances(z, rows, direct, ends, cuts, deviations, vectors, places, log_joint)
        soften(log_joint, ends, w, floor, vectors[0, :n], vectors[1, :n], log_likelihoods, log_certainties)
        turned = len(turn) > 0 and len(columns) == 0  # z is not in rows yet
        first: Any = np.intp(0)
        for last in ends:
            few, most = not loose, n * p * (last - first) // (_PAIR + _PAIR_SQUARE * d * d)
            if few or (sparse and n < most):  # each row belongs to one component at least
                few = holders(log_joint, first, last, least, w, vectors) < most or few
            if turned and few:
                transpose(z, rows)
                turned = False
            if few:
                hold(rows, log_joint, first, last, least, vectors, centres, kept, diagonal, product, moments)
            else:
                multiply(phi, log_joint, first, last, groups, narrow, rows_first, side, product, own, moments)
                for c in range(first, last):
                    if own[c]:
                        holders(log_joint, c, c + 1, least, w, vectors)
                        hold(rows, log_joint, c, c + 1, least, vectors, centres, kept, diagonal, product, moments)
            first = last
        if len(scatter):
            pool(phi, d, pooled, w, scatter)
    for c in range(k):
        release(held[c], roots[c], many[c : c + 1], diagonal, product, moments[c])
    return used


def log_joint(x: Any, direct: tuple[Any, ...], cut: float) -> Any:
    """log weight + log p(x | k) of some rows (n, d), from their distances to the means: (k, n)."""
    columns = direct[0]
    found, ends, cuts = np.empty((len(columns), len(x))), np.array([len(columns)]), np.full(len(columns), cut)
    room, vectors, places = np.empty((2, x.size)), np.empty((2, len(x))), np.empty(len(x), np.intp)
    z = np.ascontiguousarray(x.T)
    distances(z, x, direct, ends, cuts, room, vectors, places, found)
    return found


@compiled
def _deviations(x: Any, weights: Any, shift: Any, units: Any, rows: Any, kept: Any) -> Any:
    """(x − shift) · units of the rows that are finite and weigh something, in rows; and their weights.

    The difference is taken in double precision, as rows may lie far from the origin. A loop over several rows at a
    time is long enough for vectors.
    """
    d, out, zero = rows.shape[1], rows.reshape(rows.size), x.dtype.type(0)
    check = zero
    for start in range(0, len(x), len(shift)):
        some = x[start : start + len(shift)]
        deviation = out[start : start + len(shift)]
        for i in range(len(some)):
            deviation[i] = (some[i] - shift[i]) * units[i]
            check += some[i] * zero  # NaN where one is not finite
    positive = 0
    for r in range(len(weights)):
        positive += weights[r] > 0
    if check == 0 and positive == len(weights):
        return rows[: len(x) // d], weights
    n = 0
    for r in range(len(x) // d):
        check = zero
        for i in range(d):
            rows[n, i] = rows[r, i]
            check += x[r * d + i] * zero
        if check == 0 and (len(weights) == 0 or weights[r] > 0):
            if len(weights):
                kept[n] = weights[r]
            n += 1
    return rows[:n], kept[: n if len(weights) else 0]
