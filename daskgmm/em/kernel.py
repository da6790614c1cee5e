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
    matrix: Any,  # (d, d) of the frame, or its diagonal
    products: Any,  # of φ: left (q,), right (q,)
    pooled: Any,  # the products that are summed over all components at once
    theta: Any,  # (p, k) of all models side by side, in the precision of the tiles; no columns: only distances
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
    buffers = np.empty((2, d * tile))
    phi_buffer = np.empty(max(p, 1 + d) * tile, theta.dtype)
    joint_buffer = np.empty(tile * k, theta.dtype)
    weight_buffer = np.empty(tile if len(weights) else 0)
    used = 0
    for start in range(0, len(x), tile):
        n, z = _framed(x[start : start + tile], weights[start : start + tile], shift, matrix, buffers, weight_buffer)
        if n == 0:
            continue
        used += n
        w = weight_buffer[: n if len(weights) else 0]
        phi = phi_buffer[: max(p, 1 + d) * n].reshape(max(p, 1 + d), n)
        log_joint = joint_buffer[: n * k].reshape(n, k)
        phi[0] = 1
        phi[1 : d + 1] = z
        loose = len(columns) < k
        if loose:
            _multiply(phi, d, products)
            np.dot(phi.T, theta, log_joint)
        if len(columns):
            _distances(phi[1 : d + 1], columns, means, transposed, constants, step, log_joint)
        _soften(log_joint, ends, w, floor, log_likelihoods)
        if loose:
            moments += np.dot(phi, log_joint)
        if len(columns):
            _moments_about(phi[1 : d + 1], columns, centres, transposed, log_joint, least, nearby)
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
def _framed(x: Any, weights: Any, shift: Any, matrix: Any, buffers: Any, kept: Any) -> Any:
    """The rows that are finite and weigh something, in the frame: how many, and z (d, n); ``kept``: their weights."""
    d = len(shift)
    good = np.empty(len(x), np.int64)
    n = 0
    for r in range(len(x)):
        total = 0.0
        for i in range(d):
            total += x[r, i] - x[r, i]  # not 0 where one is not finite
        if total == 0 and (len(weights) == 0 or weights[r] > 0):
            good[n] = r
            n += 1
    z = buffers[0, : d * n].reshape(d, n)
    for c in range(n):
        for i in range(d):
            z[i, c] = x[good[c], i] - shift[i]
    if len(weights):
        for c in range(n):
            kept[c] = weights[good[c]]
    if matrix.ndim == 1:
        for i in range(d):
            z[i] *= matrix[i]
        return n, z
    turned = buffers[1, : d * n].reshape(d, n)
    np.dot(matrix, z, turned)
    return n, turned


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
    products = np.empty(len(ends))
    for start in range(0, n, group):
        stop = min(start + group, n)
        for r in range(start, stop):
            first = 0
            for m in range(len(ends)):
                top = log_joint[r, first]
                for j in range(first + 1, ends[m]):
                    top = max(top, log_joint[r, j])
                for j in range(first, ends[m]):
                    log_joint[r, j] -= top
                log_likelihoods[m] += weights[r] * top if len(weights) else top
                first = ends[m]
        values = log_joint[start:stop].reshape((stop - start) * k)
        for i in range(len(values)):
            values[i] = exp(max(values[i], floor))
        products[:] = 1  # the log of a product costs less than a sum of logs; below k^(_GROUP / k), it cannot overflow
        for r in range(start, stop):
            first = 0
            for m in range(len(ends)):
                total = log_joint[r, first]
                for j in range(first + 1, ends[m]):
                    total += log_joint[r, j]
                scale = one / total
                if len(weights):
                    scale *= weights[r]
                    log_likelihoods[m] += weights[r] * math.log(total)
                else:
                    products[m] *= total
                for j in range(first, ends[m]):
                    log_joint[r, j] *= scale
                first = ends[m]
        for m in range(len(ends)):
            log_likelihoods[m] += math.log(products[m])


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
    rows, gamma = np.empty(n, np.int64), np.empty(n, z.dtype)
    held_buffer, weighted_buffer = np.empty(d * n, z.dtype), np.empty(d * n, z.dtype)
    for c in range(len(columns)):
        m = 0
        count = 0.0
        for r in range(n):
            g = resp[r, columns[c]]
            if g > least:
                rows[m] = r
                gamma[m] = g
                count += g
                m += 1
        moments[c, 0] += count
        held = held_buffer[: d * m].reshape(d, m)
        weighted = weighted_buffer[: d * m].reshape(d, m)
        for i in range(d):
            total = 0.0
            for r in range(m):
                held[i, r] = z[i, rows[r]] - centres[c, i]
                weighted[i, r] = held[i, r] * gamma[r]
                total += weighted[i, r]
            moments[c, 1 + i] += total
        if transposed.ndim == 2:
            for i in range(d):
                total = 0.0
                for r in range(m):
                    total += weighted[i, r] * held[i, r]
                moments[c, 1 + d + i] += total
        else:
            second = np.dot(weighted, held.T)
            q = 1 + d
            for i in range(d):
                for j in range(i, d):
                    moments[c, q] += second[i, j]
                    q += 1
