"""The compiled softmax: log joint densities of rows and components to responsibilities.

More than half of it is the exponential function, which compilers vectorize only where it is written out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

# Sums may be taken in any order, but NaN and infinity keep their meaning.
compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
# For what picks one of several values: by vectors only where NaN need not win, which stays among the values.
careless = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "nnan"})

_GROUP = 1024  # values that are worked on at a time, to stay in the first-level cache
_ROWS = 256  # the same, where components come first: long vectors matter more
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
def soften(log_joint: Any, ends: Any, weights: Any, floor: Any, tops: Any, totals: Any, log_likelihoods: Any) -> None:
    """Turn log_joint (k, n) into weighted responsibilities, in place, and add up each model's log-likelihood.

    ``tops`` and ``totals`` (n,) are room to work in.
    """
    n = log_joint.shape[1]
    for start in range(0, n, _ROWS):
        stop = min(start + _ROWS, n)
        top, total = tops[start:stop], totals[start:stop]
        first = 0
        for m in range(len(ends)):
            _exponentials(log_joint, first, ends[m], start, floor, top, total)
            if len(weights):
                for r in range(stop - start):
                    weight = weights[start + r]
                    log_likelihoods[m] += weight * (top[r] + math.log(total[r]))
                    total[r] = weight / total[r]
            else:
                log_likelihoods[m] += top.sum() + _sum_of_logs(total)
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
def soften_rows(log_joint: Any, ends: Any, weights: Any, floor: Any, log_likelihoods: Any) -> None:
    """As `soften`, of log_joint (n, k)."""
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


@compiled
def _exponentials(log_joint: Any, first: int, last: int, start: int, floor: Any, tops: Any, totals: Any) -> None:
    """Exponentials less the largest value of each column, in place; those values and the sums of the exponentials.

    Of log_joint (k, n), the rows first to last, and as many columns from start on as there are ``tops``.
    """
    stop = start + len(tops)
    tops[:] = log_joint[first, start:stop]  # rows one by one: Numba then knows that they are contiguous
    for j in range(first + 1, last):
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
def _largest(row: Any) -> Any:
    """The largest value, by vectors; any of them where one is NaN, which stays in the row."""
    top = row[0]
    for j in range(1, len(row)):
        top = max(top, row[j])
    return top


@careless
def _raise_to(values: Any, others: Any) -> None:
    """The larger of each two."""
    for r in range(len(values)):
        values[r] = max(values[r], others[r])
