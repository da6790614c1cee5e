"""The E-step over rows: responsibilities, and the sums of sufficient statistics under them, as compiled loops.

`expected_sums` is the whole of it in plain NumPy; all else here computes the same for tiles of rows, faster.
A tile is small enough that φ stays in cache, and has its features first, so that each of φ's rows is one contiguous
vector operation; so have responsibilities their components. All of it runs without Python's lock, so that one thread
can read while another computes.

All compiled functions stand in this file: Numba notices that a cached function is out of date by the file in which it
stands, not by the files of the functions that it calls.
"""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.polynomial import chebyshev


def expected_sums(phi: Any, theta: Any, weights: Any) -> tuple[float, Any]:
    """Compute the E-step of n rows in plain NumPy: log-likelihood Σ w log p(x), and moments Σ w γ φ(x).

    Parameters
    ----------
    phi : ndarray of shape (p, n)
        Sufficient statistics φ(x) of each row, of which the first is 1.
    theta : ndarray of shape (k, p)
        Natural parameters: log weight + log p(x | k) = θ_k · φ(x).
    weights : ndarray of shape (n,)

    Returns
    -------
    log_likelihood : float
    moments : ndarray of shape (k, p)
    """
    log_joint = theta @ phi
    log_density = np.logaddexp.reduce(log_joint, axis=0)
    resp = np.exp(log_joint - log_density) * weights
    return float(weights @ log_density), resp @ phi.T


# -----------------------------------------------------------------------------
# What the compiled loops are given
# -----------------------------------------------------------------------------
#
# n: rows of a tile; d: columns of features; p: of φ; k: components of all models that share φ. Tiles are float64 or
# float32 (the precision of tiles); sums are float64.


class RowTransform(NamedTuple):
    """The map x → z of rows into a frame: (x − shift) · units, then the whitening."""

    shift: Any  # (rows · d,) of the frame, repeated for several rows
    units: Any  # (rows · d,) 1 / scale of the frame, repeated the same way
    turn: Any  # (d, d) the frame's whitening, transposed, in the precision of tiles; (0, 0): none


class Products(NamedTuple):
    """The products z_i z_j in φ, and those that are summed over all components at once."""

    left: Any  # (q,) i of each product in φ
    right: Any  # (q,) j
    pooled_left: Any  # (s,) i of each product in the scatter
    pooled_right: Any  # (s,) j


class ThetaGroups(NamedTuple):
    """Natural parameters θ by groups of components of one model, so that each model keeps the bits it has alone."""

    values: Any  # (Σ p · width,) θᵀ (p, width) of each group, one after another, in the precision of tiles; p > d
    ends: Any  # (groups,) component at which each group ends
    widths: Any  # (groups,) columns as which each group is multiplied
    narrow: int  # groups of at most so many columns are multiplied by loops
    rows_first: bool  # whether BLAS multiplies φ with its rows first


class DistanceInputs(NamedTuple):
    """Components whose log joint densities come from distances to their means; m of them."""

    columns: Any  # (m,) which of the k components they are
    means: Any  # (m, d)
    factors: Any  # (m, d, d) Fᵀ, or (m, 1, d) its diagonal
    constants: Any  # (m,) log weight + log p(mean | k)
    step: int  # rows of a triangular Fᵀ that are multiplied at a time; d: F is not triangular


class OwnSums(NamedTuple):
    """How moments are summed over the rows that a component really holds."""

    always: Any  # (k,) whether a component's moments are summed only so
    centres: Any  # (k, d) about which the moments are
    least: Any  # (k,) responsibility from which a row counts as held
    allowed: bool  # whether components of whole models may be summed so where they hold few rows


class Layout(NamedTuple):
    """Models that share φ, as `accumulate` takes them."""

    ends: Any  # (models,) component at which each model ends
    transform: RowTransform
    products: Products
    theta: ThetaGroups
    distances: DistanceInputs
    own: OwnSums
    tile: int  # rows
    floor: Any  # of log γ, in the precision of tiles


