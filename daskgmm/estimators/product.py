"""Mixtures of families of independent features, with scikit-learn's interface: one class, and a family each."""

from __future__ import annotations

import os
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

from daskgmm.data.blocks import Samples
from daskgmm.data.checks import NO_ANNOTATIONS, RowAnnotations
from daskgmm.em.info import Info
from daskgmm.estimators.mixture import CONSTRAINTS, EMMixture
from daskgmm.families import PRODUCTS
from daskgmm.families.product import Product, ProductParameters
from daskgmm.fitting.fit import Fit
from daskgmm.fitting.options import Candidate
from daskgmm.fitting.starts import Start, given


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
        Starts; the best is kept. They share passes. At least four where all rows are in hand (see ``subsample``), and
        one with labels.
    init_params : {{"kmeans", "k-means++", "random", "random_from_data"}}, default="kmeans"
        How a start is found.
    weights_init, means_init : array-like, default=None
        A start, as a whole or in part, in the shapes of ``weights_`` and ``means_``. A complete one is taken straight
        to the data. Components keep the order that is given.
    missing : {{"raise", "skip", "drop", "fill"}}, default="raise"
        What to do with a NaN or an infinity: refuse it, naming the first; leave it out of its row, whose other values
        count, which is exact as features are independent (rows without any value are left out, and labelled -1); or
        leave out its row. "fill" refuses it too, but reads chunks that a Zarr store lacks as its fill value.
    random_state, warm_start, verbose, verbose_interval, accelerate, subsample, persist, checkpoint, callbacks
        As of :class:`daskgmm.GaussianMixture`.

    Attributes
    ----------
    weights_ : ndarray (n_components,)
    means_ : ndarray (n_components, n_features)
        Of categorical features (n_components, the sum of n_levels_).
    categories_, n_levels_ : list of ndarray, ndarray (n_features,)
        Of categorical features: the levels of each, and how many they are.
    converged_, n_iter_, lower_bound_, lower_bounds_, n_passes_, n_samples_, history_, n_features_in_,
    feature_names_in_, feature_units_in_
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
        checkpoint: str | os.PathLike[str] | None = None,
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
        self.checkpoint = checkpoint
        self.callbacks = callbacks

    def _family(self) -> Product:
        return self._of(float(self.alpha), self.missing == "skip")

    def _fitted(self) -> Product:
        return replace(self._family(), levels=(1,) * self.n_features_in_)

    def _start_from_params(self, k: int, d: int) -> Start:
        means = None if self.means_init is None else np.asarray(self.means_init, dtype=np.float64)
        known = given(k, d if means is None or means.ndim != 2 else means.shape[1], self.weights_init, means)
        return Start(known, ProductParameters(**known) if len(known) == len(fields(ProductParameters)) else None)

    def _warm_start(self, k: int, d: int) -> Start:
        if len(self.means_) != k or self.n_features_in_ != d:
            raise ValueError(
                f"the last fit was of {len(self.means_)} components in {self.n_features_in_} features, not {k} in {d}: "
                "set warm_start=False to start anew"
            )
        return Start(complete=self._parameters(), previous_bound=self.lower_bound_)

    def _set_parameters(self, fit: Fit) -> None:
        self.weights_ = fit.parameters.weights
        self.means_ = fit.parameters.means

    def _state_dims(self) -> dict[str, tuple[str, ...]]:
        return {"means": ("component", "feature")}

    def _after_load(self) -> None:
        family = self._fitted()
        if self.means_.shape[1] != len(family.columns) or not family.possible(self.means_):
            raise ValueError("the means are not those of such a mixture")

    def _objective(self) -> str:
        return "log-posterior" if self.alpha else "log-likelihood"

    def _parameters(self) -> ProductParameters:
        return ProductParameters(self.weights_, self.means_)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing in ("drop", "skip")
        return tags


