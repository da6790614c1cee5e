"""The compiled softmax: log joint densities of rows and components to responsibilities.

More than half of it is the exponential function, which compilers vectorize only where it is written out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.polynomial import chebyshev

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
    tops: Any,  # (n,) room to work in
    totals: Any,  # (n,) the same
    log_likelihoods: Any,  # (models,) to add to
    log_certainties: Any,  # (models,) to add the logarithms of the largest responsibilities to
) -> None:
    """Turn log_joint into weighted responsibilities, in place.

    Where the largest of a column is taken as 1, all add up to its total: so that one's share is 1 / total.
    """
    n = log_joint.shape[1]
    for start in range(0, n, _ROWS):
        stop = min(start + _ROWS, n)
        top, total = tops[start:stop], totals[start:stop]
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