class Scratch(NamedTuple):
    """Room for what distances and the search for members work with."""

    deviations: Any  # (2, n · d)
    vectors: Any  # (3, n)
    places: Any  # (n,) intp


class Workspace(NamedTuple):
    """Room for `accumulate`, all in the precision of tiles but for the weights."""

    rows: Any  # (n, d)
    weights: Any  # (n,) float64
    phi: Any  # (p · n,)
    log_joint: Any  # (k · n,)
    side: Any  # (n · widest group,)
    product: Any  # (p · widest group,), and d² at least where φ has all products
    scratch: Scratch
    gathered: Any  # (k, most, d) √γ (z − centre) of the rows that each component holds
    roots: Any  # (k, most) √γ of the same
    counts: Any  # (k,) how many those are


class Sums(NamedTuple):
    """The sums that `accumulate` adds to."""

    log_likelihoods: Any  # (models,) Σ w log p(x)
    log_certainties: Any  # (models,) Σ w log max γ
    moments: Any  # (k, p) Σ w γ φ
    scatter: Any  # (s,) Σ w z_i z_j


# -----------------------------------------------------------------------------
# Softmax
# -----------------------------------------------------------------------------
#
# Log joint densities of rows and components to responsibilities. More than half of the time is the exponential
# function, which compilers vectorize only where it is written out.

# Sums may be taken in any order, but NaN and infinity keep their meaning.
compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
# For what picks one of several values: by vectors only where NaN need not win, which stays among the values.
careless = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "nnan"})

_ROWS = 256  # that are worked on at a time, to stay in the first-level cache


def _series(degree: int) -> tuple[float, ...]:
    """The polynomial through exp at the Chebyshev points of ±½ log 2, highest power first.

    By degree 10 it is exact to rounding, for which the Taylor series needs 13; by degree 5 in single precision.
    """
    half = math.log(2) / 2

    def scaled(x: Any) -> Any:
        return np.exp(half * x)

    found = chebyshev.cheb2poly(chebyshev.chebinterpolate(scaled, degree))
    return tuple(float(c) for c in (found / half ** np.arange(degree + 1))[::-1])


_SERIES, _SERIES_32 = _series(10), tuple(np.float32(c) for c in _series(5))
_LOG2E, _LOG2E_32 = 1 / math.log(2), np.float32(1 / math.log(2))
# log 2 as a sum: an integer times the first is exact (Cody & Waite 1980, Software Manual for the Elementary Functions).
_LOG2, _LOG2_REST = 0.693147180369123816490, 1.90821492927058770002e-10
_LOG2_32, _LOG2_REST_32 = np.float32(0.693359375), np.float32(-2.12194440e-4)
# Added to an integer, these leave it in the last bits, as an exponent: not all processors convert integers by vectors.
_EXPONENT, _EXPONENT_32 = 2.0**52 + 1023, np.float32(2**23 + 127)


def _exp64(x: Any) -> Any:
    n = np.floor(x * _LOG2E + 0.5)
    r = x - n * _LOG2 - n * _LOG2_REST
    y = _SERIES[0]
    for c in _SERIES[1:]:
        y = y * r + c
    return y * np.int64(np.float64(n + _EXPONENT).view(np.int64) << 52).view(np.float64)


def _exp32(x: Any) -> Any:
    n = np.floor(x * _LOG2E_32 + np.float32(0.5))
    r = x - n * _LOG2_32 - n * _LOG2_REST_32
    y = _SERIES_32[0]
    for c in _SERIES_32[1:]:
        y = y * r + c
    return y * np.int32(np.float32(n + _EXPONENT_32).view(np.int32) << np.int32(23)).view(np.float32)


def exp(x: Any) -> Any:
    """e to the x, for x from about −700 (−80 in single precision) to 0: unlike the library's, it is vectorized."""
    return math.exp(x)


@overload(exp, inline="always")
def _exp(x: Any) -> Any:
    return _exp32 if x == types.float32 else _exp64


