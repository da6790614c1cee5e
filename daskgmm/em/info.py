"""What a person who watches a fit reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Info:
    """What a person reads: one pass."""

    stage: str  # "sample" or "data"
    n_iter: int
    max_iter: int
    lower_bound: float  # per sample, the best of the running models
    change: float  # of that model
    n_samples: int
    seconds: float
    n_models: int
    reseeded: tuple[int, ...] = ()  # components that died in this pass and start again

    @property
    def samples_per_second(self) -> float:
        return self.n_samples / max(self.seconds, 1e-9)
