"""Mixtures of families of independent features, with scikit-learn's interface: one class, and a family each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from importlib import import_module
from numbers import Real
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions

from daskgmm.em.loop import Info
from daskgmm.estimators.mixture import CONSTRAINTS, EMMixture
from daskgmm.families import PRODUCTS
from daskgmm.families.product import Product, ProductParameters
from daskgmm.fitting import Fit
from daskgmm.seeding import Start, given


class ProductMixture(EMMixture):
    """{summary}

    By EM on data of any size, as :class:`daskgmm.GaussianMixture`, whose interface it has.

    Parameters
    ----------
    n_components : int, default=1
        The number of mixture components.
    alpha : float, default=0
        Strength of the prior; 0: maximum likelihood, where a probability may be zero.
    tol : float, default=1e-3
        EM stops when the log-likelihood per sample changes by less.
    max_iter : int, default=100
        The most EM steps of one start; each is one pass over the data.
    n_init : int, default=1
        Starts; the best is kept. They share passes. At least four where all rows are in hand (see ``subsample``).
    init_params : {{"kmeans", "k-means++", "random", "random_from_data"}}, default="kmeans"
        How a start is found.
    weights_init, means_init : array-like, default=None
        A start, as a whole or in part, in the shapes of ``weights_`` and ``means_``. A complete one is taken straight
        to the data. Components keep the order that is given.
    missing : {{"raise", "skip", "drop", "fill"}}, default="raise"
        What to do with a NaN or an infinity: refuse it, naming the first; leave it out of its row, whose other values
        count, which is exact as features are independent (rows without any value are left out, and labelled -1); or
        leave out its row. "fill" refuses it too, but reads chunks that a Zarr store lacks as its fill value.
    random_state, warm_start, verbose, verbose_interval, accelerate, subsample, persist, callbacks
        As of :class:`daskgmm.GaussianMixture`.

    Attributes
    ----------
    weights_ : ndarray (n_components,)
    means_ : ndarray (n_components, n_features)
        Of categorical features (n_components, the sum of n_levels_).
    n_levels_ : ndarray (n_features,)
        Of categorical features: how many levels each has.
    converged_, n_iter_, lower_bound_, lower_bounds_, n_passes_, n_samples_, history_, n_features_in_, feature_names_in_
        As of :class:`daskgmm.GaussianMixture`; with ``alpha`` the lower bound is the log-posterior, but for a constant.
    """

    _parameter_constraints = {  # noqa: RUF012
        **CONSTRAINTS,
        "alpha": [Interval(Real, 0.0, None, closed="left")],
        "missing": [StrOptions({"raise", "skip", "drop", "fill"})],
    }
    _of: ClassVar[type[Product]]

    def __init__(
        self,
        n_components: int = 1,
        *,
        alpha: float = 0.0,
        tol: float = 1e-3,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: npt.ArrayLike | None = None,
        means_init: npt.ArrayLike | None = None,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        accelerate: bool = True,
        subsample: int | None = 100_000,
        missing: str = "raise",
        persist: bool | Literal["auto"] = "auto",
        callbacks: Sequence[Callable[[Info], None]] = (),
    ) -> None:
        self.n_components = n_components
        self.alpha = alpha
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.accelerate = accelerate
        self.subsample = subsample
        self.missing = missing
        self.persist = persist
        self.callbacks = callbacks

    def _family(self) -> Product:
        return self._of(float(self.alpha), self.missing == "skip")

    def _fitted(self) -> Product:
        levels = self.n_levels_.tolist() if self._of.leveled else [1] * self.n_features_in_
        return replace(self._family(), levels=tuple(levels))

    def _given(self, k: int, d: int) -> Start:
        means = None if self.means_init is None else np.asarray(self.means_init, dtype=np.float64)
        known = given(k, d if means is None or means.ndim != 2 else means.shape[1], self.weights_init, means)
        return Start(known, ProductParameters(**known) if len(known) == len(fields(ProductParameters)) else None)

    def _last(self, k: int, d: int) -> Start:
        if len(self.means_) != k or self.n_features_in_ != d:
            raise ValueError(
                f"the last fit was of {len(self.means_)} components in {self.n_features_in_} features, not {k} in {d}: "
                "set warm_start=False to start anew"
            )
        return Start(complete=self._parameters(), previous_bound=self.lower_bound_)

    def _keep(self, fit: Fit) -> None:
        family: Any = fit.family
        self.weights_ = fit.parameters.weights
        self.means_ = fit.parameters.means
        if self._of.leveled:
            self.n_levels_ = np.array(family.levels)

    def _saved(self) -> dict[str, tuple[str, ...]]:
        if self._of.leveled:
            return {"means": ("component", "level"), "n_levels": ("feature",)}
        return {"means": ("component", "feature")}

    def _objective(self) -> str:
        return "log-posterior" if self.alpha else "log-likelihood"

    def _parameters(self) -> ProductParameters:
        return ProductParameters(self.weights_, self.means_)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing in ("drop", "skip")
        return tags


@cache
def mixture_of(name: str) -> type[ProductMixture]:
    """The mixture of a family of `daskgmm.families.PRODUCTS`: as ``daskgmm`` has it, and so pickle."""
    family = getattr(import_module(f"daskgmm.families.{name}"), PRODUCTS[name])
    doc = str(ProductMixture.__doc__).format(summary=family.__doc__)
    return type(f"{PRODUCTS[name]}Mixture", (ProductMixture,), {"__module__": "daskgmm", "__doc__": doc, "_of": family})
