"""The compiled loops over rows: tiles of them to responsibilities, and those to moments.

A tile is small enough that φ stays in cache, and has its features first, so that each of φ's rows is one contiguous
vector operation; responsibilities have their rows first: of the layouts, BLAS multiplies these two fastest where there
are few components (measured: 131 against 180 ns a row with 16 features and 16 components). All of it runs without
Python's lock, so that one thread can read while another computes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

# Sums may be taken in any order, but NaN and infinity keep their meaning.
compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})

_FEW = 64  # rows that are multiplied model by model, which gives each the bits that it has alone
_GROUP = 1024  # values that are worked on at a time, to stay in the first-level cache
# 1/13!, 1/12!, … 1: the Taylor series of exp on ±½ log 2 is exact to rounding; with 7 terms, in single precision.
_SERIES = tuple(1 / math.factorial(i) for i in range(13, -1, -1))
_SERIES_32 = tuple(np.float32(1 / math.factorial(i)) for i in range(6, -1, -1))
_LOG2E, _LOG2E_32 = 1 / math.log(2), np.float32(1 / math.log(2))
# log 2 as a sum: an integer times the first is exact (Cody & Waite 1980, Software Manual for the Elementary Functions).
_LOG2, _LOG2_REST = 0.693147180369123816490, 1.90821492927058770002e-10
_LOG2_32, _LOG2_REST_32 = np.float32(0.693359375), np.float32(-2.12194440e-4)


def _exp64(x: Any) -> Any:
    n = np.floor(x * _LOG2E + 0.5)
    r = x - n * _LOG2 - n * _LOG2_REST
    y = _SERIES[0]
    for c in _SERIES[1:]:
        y = y * r + c
    return y * np.int64((np.int64(n) + 1023) << 52).view(np.float64)


def _exp32(x: Any) -> Any:
    n = np.floor(x * _LOG2E_32 + np.float32(0.5))
    r = x - n * _LOG2_32 - n * _LOG2_REST_32
    y = _SERIES_32[0]
    for c in _SERIES_32[1:]:
        y = y * r + c
    return y * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


def exp(x: Any) -> Any:
    """e to the x, for x from about −700 (−80 in single precision) to 0: unlike the library's, it is vectorized."""
    return math.exp(x)


@overload(exp, inline="always")
def _exp(x: Any) -> Any:
    return _exp32 if x == types.float32 else _exp64


@compiled
def accumulate(
    x: Any,  # (n, d) float64
    weights: Any,  # (n,) float64, or empty: all 1
    shift: Any,  # (d,) of the frame
    matrix: Any,  # (d, d) of the frame, or its diagonal; in the precision of the tiles
    products: Any,  # of φ: left (q,), right (q,)
    pooled: Any,  # the products that are summed over all components at once
    theta: Any,  # (p, k), p > d, of all models side by side, in that precision
    ends: Any,  # (models,) where each model's components end
    direct: tuple[Any, ...],  # columns (m,), means (m, d), transposed factors, constants, centres, step; see `_distances`
    tile: int,  # rows
    floor: Any,  # of log γ
    least: float,  # γ that counts
    log_likelihoods: Any,  # (models,) the sums to add to
    moments: Any,  # (p, k)
    nearby: Any,  # (m, p) moments of the direct components
    scatter: Any,  # (pooled,)
) -> int:
    """Add the statistics of some rows to the sums; returns how many rows were finite and weighed something."""
    d = x.shape[1]
    p, k = theta.shape
    columns, means, transposed, constants, centres, step = direct
    row_buffer, weight_buffer = np.empty((tile, d)), np.empty(tile if len(weights) else 0)
    phi_buffer, deviation_buffer = np.empty(p * tile, theta.dtype), np.empty(d * tile, theta.dtype)
    joint_buffer, product = np.empty(tile * k, theta.dtype), np.empty((p, k), theta.dtype)
    used = 0
    for start in range(0, len(x), tile):
        rows, w = _usable(x[start : start + tile], weights[start : start + tile], row_buffer, weight_buffer)
        n = len(rows)
        if n == 0:
            continue
        used += n
        phi = phi_buffer[: p * n].reshape(p, n)
        phi[0] = 1
        z = phi[1 : d + 1]
        _frame(rows, shift, matrix, deviation_buffer[: d * n].reshape(d, n), z)
        log_joint = joint_buffer[: n * k].reshape(n, k)
        loose = len(columns) < k
        if loose:
            _multiply(phi, d, products)
            if n < _FEW:
                _by_model(phi.T, theta, ends, log_joint)
            else:
                np.dot(phi.T, theta, log_joint)
        if len(columns):
            _distances(z, columns, means, transposed, constants, step, log_joint)
        _soften(log_joint, ends, w, floor, log_likelihoods)
        if loose:
            if n < _FEW:
                _by_model(phi, log_joint, ends, product)
            else:
                np.dot(phi, log_joint, product)
            moments += product
        if len(columns):
            _moments_about(z, columns, centres, transposed, log_joint, least, nearby)
        if len(scatter):
            _pool(phi, d, pooled, w, scatter)
    return used


