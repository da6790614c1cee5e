"""What one pass learns from the rows: a monoid, so that blocks can be summed in a tree."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from daskgmm.families.frame import Array


@dataclass(frozen=True)
class Stats:
    """Sufficient statistics of some rows under one model.

    ``Stats(rows A) + Stats(rows B) == Stats(A and B)``, to rounding.
    """

    n: int  # rows used
    log_likelihood: float  # Σ w log p(x)
    moments: Array  # (k, p)  Σ w γ φ(x)
    scatter: Array = field(default_factory=lambda: np.zeros(0))  # (q,)  Σ w x_i x_j where it is one for all components
    log_certainty: float = 0.0  # Σ w log max γ

    def __add__(self, other: Stats) -> Stats:
        return Stats(
            self.n + other.n,
            self.log_likelihood + other.log_likelihood,
            self.moments + other.moments,
            self.scatter + other.scatter,
            self.log_certainty + other.log_certainty,
        )

    @property
    def weight(self) -> float:
        """Σ w: the first of φ is 1, and the γ of a row sum to 1."""
        return float(self.moments[:, 0].sum())
