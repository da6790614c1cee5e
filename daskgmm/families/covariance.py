"""Covariance models: functions from moments to covariances that never see data.

A model is named by three letters, for volume λ, shape A and orientation D of the covariances λDADᵀ: E equal, V varying
over the components, I the identity (Celeux & Govaert 1995, Gaussian Parsimonious Clustering Models, Pattern Recognition
28, table 1). Functions give NaN or zero for a component of which there is no likeliest covariance, as it has collapsed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from daskgmm.families.axes import own_axes, shared_axes

Array = npt.NDArray[np.float64]

_CHANGE = 1e-13  # relative, of volumes from one iteration to the next
_ITERATIONS = 1000


@dataclass(frozen=True)
class CovarianceModel:
    """One covariance model.

    A diagonal model sees and returns the variances (k, d), any other one whole matrices (k, d, d).
    """

    name: str  # scikit-learn's, or the code
    code: str  # volume, shape, orientation
    # (counts (k,), per-component covariances) -> covariances; and from which precisions, for a model that `climbs`
    estimate: Callable[..., Array]
    compact: Callable[[Array], Array]  # (k, …) -> the shape under which the name's users know it
    expand: Callable[[Array, int, int], Array]  # that shape, k, d -> (k, …)
    dims: tuple[str, ...] = ("component", "feature", "feature_")  # of that shape, as xarray names them

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        """What users know covariances of k components in d features in."""
        return tuple(k if dim == "component" else d for dim in self.dims)

    @property
    def diagonal(self) -> bool:
        return self.code[2] == "I"

    @property
    def linear(self) -> bool:
        """Is a linear map of the features, with each covariance mapped, still of this model?"""
        return self.code[2] == self.code[1] != "I"

    @property
    def pooled(self) -> bool:
        """Do all components have one covariance?"""
        return "V" not in self.code

    @property
    def climbs(self) -> bool:
        """May the estimate be one maximum of several, so that it must go on from what there is?"""
        return self.code[1:] == "VE"

    @property
    def form(self) -> str:
        """What `holds` asks for."""
        return " and ".join(["diagonal"] * self.diagonal + ["the same for all components"] * self.pooled)

    def holds(self, compact: Array, k: int, d: int) -> bool:
        """Is there nothing in what users give, of the shape they know, that expands to nothing?

        Off the diagonal of a diagonal model, or in which components differ that have one covariance.
        """
        kept = self.compact(self.expand(compact, k, d))
        return np.allclose(kept, compact, rtol=0, atol=1e-8 * np.abs(compact).max())

    def n_parameters(self, k: int, d: int) -> int:
        """Free parameters of the covariances: volume + shape + orientation."""
        times = {"E": 1, "V": k, "I": 0}
        volume, shape, orientation = (times[letter] for letter in self.code)
        return volume + shape * (d - 1) + orientation * d * (d - 1) // 2


def _each(counts: Array, scatter: Array) -> Array:
    """VVV, VVI: each component's own."""
    return scatter


def _pooled(counts: Array, scatter: Array) -> Array:
    """EEE, EEI: that of all rows about their components' means."""
    pooled = _sum(counts / counts.sum(), scatter)
    return np.broadcast_to(pooled, scatter.shape).copy()


def _spheres(counts: Array, variances: Array) -> Array:
    """VII: the mean variance."""
    return np.broadcast_to(variances.mean(axis=1, keepdims=True), variances.shape).copy()


def _equal_spheres(counts: Array, variances: Array) -> Array:
    """EII: the mean variance of all."""
    return _spheres(counts, _pooled(counts, variances))


def _equal_shapes(counts: Array, variances: Array) -> Array:
    """VEI, model [λₖB]: by turns B for the volumes λₖ, and these for B."""

    def unit(total: Array) -> Array:
        return total / _volume(total)

    return _proportional(counts, variances, unit, lambda shape: (variances / shape).mean(axis=1))


def _equal_volumes(counts: Array, variances: Array) -> Array:
    """EVI, model [λBₖ]: each component's own, scaled to the mean volume."""
    return _scaled(counts, variances, _volume(variances))


def _proportional_matrices(counts: Array, scatter: Array) -> Array:
    """VEE, model [λₖC] with C = DADᵀ: by turns C for the volumes λₖ, and these for C."""

    def unit(total: Array) -> Array:
        return total / _determinant(total)

    def volumes(shape: Array) -> Array:
        scale, correlations = _correlations(shape)
        try:
            inverse = np.linalg.inv(correlations)
        except np.linalg.LinAlgError:  # all have collapsed
            return np.full(len(scatter), np.nan)
        return np.einsum("kij,ij->k", scatter / np.outer(scale, scale), inverse) / len(shape)

    return _proportional(counts, scatter, unit, volumes)


def _equal_determinants(counts: Array, scatter: Array) -> Array:
    """EVV, model [λCₖ]: each component's own, scaled to the mean volume."""
    return _scaled(counts, scatter, _determinant(scatter)[:, None])