@compiled
def soften(
    log_joint: Any,  # (k, n)
    ends: Any,  # (models,) where each model's components end
    weights: Any,  # (n,), or empty: all 1
    floor: Any,  # of log γ
    vectors: Any,  # (2, n) and more, room to work in
    log_likelihoods: Any,  # (models,) to add to
    log_certainties: Any,  # (models,) to add the logarithms of the largest responsibilities to
) -> None:
    """Turn log_joint into weighted responsibilities, in place.

    Where the largest of a column is taken as 1, all add up to its total: so that one's share is 1 / total.
    """
    n = log_joint.shape[1]
    for start in range(0, n, _ROWS):
        stop = min(start + _ROWS, n)
        top, total = vectors[0, start:stop], vectors[1, start:stop]
        first: Any = np.intp(0)
        for m in range(len(ends)):
            _exponentials(log_joint, first, ends[m], start, floor, top, total)
            if len(weights):
                for r in range(stop - start):
                    weight = weights[start + r]
                    log_total = math.log(total[r])
                    log_likelihoods[m] += weight * (top[r] + log_total)
                    log_certainties[m] -= weight * log_total
                    total[r] = weight / total[r]
            else:
                log_totals = _sum_of_logs(total)
                log_likelihoods[m] += top.sum() + log_totals
                log_certainties[m] -= log_totals
                _invert(total)
            for j in range(first, ends[m]):
                _scale(log_joint[j, start:stop], total)
            first = ends[m]


@compiled
def normalize(log_joint: Any, log_densities: Any) -> None:
    """Turn log_joint (k, n) into responsibilities, in place, and fill in the log densities (n,)."""
    totals = np.empty(log_joint.shape[1])
    _exponentials(log_joint, 0, len(log_joint), 0, -300.0, log_densities, totals)
    for r in range(len(totals)):
        log_densities[r] += math.log(totals[r])
    _invert(totals)
    for j in range(len(log_joint)):
        _scale(log_joint[j], totals)


@compiled
def _exponentials(log_joint: Any, first: int, last: int, start: int, floor: Any, tops: Any, totals: Any) -> None:
    """Exponentials less the largest value of each column, in place; those values and the sums of the exponentials.

    Of log_joint (k, n), the rows first to last, and as many columns from start on as there are ``tops``.
    """
    stop = start + len(tops)
    tops[:] = -np.inf
    for j in range(first, last):  # rows one by one: Numba then knows that they are contiguous
        _raise_to(tops, log_joint[j, start:stop])
    totals[:] = 0
    for j in range(first, last):
        _exponential(log_joint[j, start:stop], tops, floor, totals)


@compiled
def _exponential(values: Any, tops: Any, floor: Any, totals: Any) -> None:
    for r in range(len(values)):
        values[r] = exp(max(values[r] - tops[r], floor))
    for r in range(len(values)):
        totals[r] += values[r]


@compiled
def _sum_of_logs(values: Any) -> float:
    """As the log of products, which costs less; of 32 values below 2^32, they cannot overflow."""
    found = 0.0
    for start in range(0, len(values), 32):
        product = 1.0
        for r in range(start, min(start + 32, len(values))):
            product *= values[r]
        found += math.log(product)
    return found


@compiled
def _invert(values: Any) -> None:
    one = values.dtype.type(1)
    for r in range(len(values)):
        values[r] = one / values[r]


@compiled
def _scale(values: Any, factors: Any) -> None:
    for r in range(len(values)):
        values[r] *= factors[r]


@careless
def _raise_to(values: Any, others: Any) -> None:
    """The larger of each two."""
    for r in range(len(values)):
        values[r] = max(values[r], others[r])