class LeveledMixture(ProductMixture):
    """Where features have levels: which ones, the fit learns, or an xarray Dataset or a pandas DataFrame says."""

    def _fitted(self) -> Product:
        family: Any = self._family()
        values = [some.tolist() if some.dtype.kind == "f" else range(len(some)) for some in self.categories_]
        return replace(family, values=tuple(map(tuple, values)), levels=tuple(map(len, values)))

    def _open(self, X: Any, beside: RowAnnotations = NO_ANNOTATIONS, fitting: bool = False) -> Samples:
        if fitting:
            self._names: list[Any] | None = None  # of the levels of each feature, where they are not numbers
        if not hasattr(X, "iloc"):
            return super()._open(X, beside, fitting)
        if fitting:
            known = [np.array(getattr(dtype, "categories", ())) for dtype in X.dtypes]
            names = self._names = [None if some.dtype.kind in "biuf" else some for some in known]
            places = [some if name is None else range(len(name)) for some, name in zip(known, names, strict=True)]
            categories = tuple(tuple(map(float, some)) for some in places)
        else:
            names, categories = [None if some.dtype.kind == "f" else some for some in self.categories_], ()
        columns = {column: _codes(X[column], name) for column, name in zip(X.columns, names, strict=False)}
        return replace(super()._open(X.assign(**columns), beside, fitting), categories=categories)

    def _candidate(self, samples: Samples) -> Candidate:
        candidate = super()._candidate(samples)
        family: Any = candidate.family
        return replace(candidate, family=replace(family, values=samples.categories))

    def _set_parameters(self, fit: Fit) -> None:
        super()._set_parameters(fit)
        family: Any = fit.family
        names = self._names or [None] * len(family.values)
        self.categories_ = [np.array(v if n is None else n) for v, n in zip(family.values, names, strict=True)]
        self.n_levels_ = np.array(family.levels)

    def _state_dims(self) -> dict[str, tuple[str, ...]]:
        return {"means": ("component", "level")}

    def _extra_state(self) -> dict[str, Any]:
        return {"categories": [some.tolist() for some in self.categories_]}

    def _extra_state_names(self) -> tuple[str, ...]:
        return ("categories",)

    def _after_load(self) -> None:
        given: Any = self.categories_
        if len(given) != self.n_features_in_ or not all(_are_levels(some) for some in given):
            raise ValueError("categories are not lists of numbers or names, one a feature")
        self.categories_ = [np.array(some) for some in given]
        self.n_levels_ = np.array([len(some) for some in given])
        super()._after_load()


def _are_levels(some: Any) -> bool:
    """Are they different numbers, or names, at least one?"""
    kinds = {type(level) for level in some} if isinstance(some, list) else set()
    return bool(kinds) and (kinds <= {int, float} or kinds in ({str}, {bool})) and len(set(some)) == len(some)


def _codes(column: Any, names: Any) -> Any:
    """A column of a DataFrame as the places of its values among the categories, NaN where one is missing."""
    if names is None:
        return column.astype(float)
    places = dict(zip(names, range(len(names)), strict=True))
    unknown = [(row, value) for row, value in column.items() if value not in places and value == value]
    if unknown:
        row, value = unknown[0]
        raise ValueError(
            f"Input X is {value!r} at row {row}, column {column.name!r}, not among the categories that the fit "
            f"knows, {', '.join(map(repr, names))}: fit with it, or make it missing"
        )
    return column.astype(object).map(places).astype(float)


@cache
def mixture_of(name: str) -> type[ProductMixture]:
    """The mixture of a family of `daskgmm.families.PRODUCTS`: as ``daskgmm`` has it, and so pickle."""
    family = getattr(import_module(f"daskgmm.families.{name}"), PRODUCTS[name])
    doc = str(ProductMixture.__doc__).format(summary=family.__doc__)
    return type(
        f"{PRODUCTS[name]}Mixture",
        (LeveledMixture if family.leveled else ProductMixture,),
        {"__module__": "daskgmm", "__doc__": doc, "_of": family},
    )