@compiled
def log_joint(x: Any, means: Any, transposed: Any, constants: Any, step: int) -> Any:
    """log weight + log p(x | k) of some rows (n, d), from their distances to the means: (n, k)."""
    found = np.empty((len(x), len(means)))
    _distances(np.ascontiguousarray(x.T), np.arange(len(means)), means, transposed, constants, step, found)
    return found


@compiled
def soften(log_joint: Any, log_densities: Any) -> None:
    """Turn log_joint (n, k) into responsibilities, in place, and fill in the log densities (n,)."""
    empty, end = np.empty(0), np.array([log_joint.shape[1]])
    for r in range(len(log_joint)):
        log_densities[r] = 0
        _soften(log_joint[r : r + 1], end, empty, -300.0, log_densities[r : r + 1])


@compiled
def _usable(x: Any, weights: Any, rows: Any, kept: Any) -> Any:
    """The rows that are finite and weigh something, and their weights: as they are, or copied to rows and kept."""
    d = x.shape[1]
    values, check = x.reshape(x.size), 0.0
    for i in range(len(values)):
        check += values[i] * 0.0  # NaN where one is not finite
    if check == 0 and len(weights) == 0:
        return x, weights
    n = 0
    for r in range(len(x)):
        check = 0.0
        for i in range(d):
            rows[n, i] = x[r, i]
            check += x[r, i] * 0.0
        if check == 0 and (len(weights) == 0 or weights[r] > 0):
            if len(weights):
                kept[n] = weights[r]
            n += 1
    return rows[:n], kept[: n if len(weights) else 0]


@compiled
def _frame(x: Any, shift: Any, matrix: Any, deviation: Any, z: Any) -> None:
    """z = matrix (x − shift), features first; ``deviation`` (d, n) is room to work in."""
    n, d = x.shape
    if matrix.ndim == 1:
        for r in range(n):
            for i in range(d):
                z[i, r] = (x[r, i] - shift[i]) * matrix[i]
    else:
        for r in range(n):
            for i in range(d):
                deviation[i, r] = x[r, i] - shift[i]
        np.dot(matrix, deviation, z)


@compiled
def _by_model(left: Any, right: Any, ends: Any, out: Any) -> None:
    """left (·, ·) @ right (·, k), model by model."""
    first = 0
    for last in ends:
        out[:, first:last] = np.dot(left, np.ascontiguousarray(right[:, first:last]))
        first = last


@compiled
def _multiply(phi: Any, d: int, products: Any) -> None:
    """Fill in the products of φ, whose first rows are 1 and z."""
    left, right = products
    for q in range(len(left)):
        a, b, out = phi[1 + left[q]], phi[1 + right[q]], phi[1 + d + q]
        for r in range(phi.shape[1]):
            out[r] = a[r] * b[r]


@compiled
def _pool(phi: Any, d: int, pooled: Any, weights: Any, scatter: Any) -> None:
    """Add Σ w z_i z_j over all components."""
    left, right = pooled
    for q in range(len(left)):
        a, b = phi[1 + left[q]], phi[1 + right[q]]
        total = phi.dtype.type(0)
        if len(weights):
            for r in range(phi.shape[1]):
                total += weights[r] * a[r] * b[r]
        else:
            for r in range(phi.shape[1]):
                total += a[r] * b[r]
        scatter[q] += total