# -----------------------------------------------------------------------------
# Products with φ
# -----------------------------------------------------------------------------
#
# Of θ, to log joint densities, and of responsibilities, to moments.
#
# Where BLAS has kernels for small matrices, it multiplies a wide φ faster the other way round, some components at a
# time (measured with 16 features: 61 + 6 ns a row to transpose, against 95, of 16 components; 4 times that against
# 345 of 64). Elsewhere it copies φ first, and loops over pairs of components are faster where those are few (measured
# with 4 features and 8 components: 12 + 11 against 17 + 19 ns a row, and 9 + 7 against 24 + 20 in single precision).


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
def fill(phi: Any, d: int, products: Products) -> None:
    """Fill in the products of φ, whose first rows are 1 and z."""
    left, right = products.left, products.right
    for q in range(len(left)):
        a, b, out = phi[1 + left[q]], phi[1 + right[q]], phi[1 + d + q]
        for r in range(phi.shape[1]):
            out[r] = a[r] * b[r]


@compiled
def joint(phi: Any, theta: ThetaGroups, side: Any, log_joint: Any) -> None:
    """Compute θ φ (k, n) of φ (p, n), which begins with a row of ones."""
    p, n = phi.shape
    first: Any = np.intp(0)
    start = 0
    for i, last in enumerate(theta.ends):
        columns = theta.widths[i]
        some = theta.values[p * start : p * (start + columns)].reshape(p, columns)
        start += columns
        if columns <= theta.narrow:
            _joint_by_pairs(phi, some, side[:n], log_joint[first:last])
        elif theta.rows_first:
            rows = side[: n * columns].reshape(n, columns)
            np.dot(phi.T, some, rows)
            transpose(rows, log_joint[first:last])
        else:
            np.dot(some.T, phi, log_joint[first:last])
        first = last


@compiled
def joint_of_rows(rows: Any, theta: ThetaGroups, log_joint: Any) -> None:
    """Compute θ φ (k, n) where φ is 1 and the rows (n, d), and groups are as wide as they are large."""
    p = rows.shape[1] + 1
    first: Any = np.intp(0)
    for last in theta.ends:
        some = theta.values[p * first : p * last].reshape(p, last - first)
        np.dot(some[1:].T, rows.T, log_joint[first:last])
        for c in range(last - first):
            joint, constant = log_joint[first + c], some[0, c]
            for r in range(len(joint)):
                joint[r] += constant
        first = last


@compiled
def multiply(
    phi: Any, resp: Any, first: int, last: int, theta: ThetaGroups, side: Any, room: Any, own: Any, moments: Any
) -> None:
    """Add γ φᵀ to the moments (k, p) of components first to last, except those with sums of their own (k,)."""
    p, n = phi.shape
    for i, end in enumerate(theta.ends):
        if end <= first or end > last:
            continue
        columns = theta.widths[i]
        product = room[: p * columns].reshape(p, columns)
        if columns <= theta.narrow:
            _multiply_by_pairs(phi, resp[first:end], product)
        elif theta.rows_first:
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
def multiply_rows(rows: Any, resp: Any, theta: ThetaGroups, room: Any, moments: Any) -> None:
    """Add γ φᵀ to the moments (k, p) of all components where φ is 1 and the rows (n, d)."""
    d = rows.shape[1]
    first: Any = np.intp(0)
    for last in theta.ends:
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


# -----------------------------------------------------------------------------
# Distances
# -----------------------------------------------------------------------------
#
# Log joint densities by ‖Fᵀ(z − mean)‖² of each component.
#
# With a triangular F, the first features alone give part of that sum, and so a bound. Where groups are apart, most
# components are so much less likely than another for a row that they hold nothing of it: how much less need not be
# known.

# Of all pairs of rows and components, how many may be left to be looked at one by one: that takes twice the time
# (measured: 64 features, 95 to 110 against 52 ns in single precision), and some pairs are looked at for nothing.
_FEW = 0.25


