"""What all mixtures share of scikit-learn's interface: input, prediction, scores, a fit that fails cleanly."""

from __future__ import annotations

import os
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable
from copy import copy
from numbers import Integral
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import Tags, estimator_html_repr
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from daskgmm.data.blocks import Samples
from daskgmm.data.checks import NO_ANNOTATIONS, RowAnnotations, check_kind, check_unmasked
from daskgmm.data.open import open_samples
from daskgmm.em.info import Info
from daskgmm.estimators.progress import ProgressBar
from daskgmm.families.base import Components
from daskgmm.families.encoding import FeatureEncoding
from daskgmm.fitting.checkpoint import NOWHERE, Checkpoint, Journal
from daskgmm.prediction.predict import LABELS, LOG_CERTAINTY, LOG_DENSITY, PROBA, Output, totals
from daskgmm.prediction.predict import predict as predict_lazily
from daskgmm.process import single_blas
from daskgmm.storage import models
from daskgmm.urls import presentable

_NOT_DECISIVE = {  # parameters that say when a fit ends, who watches it and where it keeps what
    *("tol", "max_iter", "verbose", "verbose_interval", "callbacks", "persist", "checkpoint", "criterion"),
    *("warm_start", "weights_init", "means_init", "precisions_init"),  # the start says it
}


