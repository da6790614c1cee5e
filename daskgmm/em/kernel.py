"""The compiled loops over rows: tiles of them to responsibilities, and those to moments.

A tile is small enough that φ stays in cache, and has its features first, so that each of φ's rows is one contiguous
vector operation. So have responsibilities their components, but where BLAS multiplies them faster the other way round
(measured: 131 against 180 ns a row with 16 features and 16 components). All of it runs without Python's lock, so that
one thread can read while another computes.

Numba knows what it cached by the file that a function stands in, not by those that it calls: whoever changes `softmax`
deletes the cache, ``rm daskgmm/em/__pycache__/*.nb?``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from daskgmm.em.softmax import compiled, soften, soften_rows

_FEW = 64  # rows that are multiplied model by model, which gives each the bits that it has alone


def workspace(tile: int, d: int, p: int, k: int, dtype: Any) -> tuple[Any, ...]:
    """Room for `accumulate` to work in, made once: where memory is returned at once, it is dear to come by."""
    return (
        np.empty((tile, d)),
        np.empty(tile),
        np.empty(p * tile, dtype),
        np.empty(tile * k, dtype),
        np.empty((p, k), dtype),
        np.empty((2, tile * d), dtype),
        np.empty((2, tile), dtype),
    )


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
    direct: tuple[Any, ...],  # columns (m,), means, transposed factors, constants, centres, step
    tile: int,  # rows
    rows_first: bool,  # in the responsibilities, where there are no direct components
    floor: Any,  # of log γ
    least: float,  # γ that counts
    room: tuple[Any, ...],  # from `workspace`
    log_likelihoods: Any,  # (models,) the sums to add to
    moments: Any,  # (p, k)
    nearby: Any,  # (m, p) moments of the direct components
    scatter: Any,  # (pooled,)
) -> int:
    """Add the statistics of some rows to the sums; returns how many rows were finite and weighed something."""
    d = x.shape[1]
    p, k = theta.shape
    columns, means, transposed, constants, centres, step = direct
    row_buffer, weight_buffer, phi_buffer, joint_buffer, product, deviations, vectors = room
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
        _frame(rows, shift, matrix, deviations[0, : d * n].reshape(d, n), z)
        loose = len(columns) < k
        if loose:
            _multiply(phi, d, products)
        if rows_first and n >= _FEW:
            log_joint = joint_buffer[: n * k].reshape(n, k)
            np.dot(phi.T, theta, log_joint)
            soften_rows(log_joint, ends, w, floor, log_likelihoods)
            np.dot(phi, log_joint, product)
            moments += product
            continue
        log_joint = joint_buffer[: k * n].reshape(k, n)
        if loose:
            _joint(phi, theta, ends, log_joint)
        if len(columns):
            _distances(z, columns, means, transposed, constants, step, deviations, vectors, log_joint)
        soften(log_joint, ends, w, floor, vectors[0, :n], vectors[1, :n], log_likelihoods)
        if loose:
            _moments(phi, log_joint, ends, product)
            moments += product
        if len(columns):
            _moments_about(z, columns, centres, transposed, log_joint, least, deviations, vectors, nearby)
        if len(scatter):
            _pool(phi, d, pooled, w, scatter)
    return used


@compiled
def log_joint(x: Any, means: Any, transposed: Any, constants: Any, step: int) -> Any:
    """log weight + log p(x | k) of some rows (n, d), from their distances to the means: (k, n)."""
    found = np.empty((len(means), len(x)))
    room, vectors = np.empty((2, x.size)), np.empty((2, len(x)))
    columns = np.arange(len(means))
    _distances(np.ascontiguousarray(x.T), columns, means, transposed, constants, step, room, vectors, found)
    return found


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
def _joint(phi: Any, theta: Any, ends: Any, log_joint: Any) -> None:
    """θᵀ φ: (k, n)."""
    if phi.shape[1] >= _FEW:
        np.dot(theta.T, phi, log_joint)
        return
    first = 0
    for last in ends:
        np.dot(np.ascontiguousarray(theta[:, first:last]).T, phi, log_joint[first:last])
        first = last


@compiled
def _moments(phi: Any, resp: Any, ends: Any, product: Any) -> None:
    """φ γᵀ: (p, k)."""
    if phi.shape[1] >= _FEW:
        np.dot(phi, resp.T, product)
        return
    first = 0
    for last in ends:
        product[:, first:last] = np.dot(phi, resp[first:last].T)
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
def _distances(
    z: Any,
    columns: Any,
    means: Any,
    transposed: Any,
    constants: Any,
    step: int,
    room: Any,
    vectors: Any,
    log_joint: Any,
) -> None:
    """log weight + log p(z | k) of some columns, from ‖Fᵀ(z − mean)‖², of z (d, n).

    ``step``: rows of Fᵀ that are multiplied at a time; fewer than d of them leave out the zeros of a triangular F.
    """
    d, n = z.shape
    deviation, y = room[0, : d * n].reshape(d, n), room[1, : d * n].reshape(d, n)
    distance = vectors[0, :n]
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
            log_joint[columns[c], r] = constants[c] - half * distance[r]


@compiled
def _moments_about(
    z: Any,
    columns: Any,
    centres: Any,
    transposed: Any,
    resp: Any,
    least: float,
    room: Any,
    vectors: Any,
    moments: Any,
) -> None:
    """Add Σ γ φ(z − centre) of some columns, over the rows that each really holds: γ > least."""
    d, n = z.shape
    rows, held_buffer, root_buffer = room[0, : n * d].reshape(n, d), room[1, : n * d].reshape(n, d), vectors[0]
    for r in range(n):
        for i in range(d):
            rows[r, i] = z[i, r]
    for c in range(len(columns)):
        m = 0
        for r in range(n):
            gamma = resp[columns[c], r]
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