@compiled
def distances(z: Any, rows: Any, inputs: DistanceInputs, ends: Any, cuts: Any, room: Scratch, log_joint: Any) -> None:
    """Compute log weight + log p(z | k) of the components in ``inputs``, as far as it is above the cut.

    Parameters
    ----------
    z, rows : arrays of shapes (d, n) and (n, d)
        The same rows, features first and last.
    inputs : DistanceInputs
    ends : array of shape (models,)
        Component at which each model ends, if all components are in ``inputs``.
    cuts : array of shape (k,)
        So many nats below another component of its model, a component holds nothing. Such values may come out larger
        than they are, but below the cut.
    room : Scratch
    log_joint : array of shape (k, n)
    """
    d, n = z.shape
    columns, step = inputs.columns, inputs.step
    bounded = step < d and cuts[0] < np.inf and len(columns) == len(log_joint)
    first: Any = np.intp(0)  # an integer that Numba does not take for a type of its own, and compile for once more
    _add_terms(z, first, len(columns), first, step if bounded else d, inputs, room, log_joint)
    if not bounded:
        return
    for last in ends:
        _find_likeliest(log_joint, first, last, room.vectors)
        if _count_near(log_joint, first, last, cuts, (d - step) / 2, room.vectors) > _FEW * n * (last - first):
            _add_terms(z, first, last, step, d, inputs, room, log_joint)
        else:
            for others in (False, True):
                for c in range(first, last):
                    _complete(rows, c, others, cuts[c], inputs, room, log_joint)
        first = last


@compiled
def _add_terms(
    z: Any, first: int, last: int, start: int, stop: int, inputs: DistanceInputs, room: Scratch, log_joint: Any
) -> None:
    """Add the terms of rows start to stop of Fᵀ(z − mean) for components first to last, after their constants."""
    d, n = z.shape
    means, factors, step = inputs.means, inputs.factors, inputs.step
    deviation, y = room.deviations[0, : d * n].reshape(d, n), room.deviations[1, : d * n].reshape(d, n)
    total = room.vectors[0, :n]
    half = z.dtype.type(0.5)
    for c in range(first, last):
        for i in range(stop):
            for r in range(n):
                deviation[i, r] = z[i, r] - means[c, i]
        if factors.shape[1] < d:
            for i in range(start, stop):
                for r in range(n):
                    y[i, r] = factors[c, 0, i] * deviation[i, r]
        else:
            for i in range(start, stop, step):
                end = min(i + step, d)
                np.dot(np.ascontiguousarray(factors[c, i:end, :end]), deviation[:end], y[i:end])
        total[:] = 0
        for i in range(start, stop):
            for r in range(n):
                total[r] += y[i, r] * y[i, r]
        if start == 0:
            log_joint[inputs.columns[c]] = inputs.constants[c]
        for r in range(n):
            log_joint[inputs.columns[c], r] -= half * total[r]


@compiled
def _find_likeliest(log_joint: Any, first: int, last: int, vectors: Any) -> None:
    """Find the largest value of each column among components first to last, and which of them has it."""
    n = log_joint.shape[1]
    largest, which = vectors[0, :n], vectors[1, :n]
    for r in range(n):
        largest[r] = log_joint[first, r]
        which[r] = first
    for c in range(first + 1, last):
        _note(log_joint[c], which.dtype.type(c), largest, which)


@compiled
def _note(values: Any, c: Any, largest: Any, which: Any) -> None:
    for r in range(len(values)):
        larger = values[r] > largest[r]
        largest[r] = values[r] if larger else largest[r]
        which[r] = c if larger else which[r]


@compiled
def _count_near(log_joint: Any, first: int, last: int, cuts: Any, more: float, vectors: Any) -> int:
    """Count values no farther below the largest of their column than the component's cut and ``more``."""
    n = log_joint.shape[1]
    largest, found = vectors[0, :n], 0
    for c in range(first, last):
        near = vectors.dtype.type(cuts[c] + more)
        for r in range(n):
            found += log_joint[c, r] > largest[r] - near
    return found


