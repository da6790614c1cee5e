"""The compiled products with φ: of θ, to log joint densities, and of responsibilities, to moments.

Where BLAS has kernels for small matrices, it multiplies a wide φ faster the other way round, some components at a time
(measured with 16 features: 61 + 6 ns a row to transpose, against 95, of 16 components; 4 times that against 345 of 64).
Elsewhere it copies φ first, and loops over pairs of components are faster where those are few (measured with 4 features
and 8 components: 12 + 11 against 17 + 19 ns a row, and 9 + 7 against 24 + 20 in single precision).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from daskgmm.em.softmax import compiled


@compiled
def transpose(values: Any, out: Any) -> None:
    """The inner loop runs along the short side, so that a cache line is used up while it is there: twice as fast."""
    if len(values) > len(out):
        for j in range(len(values)):
            for i in range(len(out)):
                out[i, j] = values[j, i]
    else:
        for i in range(len(out)):
            for j in range(len(values)):
                out[i, j] = values[j, i]


@compiled
def fill(phi: Any, d: int, products: Any) -> None:
    """Fill in the products of φ, whose first rows are 1 and z."""
    left, right = products
    for q in range(len(left)):
        a, b, out = phi[1 + left[q]], phi[1 + right[q]], phi[1 + d + q]
        for r in range(phi.shape[1]):
            out[r] = a[r] * b[r]


@compiled
def joint(
    phi: Any, theta: Any, groups: tuple[Any, Any], narrow: int, rows_first: bool, side: Any, log_joint: Any
) -> None:
    """θᵀ φ: (k, n); φ begins with a row of ones."""
    p, n = phi.shape
    ends, widths = groups
    first: Any = np.intp(0)
    start = 0
    for i, last in enumerate(ends):
        columns = widths[i]
        some = theta[p * start : p * (start + columns)].reshape(p, columns)
        start += columns
        if columns <= narrow:
            _joint_by_pairs(phi, some, side[:n], log_joint[first:last])
        elif rows_first:
            rows = side[: n * columns].reshape(n, columns)
            np.dot(phi.T, some, rows)
            transpose(rows, log_joint[first:last])
        else:
            np.dot(some.T, phi, log_joint[first:last])
        first = last


@compiled
def joint_of_rows(rows: Any, theta: Any, ends: Any, log_joint: Any) -> None:
    """The same, where φ is 1 and the rows (n, d), and groups are as wide as they are large."""
    p = rows.shape[1] + 1
    first: Any = np.intp(0)
    for last in ends:
        some = theta[p * first : p * last].reshape(p, last - first)
        np.dot(some[1:].T, rows.T, log_joint[first:last])
        for c in range(last - first):
            joint, constant = log_joint[first + c], some[0, c]
            for r in range(len(joint)):
                joint[r] += constant
        first = last


@compiled
def multiply(
    phi: Any,
    resp: Any,
    first: int,
    last: int,
    groups: tuple[Any, Any],
    narrow: int,
    rows_first: bool,
    side: Any,
    room: Any,
    own: Any,
    moments: Any,
) -> None:
    """Add γ φᵀ (k, p) to moments of components from the first to the last, but of those that have their own sums."""
    p, n = phi.shape
    ends, widths = groups
    for i, end in enumerate(ends):
        if end <= first or end > last:
            continue
        columns = widths[i]
        product = room[: p * columns].reshape(p, columns)
        if columns <= narrow:
            _multiply_by_pairs(phi, resp[first:end], product)
        elif rows_first:
            rows = side[: n * columns].reshape(n, columns)
            transpose(resp[first:end], rows)
            np.dot(phi, rows, product)
        else:
            np.dot(phi, resp[first:end].T, product)
        for c in range(first, end):
            if not own[c]:
                for q in range(p):
                    moments[c, q] += product[q, c - first]
        first = end


@compiled
def multiply_rows(rows: Any, resp: Any, ends: Any, room: Any, moments: Any) -> None:
    """The same of all components, where φ is 1 and the rows (n, d)."""
    d = rows.shape[1]
    first: Any = np.intp(0)
    for last in ends:
        product = room[: (last - first) * d].reshape(last - first, d)
        np.dot(resp[first:last], rows, product)
        for c in range(first, last):
            moments[c, 0] += resp[c].sum()
            for i in range(d):
                moments[c, 1 + i] += product[c - first, i]
        first = last


@compiled
def _joint_by_pairs(phi: Any, theta: Any, spare: Any, log_joint: Any) -> None:
    """θᵀ φ of few components, two at a time; the last of an odd number has a spare one beside it."""
    p, g = theta.shape
    for c in range(g):
        log_joint[c] = theta[0, c]
    rest = 1 + (p - 1) // 4 * 4
    for q in range(1, rest, 4):
        four = phi[q], phi[q + 1], phi[q + 2], phi[q + 3]
        for c in range(0, g, 2):
            other = min(c + 1, g - 1)
            one = theta[q, c], theta[q + 1, c], theta[q + 2, c], theta[q + 3, c]
            two = theta[q, other], theta[q + 1, other], theta[q + 2, other], theta[q + 3, other]
            _add_four(four, one, two, log_joint[c], log_joint[other] if other > c else spare)
    for q in range(rest, p):
        for c in range(g):
            _add_one(phi[q], theta[q, c], log_joint[c])


@compiled
def _add_four(rows: Any, one: Any, two: Any, out: Any, other: Any) -> None:
    a, b, c, d = rows
    for r in range(len(out)):
        out[r] += one[0] * a[r] + one[1] * b[r] + one[2] * c[r] + one[3] * d[r]
        other[r] += two[0] * a[r] + two[1] * b[r] + two[2] * c[r] + two[3] * d[r]


@compiled
def _add_one(row: Any, factor: Any, out: Any) -> None:
    for r in range(len(out)):
        out[r] += factor * row[r]


@compiled
def _multiply_by_pairs(phi: Any, resp: Any, product: Any) -> None:
    """φ γᵀ (p, g) of few components, two at a time."""
    p, g = product.shape
    rest = p // 4 * 4
    for q in range(0, rest, 4):
        four = phi[q], phi[q + 1], phi[q + 2], phi[q + 3]
        for c in range(0, g, 2):
            other = min(c + 1, g - 1)
            sums = _sum_four(four, resp[c], resp[other])
            for i in range(4):
                product[q + i, c] = sums[i]
                product[q + i, other] = sums[4 + i]
    for q in range(rest, p):
        for c in range(g):
            product[q, c] = np.dot(phi[q], resp[c])


@compiled
def _sum_four(rows: Any, one: Any, two: Any) -> Any:
    a, b, c, d = rows
    zero = one.dtype.type(0)
    a1, b1, c1, d1, a2, b2, c2, d2 = zero, zero, zero, zero, zero, zero, zero, zero
    for r in range(len(one)):
        a1 += a[r] * one[r]
        b1 += b[r] * one[r]
        c1 += c[r] * one[r]
        d1 += d[r] * one[r]
        a2 += a[r] * two[r]
        b2 += b[r] * two[r]
        c2 += c[r] * two[r]
        d2 += d[r] * two[r]
    return a1, b1, c1, d1, a2, b2, c2, d2
