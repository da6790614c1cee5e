"""Covariances D V Dᵀ by their axes D: those of each component, or the same for all. V is a diagonal model's affair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Rule = Callable[[Array, Array], Array]  # a diagonal model: (counts (k,), variances (k, d)) -> variances (k, d)

_GAIN = 1e-20  # nats a sample and sweep; axes are then known to about the root of it
_SWEEPS = 100  # 4 to 14 were enough on four of R's data sets
_GOLDEN = (np.sqrt(5) - 1) / 2


def own_axes(rule: Rule) -> Rule:
    """The model with axes of its own for each component, and the rule's eigenvalues.

    For any eigenvalues in ascending order, the likeliest axes are the scatter's eigenvectors in that order (Celeux &
    Govaert 1995, models [λDₖADₖᵀ] and [λₖDₖADₖᵀ]).
    """

    def estimate(counts: Array, scatter: Array) -> Array:
        values, axes = np.linalg.eigh(scatter)
        return _compose(axes, rule(counts, values))

    return estimate


def shared_axes(rule: Rule) -> Callable[..., Array]:
    """The model with the same axes for all components, and the rule's variances along them.

    The log-likelihood has several maxima over the axes. From the best of some starts one is climbed by rotations of
    pairs of axes, each the best for the variances before it (Flury & Gautschi 1986, SIAM J. Sci. Stat. Comput. 7, as
    in Celeux & Govaert 1995). Singular value decompositions (Browne & McNicholas 2014, Adv. Data Anal. Classif. 8)
    climb the same function, but where the features' variances differed 10⁵-fold (R's quakes) 3000 of them were further
    from its top than 12 sweeps of rotations.
    """

    def estimate(counts: Array, scatter: Array, before: Array | None = None) -> Array:
        """Never less likely than with the axes that precisions ``before`` (k, d, d) share."""
        regular = np.linalg.eigvalsh(scatter)[:, 0] > 0
        if not regular.all():  # likelier without bound
            return np.where(regular[:, None, None], scatter, np.nan)
        starts = [np.eye(scatter.shape[-1]), np.tensordot(counts, scatter, axes=1), *scatter]
        if before is not None:
            starts.append(_mixed(before))
        axes = min(np.linalg.eigh(starts)[1], key=partial(_log_volume, rule, counts, scatter))
        axes = _climbed(rule, counts, scatter, axes)
        return _compose(axes, rule(counts, _along(axes, scatter)))

    return estimate


def _compose(axes: Array, variances: Array) -> Array:
    """D V Dᵀ (k, d, d), of axes (d, d) or (k, d, d)."""
    composed = axes * variances[:, None, :] @ np.swapaxes(axes, -1, -2)
    return (composed + np.swapaxes(composed, -1, -2)) / 2  # symmetric also where rounding is large


def _along(axes: Array, scatter: Array) -> Array:
    """Variances along each of the axes: (k, d)."""
    return np.einsum("ij,kij->kj", axes, scatter @ axes)


def _mixed(matrices: Array) -> Array:
    """A sum (d, d) of matrices (k, d, d), zero or not, which has the axes that they share.

    Its factors are such that two eigenvalues are hardly equal but where those of all are.
    """
    factors = 1 + np.arange(len(matrices)) * _GOLDEN % 1
    sizes = np.maximum(np.einsum("kii->k", matrices), np.finfo(np.float64).tiny)
    return np.tensordot(factors / sizes, matrices, axes=1)


def _log_volume(rule: Rule, counts: Array, scatter: Array, axes: Array) -> float:
    """Σ n_k log|Σ_k|: all that there is of the likelihood, but for a constant, where the variances are likeliest."""
    return float(counts @ np.log(rule(counts, _along(axes, scatter))).sum(axis=1))


def _climbed(rule: Rule, counts: Array, scatter: Array, axes: Array) -> Array:
    """Axes (d, d) that no rotation in the plane of two of them makes likelier."""
    axes, turned = axes.copy(), axes.T @ scatter @ axes
    least = np.finfo(np.float64).eps * np.einsum("kii->k", scatter)[:, None]  # rounding, in a variance
    for _ in range(_SWEEPS):
        gain = 0.0
        for i, j in _rounds(len(axes)):
            precisions = 1 / rule(counts, np.maximum(np.einsum("kii->ki", turned), least))
            pull = counts[:, None] * (precisions[:, i] - precisions[:, j])
            # Along d_i cos t + d_j sin t, Σ n_k tr(V_k⁻¹ DᵀS_kD) is less by (s cos 2t + r sin 2t − s) / 2.
            s = (pull * (turned[:, j, j] - turned[:, i, i])).sum(axis=0)
            r = -2 * (pull * turned[:, i, j]).sum(axis=0)
            # Variances that follow the axes bend it less than s does. Up to twice the best angle nothing is lost, and
            # up to three times fewer sweeps are needed.
            follow = counts @ (turned[:, i, j] ** 2 * (precisions[:, i] ** 2 + precisions[:, j] ** 2))
            angle = np.arctan2(r, np.maximum(s - 2 * follow, s / 2)) / 2
            for columns in (turned, turned.transpose(0, 2, 1), axes[None]):
                _rotate(columns, i, j, angle)
            length = np.hypot(r, s) + s
            gain += float((r**2 / np.where(length > 0, 2 * length, 1)).sum())
        if not gain > _GAIN * counts.sum():
            break
    return axes


def _rotate(columns: Array, i: npt.NDArray[np.intp], j: npt.NDArray[np.intp], angle: Array) -> None:
    """Turn columns i (q,) towards columns j, of matrices (…, d, d), in place."""
    left, right = columns[..., i], columns[..., j]
    cos, sin = np.cos(angle), np.sin(angle)
    columns[..., i], columns[..., j] = cos * left + sin * right, cos * right - sin * left


def _rounds(d: int) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """All pairs of d, in rounds of pairs that have nothing in common, as a tournament is drawn up."""
    players = np.arange(d + d % 2)
    for _ in range(len(players) - 1):
        pairs = np.array([players[: len(players) // 2], players[: len(players) // 2 - 1 : -1]])
        low, high = np.sort(pairs[:, pairs.max(axis=0) < d], axis=0)
        yield low, high
        players[1:] = np.roll(players[1:], 1)