@compiled
def _complete(
    rows: Any, c: int, others: bool, cut: float, inputs: DistanceInputs, room: Scratch, log_joint: Any
) -> None:
    """Add the remaining terms of component c for the rows whose likeliest component it seemed, or for the others.

    The first call leaves in ``room.vectors`` the value that each row reaches; the second takes the other rows on which
    the component is not yet below that value by the cut.
    """
    n, d = rows.shape
    means, transposed, step = inputs.means, inputs.factors, inputs.step
    vectors, places = room.vectors, room.places
    values, reached, which = log_joint[c], vectors[0, :n], vectors[1, :n]
    m, below = 0, vectors.dtype.type(cut)
    for r in range(n):
        places[m] = r
        if others:
            m += which[r] != c and values[r] > reached[r] - below
        else:
            m += which[r] == c
    deviation = room.deviations[0, : m * d].reshape(m, d)
    y = room.deviations[1, : m * (d - step)].reshape(m, d - step)
    for j in range(m):
        place = places[j]  # outside of the loop, which is done by vectors then
        for i in range(d):
            deviation[j, i] = rows[place, i] - means[c, i]
    np.dot(deviation, transposed[c, step:].T, y)
    half = y.dtype.type(0.5)
    for j in range(m):
        total = y.dtype.type(0)
        for i in range(d - step):
            total += y[j, i] * y[j, i]
        values[places[j]] -= half * total
        if not others:
            reached[places[j]] = values[places[j]]


# -----------------------------------------------------------------------------
# Moments over the rows that a component holds
# -----------------------------------------------------------------------------
#
# Where most rows belong to few components, the rows of each are gathered, and multiplied many at a time (measured with
# 16 features and 16 components, one a row: 32 ns a row, against 68 for the product of all with φ).


@compiled
def count_members(resp: Any, first: int, last: int, least: Any, weights: Any, vectors: Any) -> float:
    """Count the components from first to last that hold each row, and note the last of them.

    ``vectors`` takes the rows' counts, last holders and weights.

    Returns
    -------
    float
        Pairs of a row and a component that holds it.
    """
    n = resp.shape[1]
    counts, latest, weight = vectors[0, :n], vectors[1, :n], vectors[2, :n]
    counts[:] = 0
    weight[:] = 1
    for r in range(len(weights)):
        weight[r] = weights[r]
    number = counts.dtype.type
    for c in range(first, last):
        _mark(resp[c], weight, number(least[c]), counts, latest, number(c))
    return counts.sum()


@compiled
def _mark(gammas: Any, weight: Any, least: Any, counts: Any, latest: Any, c: Any) -> None:
    one, none = counts.dtype.type(1), counts.dtype.type(0)
    for r in range(len(gammas)):
        held = gammas[r] > least * weight[r]
        counts[r] += one if held else none
        latest[r] = c if held else latest[r]


@compiled
def gather_rows(
    rows: Any, resp: Any, first: int, last: int, own: OwnSums, diagonal: bool, work: Workspace, moments: Any
) -> None:
    """Gather √γ (z − centre) and √γ of the rows that components first to last hold, as `count_members` found them.

    Where a component has no place for more, its rows are added to its moments (k, p). No views of arrays are made in
    the loop, which would cost more than all else in it.

    Parameters
    ----------
    rows : array of shape (n, d)
    resp : array of shape (k, n)
    """
    n, d = rows.shape
    held, roots, many, vectors = work.gathered, work.roots, work.counts, work.scratch.vectors
    least, centres = own.least, own.centres
    counts, latest, weight = vectors[0, :n], vectors[1, :n], vectors[2, :n]
    for r in range(n):
        if counts[r] == 0:
            continue
        stop = int(latest[r]) + 1
        for c in range(stop - 1 if counts[r] == 1 else first, stop):
            if resp[c, r] > resp.dtype.type(least[c]) * weight[r]:
                m, root = many[c], math.sqrt(resp[c, r])
                roots[c, m] = root
                for i in range(d):
                    held[c, m, i] = root * (rows[r, i] - centres[c, i])
                many[c] = m + 1
                if m + 1 == roots.shape[1]:
                    flush_rows(held[c], roots[c], many[c : c + 1], diagonal, work.product, moments[c])


