"""The protocol of a mixture family, as the algorithm in ``em`` sees it.

A family says what one component is. For a pass, `Family.components` turns parameters into the object
that travels to the workers and answers two questions about a tile of rows: how likely is each row under
each component, and what are the sufficient statistics. Both are matrix products with φ; a component too
narrow for that (`Components.ill_conditioned`) is treated about its own mean instead, under the same contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from daskgmm.families.encoding import FeatureEncoding
from daskgmm.families.frame import Array, Frame


class Components(Protocol):
    """The k components of one model, in the coordinates of a frame. Picklable, read-only.

    φ(z) is 1, the d coordinates of z, and some of their products.
    """

    @property
    def frame(self) -> Frame:
        """In whose coordinates they are."""

    @property
    def constants(self) -> Array:
        """(k,): log weight + log p(mean | k)."""

    @property
    def means(self) -> Array:
        """(k, d)."""

    @property
    def factors(self) -> Array:
        """(k, d, d), or diagonals (k, d): log p(z | k) = log p(mean | k) − ½ ‖Fᵀ(z − mean)‖²."""

    @property
    def theta(self) -> Array:
        """(k, p): log weight + log p(z | k) = θ_k · φ(z)."""

    @property
    def products(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Which z_i z_j are in φ: every i (q,), every j (q,)."""

    @property
    def ill_conditioned(self) -> npt.NDArray[np.bool_]:
        """(k,): the components for which products with φ would lose too many digits."""

    @property
    def uses_distances(self) -> npt.NDArray[np.bool_]:
        """(k,): the components whose distances to the mean are taken, of need (ill-conditioned) or for speed."""

    @property
    def centre_distance_in_sd(self) -> Array:
        """(k,): how many of its least standard deviations each mean is from the origin, at most."""

    @property
    def rounding_scale(self) -> Array:
        """(k,): of the terms that a row's log density is the sum of, at most: so many roundings it is known to."""

    @property
    def centres(self) -> Array:
        """(k, d): what the moments are about; the origin but for ill-conditioned components."""

    @property
    def linear(self) -> bool:
        """Is φ only 1 and z, so that a product with it loses nothing?"""

    @property
    def shares_quadratic(self) -> bool:
        """Is the quadratic part of θ the same for all components, so that Σφ of it can be summed for all at once?"""

    @property
    def float32_suffices(self) -> bool:
        """Would single precision do, for a pass that is not among the last?"""

    def take(self, ks: npt.NDArray[np.intp]) -> Components:
        """These of the components."""

    def recentred(self, moments: Array) -> Components | None:
        """The components about the means that moments (k, p) give, if those lie too far from where they were summed."""


class Family(Protocol):
    """What one component is."""

    @property
    def encoding(self) -> FeatureEncoding:
        """What values it takes, and the columns of which φ is made."""

    @property
    def likelihood_is_bounded(self) -> bool:
        """Is there a likeliest mixture? Without a prior, a narrow Gaussian is as likely as one likes."""

    @property
    def restarts_empty_components(self) -> bool:
        """Is a component that lost its rows one too few, that starts again, or one too many, that stays empty?"""

    def with_data(self, rows: Array, weights: Array, low: Array, high: Array, k: int) -> Self:
        """The family once it knows weighted rows (m, d), and the range (d,) of all, in the user's units.

        Raises
        ------
        ValueError
            What the user asks does not fit the rows.
        """

    def check(self, rows: Array, low: Array, high: Array, k: int, names: Sequence[str]) -> None:
        """Refuse rows to which k components cannot be fitted; warn where they hardly can.

        Raises
        ------
        ValueError
        """

    def frame(self, sample: Array, low: Array, high: Array) -> Frame:
        """Where sums over rows like those of the sample (m, d), inside the box low ≤ x ≤ high, are well conditioned."""

    def components(self, parameters: Any, frame: Frame) -> Components:
        """What a pass needs to know of ``parameters``."""

    def zero_components(self, k: int, frame: Frame) -> Components:
        """Components about the origin of ``frame``, under which a start's moments are gathered."""

    def maximize(self, components: Any, moments: Array) -> Any:
        """M-step: the parameters under which moments (k, p), gathered with ``components``, are likeliest.

        Or, under a prior, that have the greatest posterior density.
        """

    def clip_moments(self, moments: Array, image: Array) -> Array:
        """Extrapolated moments (k, p), held back from where EM's own, the image, could not go."""

    def max_decrease(self, before: Any, after: Any, counts: Array, frame: Frame) -> float:
        """How far one step of EM may lower the log-likelihood, or -posterior, at most: 0 where `maximize` maximizes it.

        Parameters
        ----------
        before, after
            The parameters that the E-step was of, and those of the M-step.
        counts : ndarray of shape (k,)
            Σ w γ of the E-step.
        """

    def log_prior(self, parameters: Any, frame: Frame) -> float:
        """The logarithm of the prior density that `maximize` counts in, but for a constant; without a prior 0."""

    def n_parameters(self, k: int, d: int) -> int:
        """Free parameters of a mixture of k components in d dimensions."""

    def reseed(self, alive: Any, dead: Sequence[int], rows: Array) -> Any:
        """Add to the components ``alive`` new ones at the indices ``dead``, on ``rows`` (len(dead), d)."""