class BaseMixture(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """A mixture fitted by passes over samples of any size and kind."""

    verbose: int
    verbose_interval: int
    missing: str
    checkpoint: Any
    callbacks: Any
    means_: Any

    @abstractmethod
    def _fit(self, samples: Samples, watch: Callable[[Info], None]) -> None:
        """Fit, then set the fitted attributes."""

    @abstractmethod
    def _components(self) -> Components:
        """The fitted components, in the user's units."""

    @abstractmethod
    def _encoding(self) -> FeatureEncoding:
        """What values of samples mean to them."""

    @abstractmethod
    def _n_parameters(self) -> int:
        """Free parameters."""

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        """As scikit-learn's, but for what may be secret in the URL of a checkpoint."""
        text: str = BaseEstimator.__repr__(self._presentable(), N_CHAR_MAX)
        return text

    def _html_repr(self) -> str:
        text: str = estimator_html_repr(self._presentable())
        return text + self._summary() if hasattr(self, "n_passes_") else text

    @abstractmethod
    def _summary(self) -> str:
        """What the fit found, as HTML."""

    def _presentable(self) -> Self:
        shown = copy(self)
        if isinstance(self.checkpoint, str):
            shown.checkpoint = presentable(self.checkpoint)
        return shown

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
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
        return self._run(X, RowAnnotations(sample_weight))

    def _run(self, X: Any, beside: RowAnnotations) -> Self:
        """Fit, watched; a fit that fails leaves the estimator as it was."""
        before = dict(self.__dict__)
        progress = ProgressBar(1 if self.verbose > 1 else self.verbose_interval) if self.verbose else None
        watchers = [_warn_reseeded, *([progress] if progress else []), *self.callbacks]

        def watch(info: Info) -> None:
            for watcher in watchers:
                watcher(info)

        try:
            self._validate_params()
            with single_blas():  # around the M-steps too: their bits must not depend on this machine's cores
                self._fit(self._open(X, beside, fitting=True), watch)
        except BaseException:
            self.__dict__ = before
            raise
        finally:
            if progress is not None:
                progress.close()
        return self

    def _journal(self, samples: Samples, rng: np.random.RandomState, more: dict[str, Any]) -> Journal:
        """Where the fit is kept. Its identity is of all that decides over the result but when it ends."""
        if self.checkpoint is None:
            return NOWHERE
        kept = {name: value for name, value in self.get_params(deep=False).items() if name not in _NOT_DECISIVE}
        seed = kept["random_state"]
        kept["random_state"] = seed if isinstance(seed, Integral) else None
        return Checkpoint(self.checkpoint, {"mixture": type(self).__name__, **kept, **more}, samples, rng)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return what `predict` returns for the same data."""
        return self.fit(X, y, sample_weight).predict(X)

    def predict(self, X: Any) -> Any:
        """The likeliest component of each sample: integers, -1 where a sample is missing.

        Lazy for lazy input; for an xarray object a DataArray with its sample dims, coords and chunking.
        """
        return self._rows(X, LABELS)

    def predict_proba(self, X: Any) -> Any:
        """The components' responsibilities for each sample: (…, n_components)."""
        return self._rows(X, PROBA)

    def score_samples(self, X: Any) -> Any:
        """The log-density of each sample, natural logarithm, per unit of the features' volume."""
        return self._rows(X, LOG_DENSITY)

    def score(self, X: Any, y: Any = None) -> float:
        """The mean log-density of the samples."""
        return self.scores(X)["score"]

    def bic(self, X: Any) -> float:
        """Bayesian information criterion (Schwarz 1978); lower is better, as in scikit-learn and unlike mclust."""
        return self.scores(X)["bic"]

    def aic(self, X: Any) -> float:
        """Akaike information criterion (Akaike 1974); lower is better."""
        return self.scores(X)["aic"]

    def icl(self, X: Any) -> float:
        """Integrated completed likelihood: BIC of the most probable assignment (Biernacki et al. 2000, eq. 2.10).

        Lower is better; the negative of mclust's.
        """
        return self.scores(X)["icl"]

    def scores(self, X: Any) -> dict[str, float]:
        """Score, BIC, AIC and ICL, and the number of samples they are of, from one pass."""
        check_is_fitted(self)
        outputs = (LOG_DENSITY, LOG_CERTAINTY)
        (log_density, log_certainty), n = totals(
            self._open(X), self._components(), outputs, self.missing, self._encoding()
        )
        found = criteria(log_density, log_certainty, self._n_parameters(), n)
        return {"score": log_density / n, **found, "n_samples": n}

    def to_xarray(self) -> Any:
        """The fitted model as a labelled Dataset: what `save` writes."""
        check_is_fitted(self)
        return models.to_dataset(self)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the model as a Zarr group that xarray opens; read it with `daskgmm.load`.

        Raises
        ------
        FileExistsError
            There is something at the path, and ``overwrite`` is False or daskgmm did not write it.
        """
        models.write(self.to_xarray(), path, overwrite)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "drop"
        return tags

    def _open(self, X: Any, beside: RowAnnotations = NO_ANNOTATIONS, fitting: bool = False) -> Samples:
        """See X as samples, and check its features against those of the fit or, fitting, remember them."""
        known = None if fitting else getattr(self, "feature_names_in_", None)
        for name in ("feature_names_in_", "feature_units_in_") if fitting else ():  # of an earlier fit
            self.__dict__.pop(name, None)
        if isinstance(X, Samples):
            for name, array in beside.named:
                if array is not None:
                    raise ValueError(f"{name} comes beside samples that are open: give it to open_samples")
            samples = X
        elif _is_labelled_or_lazy(X):
            variables = list(known) if known is not None else None
            samples = open_samples(X, variables=variables, **dict(beside.named), missing=self.missing)
        else:
            check_kind(X)
            check_unmasked(X, "the array")
            X = validate_data(self, X, reset=fitting, ensure_all_finite=False, ensure_min_samples=2 if fitting else 1)
            weight = beside.weight
            # Of rows that are left out, weights may be missing: the survey sees both.
            gaps = self.missing == "drop" and weight is not None and np.isnan(np.asarray(weight, float)).any()
            if weight is not None and not gaps:
                beside = beside._replace(weight=_check_sample_weight(weight, X, ensure_non_negative=True))
            return open_samples(X, **dict(beside.named), missing=self.missing)
        if fitting:
            self.n_features_in_ = samples.n_features
            if samples.names is not None:
                self.feature_names_in_ = np.array(samples.names, dtype=object)
            if any(samples.units):
                self.feature_units_in_ = np.array(samples.units, dtype=object)
        elif samples.n_features != self.n_features_in_:
            raise ValueError(
                f"X has {samples.n_features} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        elif known is not None and samples.names is not None and list(known) != list(samples.names):
            raise ValueError(
                f"The feature names should match those that were passed during fit: got {list(samples.names)}, "
                f"fitted on {list(known)}"
            )
        self._compare_units(samples)
        return samples

    def _compare_units(self, samples: Samples) -> None:
        """Say so where features have other units than in the fit; perhaps the same, in other words."""
        of_fit = getattr(self, "feature_units_in_", ())
        for i, (units, others) in enumerate(zip(of_fit, samples.units, strict=False)):
            if units and others and units != others:
                feature = i if samples.names is None else repr(samples.names[i])
                warnings.warn(
                    f"feature {feature} has units {others!r}, but had {units!r} in the fit: convert it if they differ",
                    stacklevel=2,
                )

    def _rows(self, X: Any, output: Output) -> Any:
        check_is_fitted(self)
        samples, encoding = self._open(X), self._encoding()
        result = predict_lazily(samples, self._components(), output, self.missing, encoding)
        if samples.coords is None:
            return result
        from daskgmm.data.xarray import wrap

        attrs = output.attributes(len(self.weights_), result.dtype)
        return wrap(samples, result, output.name, attrs, output.encoding(self.missing, encoding))


def criteria(log_likelihood: float, log_certainty: float, n_parameters: int, n: float) -> dict[str, float]:
    """BIC, AIC and ICL, from sums over n samples: of log densities, and of the logarithms of the largest γ."""
    bic = n_parameters * float(np.log(n)) - 2 * log_likelihood
    return {"bic": bic, "aic": 2 * n_parameters - 2 * log_likelihood, "icl": bic - 2 * log_certainty}


def _is_labelled_or_lazy(X: Any) -> bool:
    """Is it one of the inputs that scikit-learn does not know?"""
    if isinstance(X, str | os.PathLike) or hasattr(X, "__dask_graph__"):
        return True
    modules = (sys.modules.get("zarr"), sys.modules.get("xarray"))
    names = (("Array", "Group"), ("Dataset", "DataArray"))
    return any(
        module is not None and isinstance(X, tuple(getattr(module, name) for name in kinds))
        for module, kinds in zip(modules, names, strict=True)
    )


def _warn_reseeded(info: Info) -> None:
    for k in info.reseeded:
        warnings.warn(
            f"component {k} lost all its samples in pass {info.n_iter} and starts again where the model explains "
            "the data worst: lower n_components if this goes on",
            stacklevel=2,
        )