@compiled
def flush_rows(held: Any, roots: Any, many: Any, diagonal: bool, room: Any, found: Any) -> None:
    """Add Σ γ φ(z − centre) of the rows gathered for a component to its moments (p,), and forget the rows."""
    m, d = many[0], held.shape[1]
    if m == 0:  # always so where components share the quadratic part of θ: their moments end before the products
        return
    held, roots = held[:m], roots[:m]
    many[0] = 0
    found[0] += np.dot(roots, roots)
    weighted = np.dot(roots, held)
    for i in range(d):  # to add arrays takes a second longer to compile
        found[1 + i] += weighted[i]
    if diagonal:
        for t in range(m):
            for i in range(d):
                found[1 + d + i] += held[t, i] * held[t, i]
    else:
        second = room[: d * d].reshape(d, d)
        np.dot(held.T, held, second)
        q = 1 + d
        for i in range(d):
            for j in range(i, d):
                found[q] += second[i, j]
                q += 1


@compiled
def pool(phi: Any, d: int, products: Products, weights: Any, scatter: Any) -> None:
    """Add Σ w z_i z_j over all components."""
    left, right = products.pooled_left, products.pooled_right
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


# -----------------------------------------------------------------------------
# The kernel
# -----------------------------------------------------------------------------
#
# Tiles of rows through all of the above.

# Cost of a row of a component, and of a squared feature of it, where a product with φ costs p a row and component
# (measured: with 16 features and components, 28 to 40 ns; the two ways meet at 1.4 components a row, with 64 at 5).
_PAIR, _PAIR_SQUARE = 1200, 2
_LINE = 64  # bytes of a cache line
_last = threading.local()  # workspace that each thread used last
_HELD_VALUES, _LEAST_HELD, _MOST_HELD = 2**17, 8, 128  # 1 MiB of gathered rows; rows of one component


def workspace(tile: int, d: int, p: int, k: int, widest: int, dtype: Any) -> Workspace:
    """Give this thread room for `accumulate`, the same as last time if it fits: new memory is slow to come by."""
    wanted = tile, d, p, k, widest, dtype
    if getattr(_last, "wanted", None) != wanted:
        _last.wanted, _last.room = wanted, _workspace(*wanted)
    return _last.room


