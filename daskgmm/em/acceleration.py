"""Anderson mixing of a fixed-point iteration x ← g(x), on flat vectors.

Anderson 1965, J. ACM 12; in the form of Walker & Ni 2011, SIAM J. Numer. Anal. 49, eq. 2.3. EM is such an
iteration on its normalized moments, moments → M-step → E-step → moments, for every family and every constraint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from daskgmm.families.frame import Array

_DEPTH = 8  # steps remembered; Walker & Ni find little to gain beyond
_RCOND = 1e-10  # directions that differ by less than this are rounding


@dataclass(frozen=True)
class Mixing:
    """The last steps, oldest first, and how many it takes before they are trusted."""

    points: tuple[Array, ...] = ()  # x
    images: tuple[Array, ...] = ()  # g(x)
    n_steps: int = 0
    patience: int = 2

    def add(self, point: Array, image: Array) -> Mixing:
        points, images = (*self.points, point)[-_DEPTH:], (*self.images, image)[-_DEPTH:]
        return Mixing(points, images, self.n_steps + 1, self.patience)

    def failed(self) -> Mixing:
        """Forget the steps, and take twice as many before the next try.

        Where EM moves away from a saddle point, extrapolation only finds the way back to it.
        """
        return Mixing(patience=2 * self.patience)

    def succeeded(self) -> Mixing:
        return replace(self, patience=2)

    def extrapolate(self) -> Array | None:
        """The combination of the images whose combined residual g(x) − x is smallest; None before there are enough."""
        if self.n_steps < self.patience:
            return None
        images = np.array(self.images)  # (m, size)
        residuals = images - np.array(self.points)
        steps = np.diff(residuals, axis=0).T  # (size, m - 1)
        gamma = np.linalg.lstsq(steps, residuals[-1], rcond=_RCOND)[0]
        return self.images[-1] - gamma @ np.diff(images, axis=0)
