"""Acceleration of a fixed-point iteration x ← g(x), on flat vectors: momentum, and Anderson mixing where it works.

EM is such an iteration on its normalized moments, moments → M-step → E-step → moments, for every family and every
constraint. Far from the solution momentum pays (Nesterov 1983, Soviet Math. Dokl. 27; with restarts, O'Donoghue &
Candès 2015, Found. Comput. Math. 15), near it mixing of the last steps does: Anderson 1965, J. ACM 12, in the form of
Walker & Ni 2011, SIAM J. Numer. Anal. 49, eq. 2.3. Which of them it is near to, the failures tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from daskgmm.families.frame import Array

_DEPTH = 8  # steps remembered; Walker & Ni find little to gain beyond
_RCOND = 1e-10  # directions that differ by less than this are rounding


@dataclass(frozen=True)
class Mixing:
    """The last steps, oldest first, and what has been learnt from failures."""

    points: tuple[Array, ...] = ()  # x
    images: tuple[Array, ...] = ()  # g(x)
    n_steps: int = 0  # since mixing failed
    patience: int = _DEPTH  # steps before mixing is tried
    momentum: float = 1.0  # grows with each step since momentum failed
    mixed: bool = False  # was the last candidate mixed?

    def add(self, point: Array, image: Array) -> Mixing:
        return replace(
            self,
            points=(*self.points, point)[-_DEPTH:],
            images=(*self.images, image)[-_DEPTH:],
            n_steps=self.n_steps + 1,
            momentum=self.momentum if self.mixed else _grown(self.momentum),
            mixed=False,
        )

    def failed(self) -> Mixing:
        """Start momentum anew, or take twice as many steps before mixing is tried again."""
        if self.mixed:
            return replace(self, n_steps=0, patience=2 * self.patience, mixed=False)
        return replace(self, momentum=1.0)

    def succeeded(self) -> Mixing:
        return replace(self, patience=_DEPTH) if self.mixed else self

    def extrapolate(self) -> tuple[Array, Mixing] | None:
        """A point to try in place of the last image; None before there are enough steps."""
        if len(self.images) < 2:
            return None
        if self.n_steps < self.patience:
            weight = (self.momentum - 1) / _grown(self.momentum)
            return self.images[-1] + weight * (self.images[-1] - self.images[-2]), self
        images = np.array(self.images)  # (m, size)
        residuals = images - np.array(self.points)
        steps = np.diff(residuals, axis=0).T  # (size, m - 1)
        gamma = np.linalg.lstsq(steps, residuals[-1], rcond=_RCOND)[0]
        return self.images[-1] - gamma @ np.diff(images, axis=0), replace(self, mixed=True)


def _grown(momentum: float) -> float:
    return (1 + math.sqrt(1 + 4 * momentum**2)) / 2