def _workspace(tile: int, d: int, p: int, k: int, widest: int, dtype: Any) -> Workspace:
    most = min(max(_HELD_VALUES // (k * d), _LEAST_HELD), _MOST_HELD)
    return Workspace(
        rows=_aligned((tile, d), dtype),
        weights=_aligned((tile,), np.float64),
        phi=_aligned((p * tile,), dtype),
        log_joint=_aligned((k * tile,), dtype),
        side=_aligned((tile * widest,), dtype),
        product=_aligned((p * max(widest, 2),), dtype),  # d² too, where φ has all products
        scratch=Scratch(_aligned((2, tile * d), dtype), _aligned((3, tile), dtype), np.empty(tile, np.intp)),
        gathered=_aligned((k, most, d), dtype),
        roots=_aligned((k, most), dtype),
        counts=np.zeros(k, np.intp),
    )


def _aligned(shape: tuple[int, ...], dtype: Any) -> Any:
    """Allocate an array that starts with a cache line, as its longest vectors then do, too."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].view(dtype).reshape(shape)


@compiled
def accumulate(x: Any, single: bool, weights: Any, layout: Layout, work: Workspace, sums: Sums) -> int:
    """Add the statistics of some rows to the sums.

    Parameters
    ----------
    x : array of shape (n · d,)
        Rows in float64, or float32 if ``single``, as bytes.
    single : bool
    weights : array of shape (n,)
        In float64; empty: all 1.
    layout : Layout
    work : Workspace
    sums : Sums

    Returns
    -------
    int
        Rows that were finite and had a positive weight.
    """
    ends, own, theta, turn = layout.ends, layout.own, layout.theta, layout.transform.turn
    moments, scatter, vectors = sums.moments, sums.scatter, work.scratch.vectors
    k, p = moments.shape
    d, tile = work.rows.shape[1], layout.tile
    n_direct = len(layout.distances.columns)
    loose, diagonal = n_direct < k, layout.distances.factors.shape[1] < d
    # Where φ is 1 and the rows themselves, it need not be laid out features first.
    flat = len(layout.products.left) == 0 and n_direct == 0 and len(turn) == 0
    cuts = -np.log(own.least)
    used = 0
    row = d * (4 if single else 8)  # bytes
    for start in range(0, len(x) // row, tile):
        stop = start + tile
        some, w = x[start * row : stop * row], weights[start:stop]
        if single:
            rows, w = _deviations(some.view(np.float32), w, layout.transform, work.rows, work.weights)
        else:
            rows, w = _deviations(some.view(np.float64), w, layout.transform, work.rows, work.weights)
        n = len(rows)
        if n == 0:
            continue
        used += n
        if flat:
            log_joint = work.log_joint[: k * n].reshape(k, n)
            joint_of_rows(rows, theta, log_joint)
            soften(log_joint, ends, w, layout.floor, vectors, sums.log_likelihoods, sums.log_certainties)
            multiply_rows(rows, log_joint, theta, work.product, moments)
            if len(scatter):
                phi = work.phi[: p * n].reshape(p, n)
                transpose(rows, phi[1 : d + 1])
                pool(phi, d, layout.products, w, scatter)
            continue
        phi = work.phi[: p * n].reshape(p, n)
        phi[0] = 1
        z = phi[1 : d + 1]
        if len(turn):
            np.dot(turn.T, rows.T, z)
        else:
            transpose(rows, z)
        log_joint = work.log_joint[: k * n].reshape(k, n)
        if loose:
            fill(phi, d, layout.products)
            joint(phi, theta, work.side, log_joint)
        if n_direct:
            if len(turn):
                transpose(z, rows)
            distances(z, rows, layout.distances, ends, cuts, work.scratch, log_joint)
        soften(log_joint, ends, w, layout.floor, vectors, sums.log_likelihoods, sums.log_certainties)
        turned = len(turn) > 0 and n_direct == 0  # z is not in rows yet
        first: Any = np.intp(0)
        for last in ends:
            few, most = not loose, n * p * (last - first) // (_PAIR + _PAIR_SQUARE * d * d)
            if few or (own.allowed and n < most):  # each row belongs to one component at least
                few = count_members(log_joint, first, last, own.least, w, vectors) < most or few
            if turned and few:
                transpose(z, rows)
                turned = False
            if few:
                gather_rows(rows, log_joint, first, last, own, diagonal, work, moments)
            else:
                multiply(phi, log_joint, first, last, theta, work.side, work.product, own.always, moments)
                for c in range(first, last):
                    if own.always[c]:
                        count_members(log_joint, c, c + 1, own.least, w, vectors)
                        gather_rows(rows, log_joint, c, c + 1, own, diagonal, work, moments)
            first = last
        if len(scatter):
            pool(phi, d, layout.products, w, scatter)
    for c in range(k):
        flush_rows(work.gathered[c], work.roots[c], work.counts[c : c + 1], diagonal, work.product, moments[c])
    return used


def log_joint(x: Any, inputs: DistanceInputs, cut: float) -> Any:
    """Compute log weight + log p(x | k) of rows (n, d) from their distances to the means: (k, n)."""
    k, n = len(inputs.columns), len(x)
    found = np.empty((k, n))
    room = Scratch(np.empty((2, x.size)), np.empty((2, n)), np.empty(n, np.intp))
    distances(np.ascontiguousarray(x.T), x, inputs, np.array([k]), np.full(k, cut), room, found)
    return found


@compiled
def _deviations(x: Any, weights: Any, transform: RowTransform, rows: Any, kept: Any) -> Any:
    """Put (x − shift) · units of the rows that are finite and have a positive weight into ``rows``; and the weights.

    The difference is taken in double precision, as rows may lie far from the origin. A loop over several rows at a
    time is long enough for vectors.
    """
    shift, units = transform.shift, transform.units
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
