"""What all mixtures that EM fits share, whatever their family."""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from daskgmm.data.blocks import Samples
from daskgmm.data.checks import RowAnnotations
from daskgmm.em.info import Info
from daskgmm.estimators.base import BaseMixture
from daskgmm.estimators.tables import History, components, summary
from daskgmm.families.base import Components
from daskgmm.families.encoding import FeatureEncoding
from daskgmm.families.frame import Frame
from daskgmm.fitting.fit import Fit, fit_mixture
from daskgmm.fitting.options import OPTIONS, Candidate, Options
from daskgmm.fitting.starts import Start
from daskgmm.storage import models
from daskgmm.urls import presentable

CONSTRAINTS: dict[str, list[Any]] = {
    "n_components": [Interval(Integral, 1, None, closed="left")],
    "tol": [Interval(Real, 0.0, None, closed="left")],
    "max_iter": [Interval(Integral, 0, None, closed="left")],
    "n_init": [Interval(Integral, 1, None, closed="left")],
    "init_params": [StrOptions({"kmeans", "random", "random_from_data", "k-means++"})],
    "weights_init": ["array-like", None],
    "means_init": ["array-like", None],
    "random_state": ["random_state"],
    "warm_start": ["boolean"],
    "verbose": ["verbose"],
    "verbose_interval": [Interval(Integral, 1, None, closed="left")],
    "accelerate": ["boolean"],
    "subsample": [Interval(Integral, 1, None, closed="left"), None],
    "missing": [StrOptions({"raise", "drop", "fill"})],
    "persist": ["boolean", StrOptions({"auto"})],
    "checkpoint": [str, os.PathLike, None],
    "callbacks": ["array-like"],
}