def _volume(variances: npt.NDArray[np.floating]) -> Array:
    """Their geometric mean, |V|^(1/d): (…, 1); NaN where one is not positive."""
    return np.exp(np.log(np.where(variances > 0, variances, np.nan)).mean(axis=-1, keepdims=True))


def _determinant(matrices: Array) -> Array:
    """|S|^(1/d): (…,); NaN where that is not positive. Unlike by eigenvalues, it is as exact in any units."""
    scale, correlations = _correlations(matrices)
    sign, log = np.linalg.slogdet(correlations)
    return np.exp(np.where(sign > 0, log / matrices.shape[-1], np.nan)) * np.exp(2 * np.log(scale).mean(axis=-1))


def _correlations(matrices: Array) -> tuple[Array, Array]:
    """Standard deviations (…, d), and correlations (…, d, d); all NaN where a variance is not positive."""
    variances = np.einsum("...ii->...i", matrices)
    scale = np.sqrt(np.where((variances > 0).all(axis=-1, keepdims=True), variances, np.nan))
    return scale, matrices / (scale[..., None] * scale[..., None, :])


def _scaled(counts: Array, scatter: Array, volumes: Array) -> Array:
    """The covariances (k, …) of volumes (k, 1), scaled to the volume λ = Σ nₖλₖ / n."""
    volume = np.nansum(counts[:, None] * volumes) / counts.sum()
    return scatter * np.reshape(volume / volumes, (-1, *[1] * (scatter.ndim - 1)))


def _proportional(
    counts: Array, scatter: Array, unit: Callable[[Array], Array], volumes_for: Callable[[Array], Array]
) -> Array:
    """λₖC of the greatest likelihood, which is the only maximum: it is concave along geodesics of positive matrices.

    Parameters
    ----------
    unit
        A sum of covariances to that of volume one.
    volumes_for
        The mean eigenvalues (k,) of SₖC⁻¹: the likeliest volumes for C.
    """
    volumes = np.ones_like(counts)
    for _ in range(_ITERATIONS):
        # A component without volume has collapsed, and is nothing to the others.
        shape = unit(_sum(np.divide(counts, volumes, where=volumes > 0, out=np.zeros_like(counts)), scatter))
        before, volumes = volumes, volumes_for(shape)
        if not (np.abs(volumes - before) > _CHANGE * volumes).any():
            break
    return np.multiply.outer(volumes, shape)


def _sum(weights: Array, covariances: Array) -> Array:
    """Σ wₖSₖ, of (k,) and (k, …): as `np.tensordot`, which takes ten times as long for so few."""
    return (weights @ covariances.reshape(len(weights), -1)).reshape(covariances.shape[1:])


def _matrices(diagonals: Array) -> Array:
    """(k, d) to (k, d, d)."""
    return diagonals[:, :, None] * np.eye(diagonals.shape[1])


def _coded(code: str, estimate: Callable[..., Array]) -> CovarianceModel:
    """A model whose users see matrices (k, d, d), whatever it is."""
    model = CovarianceModel(code, code, estimate, lambda c: c, lambda c, k, d: c)
    if model.pooled:
        model = replace(model, expand=lambda c, k, d: np.broadcast_to(c[0], c.shape).copy())
    if model.diagonal:
        matrices = model.expand
        model = replace(model, compact=_matrices, expand=lambda c, k, d: np.einsum("kii->ki", matrices(c, k, d)).copy())
    return model


_CODED = {
    code: _coded(code, estimate)
    for code, estimate in {
        "EII": _equal_spheres,
        "VII": _spheres,
        "EEI": _pooled,
        "VEI": _equal_shapes,
        "EVI": _equal_volumes,
        "VVI": _each,
        "EEE": _pooled,
        "VEE": _proportional_matrices,
        "EVE": shared_axes(_equal_volumes),
        "VVE": shared_axes(_each),
        "EEV": own_axes(_pooled),
        "VEV": own_axes(_equal_shapes),
        "EVV": _equal_determinants,
        "VVV": _each,
    }.items()
}
# Under scikit-learn's names, in its shapes.
_NAMED = {
    "full": replace(_CODED["VVV"], name="full"),
    "tied": replace(
        _CODED["EEE"],
        name="tied",
        compact=lambda c: c[0],
        expand=lambda c, k, d: np.broadcast_to(c, (k, d, d)).copy(),
        dims=("feature", "feature_"),
    ),
    "diag": replace(
        _CODED["VVI"], name="diag", compact=lambda c: c, expand=lambda c, k, d: c, dims=("component", "feature")
    ),
    "spherical": replace(
        _CODED["VII"],
        name="spherical",
        compact=lambda c: c[:, 0],
        expand=lambda c, k, d: np.repeat(c[:, None], d, axis=1),
        dims=("component",),
    ),
}
MODELS = _NAMED | _CODED
