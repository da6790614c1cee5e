"""The compiled moments where most rows belong to few components: by what each of them really holds.

Its rows are gathered, and multiplied many at a time (measured with 16 features and 16 components, one a row: 32 ns a
row, against 68 for the product of all with φ, which is in `products`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from daskgmm.em.softmax import compiled


@compiled
def holders(resp: Any, first: int, last: int, least: Any, weights: Any, vectors: Any) -> float:
    """How many of the components from first to last hold each row, as their γ counts, and which does so last.

    Returns how many there are for all rows together; ``vectors`` takes the rows' counts, last holders and weights.
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
def hold(
    rows: Any,  # z (n, d)
    resp: Any,  # (k, n)
    first: int,  # of the components from here
    last: int,  # to here
    least: Any,  # (k,) γ that counts
    vectors: Any,  # what `holders` found for them
    centres: Any,  # (k, d)
    kept: tuple[Any, ...],  # (k, most, d) the rows that each component holds, (k, most) √γ, (k,) how many those are
    diagonal: bool,
    room: Any,
    moments: Any,  # (k, p)
) -> None:
    """Gather √γ (z − centre) and √γ of the rows of each component; where there is no place for more, add them up.

    Without views of arrays in the loop, which cost more than all else in it.
    """
    n, d = rows.shape
    held, roots, many = kept
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
                    release(held[c], roots[c], many[c : c + 1], diagonal, room, moments[c])


@compiled
def release(held: Any, roots: Any, many: Any, diagonal: bool, room: Any, found: Any) -> None:
    """Add Σ γ φ(z − centre) of the rows that a component holds to what was found (p,)."""
    m, d = many[0], held.shape[1]
    if m == 0:  # as all of them for lean models, whose moments (p,) end before the products
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
def pool(phi: Any, d: int, pooled: Any, weights: Any, scatter: Any) -> None:
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
