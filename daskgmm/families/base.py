"""The protocol of a mixture family, as the algorithm in ``em`` sees it.

A family says what one component is. For a pass, `Family.components` turns parameters into the object
that travels to the workers and answers two questions about a tile of rows: how likely is each row under
each component, and what are the sufficient statistics. Both are matrix products with φ; a component too
narrow for that (`Components.tight`) is treated about its own mean instead, under the same contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from daskgmm.families.frame import Array, Frame


class Components(Protocol):
    """The k components of one model, in the coordinates of a frame. Picklable, read-only."""

    @property
    def theta(self) -> Array:
        """(k, p): log weight + log p(z | k) = θ_k · φ(z)."""

    @property
    def tight(self) -> npt.NDArray[np.bool_]:
        """(k,): the components for which products with φ would lose too many digits."""

    def phi(self, z: Array) -> Array:
        """Sufficient statistics of a tile: (d, n) -> (p, n). The first is 1."""

    def log_joint_about_mean(self, k: int, z: Array) -> Array:
        """log weight + log p(z | k), from the distances to the component's own mean: (n,)."""

    def moments_about_mean(self, k: int, z: Array, resp: Array) -> Array:
        """Σ γ φ(z − mean), or about what `recentred` says: (p,)."""

    def take(self, ks: npt.NDArray[np.intp]) -> Components:
        """These of the components."""

    def recentred(self, moments: Array) -> Components | None:
        """The components about the means that moments (k, p) give, if those lie too far from where they were summed."""


class Family(Protocol):
    """What one component is."""

    @property
    def whitens(self) -> bool:
        """Does the frame need directions, or scales only?"""

    def components(self, parameters: Any, frame: Frame) -> Components:
        """What a pass needs to know of ``parameters``."""

    def blank(self, k: int, frame: Frame) -> Components:
        """Components about the origin of ``frame``, under which a start's moments are gathered."""

    def maximize(self, components: Any, moments: Array, frame: Frame) -> Any:
        """M-step: the parameters under which moments (k, p), gathered with ``components``, are likeliest."""

    def reseed(self, alive: Any, dead: Sequence[int], rows: Array) -> Any:
        """Add to the components ``alive`` new ones at the indices ``dead``, on ``rows`` (len(dead), d)."""