@compiled
def _soften(log_joint: Any, ends: Any, weights: Any, floor: Any, log_likelihoods: Any) -> None:
    """Turn log_joint (n, k) into weighted responsibilities, in place, and add up each model's log-likelihood."""
    n, k = log_joint.shape
    one = log_joint.dtype.type(1)
    group = max(1, _GROUP // k)
    for start in range(0, n, group):
        rows = log_joint[start : start + group]
        first = 0
        for m in range(len(ends)):
            for r in range(len(rows)):
                row = rows[r, first : ends[m]]
                top = _largest(row)
                for j in range(len(row)):
                    row[j] -= top
                log_likelihoods[m] += weights[start + r] * top if len(weights) else top
            first = ends[m]
        values = rows.reshape(rows.size)
        for i in range(len(values)):
            values[i] = exp(max(values[i], floor))
        first = 0
        for m in range(len(ends)):
            product = 1.0  # its log costs less than the sum of logs; below k^(_GROUP / k), it cannot overflow
            for r in range(len(rows)):
                row = rows[r, first : ends[m]]
                total = row[0]
                for j in range(1, len(row)):
                    total += row[j]
                scale = one / total
                if len(weights):
                    scale *= weights[start + r]
                    log_likelihoods[m] += weights[start + r] * math.log(total)
                else:
                    product *= total
                for j in range(len(row)):
                    row[j] *= scale
            log_likelihoods[m] += math.log(product)
            first = ends[m]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "nnan"})
def _largest(row: Any) -> Any:
    """The largest value, by vectors; any of them where one is NaN, which stays in the row."""
    top = row[0]
    for j in range(1, len(row)):
        top = max(top, row[j])
    return top


@compiled
def _distances(
    z: Any, columns: Any, means: Any, transposed: Any, constants: Any, step: int, log_joint: Any
) -> None:
    """log weight + log p(z | k) of some columns, from ‖Fᵀ(z − mean)‖², of z (d, n).

    ``step``: rows of Fᵀ that are multiplied at a time; fewer than d of them leave out the zeros of a triangular F.
    """
    d, n = z.shape
    deviation, y = np.empty_like(z), np.empty_like(z)
    distance = np.empty(n, z.dtype)
    half = z.dtype.type(0.5)
    for c in range(len(columns)):
        for i in range(d):
            for r in range(n):
                deviation[i, r] = z[i, r] - means[c, i]
        if transposed.ndim == 2:
            for i in range(d):
                for r in range(n):
                    y[i, r] = transposed[c, i] * deviation[i, r]
        else:
            for i in range(0, d, step):
                stop = min(i + step, d)
                np.dot(np.ascontiguousarray(transposed[c, i:stop, :stop]), deviation[:stop], y[i:stop])
        distance[:] = 0
        for i in range(d):
            for r in range(n):
                distance[r] += y[i, r] * y[i, r]
        for r in range(n):
            log_joint[r, columns[c]] = constants[c] - half * distance[r]


@compiled
def _moments_about(
    z: Any, columns: Any, centres: Any, transposed: Any, resp: Any, least: float, moments: Any
) -> None:
    """Add Σ γ φ(z − centre) of some columns, over the rows that each really holds: γ > least."""
    d, n = z.shape
    rows = np.ascontiguousarray(z.T)
    held_buffer, root_buffer = np.empty((n, d), z.dtype), np.empty(n, z.dtype)
    for c in range(len(columns)):
        m = 0
        for r in range(n):
            gamma = resp[r, columns[c]]
            if gamma > least:
                root = math.sqrt(gamma)
                for i in range(d):
                    held_buffer[m, i] = root * (rows[r, i] - centres[c, i])
                root_buffer[m] = root
                m += 1
        held, roots = held_buffer[:m], root_buffer[:m]
        moments[c, 0] += np.dot(roots, roots)
        moments[c, 1 : 1 + d] += np.dot(roots, held)
        if transposed.ndim == 2:
            for r in range(m):
                for i in range(d):
                    moments[c, 1 + d + i] += held[r, i] * held[r, i]
        else:
            second = np.dot(held.T, held)
            q = 1 + d
            for i in range(d):
                moments[c, q : q + d - i] += second[i, i:]
                q += d - i