class EMMixture(BaseMixture):
    """One mixture, fitted by EM from the best of its starts."""

    n_components: int
    tol: float
    max_iter: int
    random_state: Any
    warm_start: bool

    @abstractmethod
    def _family(self) -> Any:
        """The family, as the user asks for it."""

    def _fitted(self) -> Any:
        """The family, with what the fit has learnt of the data."""
        return self._family()

    @abstractmethod
    def _start_from_params(self, k: int, d: int) -> Start:
        """The start that the user gives, checked."""

    @abstractmethod
    def _warm_start(self, k: int, d: int) -> Start:
        """The last fit's solution, to go on from."""

    @abstractmethod
    def _parameters(self) -> Any:
        """The fitted parameters, about the origin."""

    @abstractmethod
    def _set_parameters(self, fit: Fit) -> None:
        """Set the attributes that hold the fitted parameters."""

    @abstractmethod
    def _state_dims(self) -> dict[str, tuple[str, ...]]:
        """Those of the attributes that are saved beside ``weights_``, without their underscore, and their dims."""

    def _extra_state_names(self) -> tuple[str, ...]:
        """Their names."""
        return ()

    def _extra_state(self) -> dict[str, Any]:
        """What JSON can hold of other attributes that are saved."""
        return {}

    def _kind(self) -> str:
        """What kind of mixture it is."""
        return type(self).__name__.removesuffix("Mixture")

    @abstractmethod
    def _objective(self) -> str:
        """What the lower bound is of a sample, in words."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, labels: Any = None) -> Self:
        """Estimate the parameters by EM. A fit that fails leaves the estimator as it was.

        Parameters
        ----------
        X : ndarray, dask array, xarray Dataset or DataArray, zarr Array or Group, or path or URL of a Zarr store
            (n_samples, n_features). With more dimensions, the last one holds the features; in a Dataset the
            variables are the features and all dimensions are sample dimensions.
        y : Ignored
        sample_weight : array-like or str, optional
            Of the shape of the sample dimensions, or a DataArray along some of them; a weight of 2 counts as the row
            twice. Or the name of a variable of a Dataset, or of an array of a Zarr group, that is no feature then.
        labels : array-like of int or str, optional
            The same: the component of each sample, from 0 on, and -1 where it is not known. What is known
            stays so, and the joint likelihood of samples and labels is maximized, from one start on all of the data,
            without moves. Where all are known, that is a discriminant analysis, or naive Bayes.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            The data cannot be fitted; the message names the place and the remedy.
        MemoryError
            A block of the data does not fit in a worker's memory.
        """
        return self._run(X, RowAnnotations(sample_weight, labels))

    def _fit(self, samples: Samples, watch: Callable[[Info], None]) -> None:
        candidate, rng = self._candidate(samples), check_random_state(self.random_state)
        journal = self._journal(samples, rng, {"start": candidate.start.digest})
        fit = fit_mixture(samples, candidate, rng, watch, journal)
        if self.max_iter and not fit.state.converged:
            warnings.warn(
                f"EM did not converge in {fit.state.n_iter} passes: raise max_iter or tol, or go on from here with "
                "warm_start=True",
                ConvergenceWarning,
                stacklevel=4,
            )
        self._set(fit)

    def _candidate(self, samples: Samples) -> Candidate:
        """What is to be fitted to samples."""
        k, d = self.n_components, samples.n_features
        known = (
            self._warm_start(k, d) if self.warm_start and hasattr(self, "converged_") else self._start_from_params(k, d)
        )
        return Candidate(self._family(), Options(**{name: getattr(self, name) for name in OPTIONS}), known)

    def _set(self, fit: Fit) -> None:
        self._set_parameters(fit)
        self.converged_ = fit.state.converged
        self.n_iter_ = fit.state.n_iter
        self.lower_bound_ = fit.state.lower_bound
        self.lower_bounds_ = list(fit.state.bounds.values)
        self.n_passes_ = fit.n_passes
        self.n_samples_ = fit.survey.n
        self.history_ = History(fit.history)

    def _summary(self) -> str:
        return summary(
            f"{'Converged' if self.converged_ else 'Not converged'} after {self.n_iter_} steps and {self.n_passes_} "
            f"passes over {self.n_samples_:,} rows: {self._objective()} {self.lower_bound_:.6g} a row",
            components(self.weights_, self.means_, models.columns(self)),
        )

    def sample(self, n_samples: int = 1) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
        """Draw samples from the mixture.

        Returns
        -------
        X : ndarray (n_samples, n_features)
        y : ndarray (n_samples,)
            The component of each, in order.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples} . The sampling requires at least one sample.")
        return self._fitted().sample(self._parameters(), n_samples, check_random_state(self.random_state))

    @classmethod
    def from_xarray(cls, ds: Any) -> Self:
        """The model that a Dataset made by `to_xarray` describes.

        Raises
        ------
        ValueError
            It does not describe one.
        """
        model = cls(**models.params(ds, cls._get_param_names()))
        model._validate_params()
        models.restore(model, ds)
        model._after_load()
        return model

    def _after_load(self) -> None:
        """Complete the attributes of a model that was read, whose saved ones are finite and have their shapes.

        Raises
        ------
        ValueError
            They are not what a fit finds.
        """

    def _encoding(self) -> FeatureEncoding:
        return self._fitted().encoding

    def _n_parameters(self) -> int:
        return self._fitted().n_parameters(len(self._parameters().weights), self.n_features_in_)

    def _components(self) -> Components:
        family = self._fitted()
        return family.components(self._parameters(), Frame.identity(family.encoding.width(self.n_features_in_)))


def load(path: str | os.PathLike[str]) -> Any:
    """Read a model that `save` wrote: a fitted estimator of the class that wrote it.

    Raises
    ------
    ValueError
        There is no model, or not one that this version can read.
    """
    import daskgmm

    ds = models.read(path)
    shown = presentable(os.fspath(path)) if isinstance(path, str | os.PathLike) else presentable(path)
    name = ds.attrs.get("family")
    if name not in daskgmm.MIXTURES:
        raise ValueError(f"{shown!r} holds a {name}, which is not known here: use the version that wrote it")
    with models.valid(shown):
        return getattr(daskgmm, name).from_xarray(ds)
