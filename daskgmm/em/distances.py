"""The compiled distances: rows to log joint densities, by ‖Fᵀ(z − mean)‖² of each component.

With a triangular F, the first features alone give part of that sum, and so a bound. Where groups are apart, most
components are so much less likely than another for a row that they hold nothing of it: how much less need not be known.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from daskgmm.em.softmax import compiled

# Of all pairs of rows and components, how many may be left to be looked at one by one: that takes twice the time
# (measured: 64 features, 95 to 110 against 52 ns in single precision), and some pairs are looked at for nothing.
_FEW = 0.25


@compiled
def distances(
    z: Any,  # (d, n)
    rows: Any,  # the same (n, d)
    direct: tuple[Any, ...],  # columns (m,) of log_joint, means, Fᵀ (m, d, d) or diagonals (m, 1, d), constants, step
    ends: Any,  # where each model's components end, if all of them are direct
    cuts: Any,  # (k,) so many nats below another of its model, a component holds nothing
    room: Any,  # (2, d · n) and more, to work in
    vectors: Any,  # (2, n) and more
    places: Any,  # (n,) and more
    log_joint: Any,  # (k, n)
) -> None:
    """log weight + log p(z | k) of some columns; of those below the cut, what is not above it either."""
    d, n = z.shape
    columns, means, transposed, _, step = direct
    bounded = step < d and cuts[0] < np.inf and len(columns) == len(log_joint)
    first: Any = np.intp(0)  # an integer that Numba does not take for a type of its own, and compile for once more
    _add(z, first, len(columns), first, step if bounded else d, direct, room, vectors, log_joint)
    if not bounded:
        return
    for last in ends:
        _likeliest(log_joint, first, last, vectors)
        if _near(log_joint, first, last, cuts, (d - step) / 2, vectors) > _FEW * n * (last - first):
            _add(z, first, last, step, d, direct, room, vectors, log_joint)
        else:
            for others in (False, True):
                for c in range(first, last):
                    _complete(rows, c, others, cuts[c], means, transposed, step, room, vectors, places, log_joint)
        first = last


@compiled
def _add(
    z: Any,
    first: int,
    last: int,
    start: int,
    stop: int,
    direct: tuple[Any, ...],
    room: Any,
    vectors: Any,
    log_joint: Any,
) -> None:
    """What rows start to stop of Fᵀ(z − mean) add, of some of the direct components; first of all, their constants."""
    d, n = z.shape
    columns, means, transposed, constants, step = direct
    deviation, y = room[0, : d * n].reshape(d, n), room[1, : d * n].reshape(d, n)
    total = vectors[0, :n]
    half = z.dtype.type(0.5)
    for c in range(first, last):
        for i in range(stop):
            for r in range(n):
                deviation[i, r] = z[i, r] - means[c, i]
        if transposed.shape[1] < d:
            for i in range(start, stop):
                for r in range(n):
                    y[i, r] = transposed[c, 0, i] * deviation[i, r]
        else:
            for i in range(start, stop, step):
                end = min(i + step, d)
                np.dot(np.ascontiguousarray(transposed[c, i:end, :end]), deviation[:end], y[i:end])
        total[:] = 0
        for i in range(start, stop):
            for r in range(n):
                total[r] += y[i, r] * y[i, r]
        if start == 0:
            log_joint[columns[c]] = constants[c]
        for r in range(n):
            log_joint[columns[c], r] -= half * total[r]


@compiled
def _likeliest(log_joint: Any, first: int, last: int, vectors: Any) -> None:
    """The largest value of each column among some components, and which of them has it."""
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
def _near(log_joint: Any, first: int, last: int, cuts: Any, more: float, vectors: Any) -> int:
    """How many values of some components are no farther from the largest than their cut and so much more."""
    n = log_joint.shape[1]
    largest, found = vectors[0, :n], 0
    for c in range(first, last):
        near = vectors.dtype.type(cuts[c] + more)
        for r in range(n):
            found += log_joint[c, r] > largest[r] - near
    return found


@compiled
def _complete(
    rows: Any,
    c: int,
    others: bool,
    cut: float,
    means: Any,
    transposed: Any,
    step: int,
    room: Any,
    vectors: Any,
    places: Any,
    log_joint: Any,
) -> None:
    """Add what is left, for the rows whose likeliest component this seemed to be, or for others that it may yet hold.

    ``vectors`` takes what the former reach; for the latter it has that, which they must not be below by the cut, and
    which they are.
    """
    n, d = rows.shape
    values, reached, which = log_joint[c], vectors[0, :n], vectors[1, :n]
    m, below = 0, vectors.dtype.type(cut)
    for r in range(n):
        places[m] = r
        if others:
            m += which[r] != c and values[r] > reached[r] - below
        else:
            m += which[r] == c
    deviation, y = room[0, : m * d].reshape(m, d), room[1, : m * (d - step)].reshape(m, d - step)
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
