"""A search over numbers of components and covariance models, with scikit-learn's interface."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from daskgmm.data.blocks import Samples
from daskgmm.em.info import Info
from daskgmm.estimators.base import BaseMixture, criteria
from daskgmm.estimators.gaussian import GaussianMixture
from daskgmm.estimators.tables import History, summary
from daskgmm.families.base import Components
from daskgmm.families.covariance import MODELS
from daskgmm.families.encoding import FeatureEncoding
from daskgmm.families.prior import Prior
from daskgmm.fitting.fit import Fit, fit_mixtures

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

_OWN = ("n_components", "covariance_type", "criterion")


class GaussianMixtureIC(BaseMixture):
    """The Gaussian mixture with the best information criterion, over numbers of components and covariance models.

    Each candidate is fitted as :class:`daskgmm.GaussianMixture` fits it alone, with the same ``random_state``, but all
    of them in the same passes over the data: a search reads no more than its longest fit does. Candidates that have
    converged drop out of later passes. One that cannot be fitted, as a component collapses, is reported in
    ``results_``, and the others go on.

    Parameters
    ----------
    n_components : int or iterable of int, default=(1, 2, …, 10)
    covariance_type : str or sequence of str, default=("full", "tied", "diag", "spherical")
        As of :class:`daskgmm.GaussianMixture`.
    criterion : {"bic", "aic", "icl"}, default="bic"
        Lower is better, as in scikit-learn; mclust's BIC and ICL are the negatives of these.
    tol : float, default=1e-5
        EM stops when the log-likelihood per sample changes by less. For that alone criteria may differ by
        ``2 n_samples tol``, so it is lower than for a single fit.
    reg_covar, prior, max_iter, n_init, init_params, random_state, verbose, verbose_interval
        As of :class:`daskgmm.GaussianMixture`, for each candidate. Criteria are of the likelihood at the estimates, as
        Fraley & Raftery 2007 take them.
    accelerate, subsample, missing
        The same.
    persist, checkpoint, callbacks
        The same, for all together.

    Attributes
    ----------
    best_estimator_ : GaussianMixture
        The fitted candidate of the lowest criterion, which predicts, scores, samples and is saved.
    best_params_ : dict
        Its ``n_components`` and ``covariance_type``.
    best_score_ : float
        Its criterion.
    results_ : xarray.Dataset
        Of each covariance_type and n_components: ``bic``, ``aic``, ``icl``, ``log_likelihood`` (of all rows, in nats,
        before the last step, as ``lower_bound_`` is), ``n_parameters``, ``n_iter``, ``converged``, and ``failure``, the
        error of a candidate that could not be fitted, whose numbers are NaN.
    n_passes_ : int
        Times that all of the data were read.
    n_samples_ : int
    history_ : tuple of Info
        One a pass over all of the data.
    n_features_in_ : int
    feature_names_in_ : ndarray (n_features,)
    """

    _parameter_constraints = {  # noqa: RUF012
        **{
            name: constraint
            for name, constraint in GaussianMixture._parameter_constraints.items()
            if name not in ("weights_init", "means_init", "precisions_init", "warm_start")
        },
        "n_components": [Interval(Integral, 1, None, closed="left"), "array-like", Iterable],
        "covariance_type": [StrOptions(set(MODELS)), "array-like"],
        "criterion": [StrOptions({"bic", "aic", "icl"})],
    }

    def __init__(
        self,
        n_components: int | Iterable[int] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
        *,
        covariance_type: str | Sequence[str] = ("full", "tied", "diag", "spherical"),
        criterion: str = "bic",
        tol: float = 1e-5,
        reg_covar: float = 1e-6,
        prior: Prior | str | None = None,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        random_state: int | np.random.RandomState | None = None,
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
        self.covariance_type = covariance_type
        self.criterion = criterion
        self.tol = tol
        self.reg_covar = reg_covar
        self.prior = prior
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.random_state = random_state
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.accelerate = accelerate
        self.subsample = subsample
        self.missing = missing
        self.persist = persist
        self.checkpoint = checkpoint
        self.callbacks = callbacks

    def _fit(self, samples: Samples, watch: Callable[[Info], None]) -> None:
        if samples.source.labels is not None:
            raise ValueError(
                "labels are numbers of components, of which each candidate has its own: fit one mixture with them"
            )
        names, ks = self._grid()
        shared = {name: value for name, value in self.get_params(deep=False).items() if name not in _OWN}
        estimators = [GaussianMixture(k, covariance_type=name, **shared) for name, k in product(names, ks)]
        candidates = [estimator._candidate(samples) for estimator in estimators]
        rng = check_random_state(self.random_state)
        journal = self._journal(samples, rng, {"covariance_type": names, "n_components": ks})
        fits = fit_mixtures(samples, candidates, rng, watch, journal)
        results = _results(names, ks, estimators, fits)
        scores = results[self.criterion].values.ravel()
        if np.isnan(scores).all():
            raise next(fit for fit in fits if isinstance(fit, ValueError))
        best = int(np.nanargmin(scores))
        fit, estimator = fits[best], estimators[best]
        assert isinstance(fit, Fit)
        if not fit.state.converged:
            warnings.warn(
                f"the best candidate, {estimator.covariance_type} with n_components={estimator.n_components}, did not "
                f"converge in {fit.state.n_iter} passes: raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=4,
            )
        estimator._set(fit)
        for name in ("n_features_in_", "feature_names_in_", "feature_units_in_"):
            if hasattr(self, name):
                setattr(estimator, name, getattr(self, name))
        self.best_estimator_ = estimator
        self.best_params_ = {name: getattr(estimator, name) for name in ("n_components", "covariance_type")}
        self.best_score_ = float(scores[best])
        self.results_ = results.assign_attrs(criterion=self.criterion, n_samples=fit.survey.n)
        self.n_passes_ = fit.n_passes
        self.n_samples_ = fit.survey.n
        self.history_ = History(info for info in fit.history if info.stage == "data")

    def sample(self, n_samples: int = 1) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
        """Draw samples from the best mixture: rows (n_samples, n_features), and the component of each."""
        check_is_fitted(self)
        return self.best_estimator_.sample(n_samples)

    def to_xarray(self) -> xr.Dataset:
        """The best mixture as a labelled Dataset, which `daskgmm.load` reads; as ``candidate_…`` also `results_`."""
        check_is_fitted(self)
        candidates = self.results_.rename({name: f"candidate_{name}" for name in self.results_.data_vars})
        # Strings of any length, as all others in the file are.
        texts = {
            name: variable.astype(object)
            for name, variable in candidates.variables.items()
            if variable.dtype.kind == "U"
        }
        return self.best_estimator_.to_xarray().merge(candidates.assign(texts)).assign_attrs(criterion=self.criterion)

    def plot(self) -> Figure:
        """The criterion over the number of components, for each covariance model."""
        from daskgmm.plotting import plot_selection

        check_is_fitted(self)
        return plot_selection(self.results_)

    def _summary(self) -> str:
        table = self.results_[self.criterion].transpose("n_components", "covariance_type").to_pandas()
        best = ", ".join(f"{name} {value}" for name, value in self.best_params_.items())
        return summary(
            f"{self.criterion.upper()} of {table.size} candidates from {self.n_passes_} passes over "
            f"{self.n_samples_:,} rows; the best is {best} with {self.best_score_:,.6g} (lower is better)",
            table,
        )

    def _grid(self) -> tuple[list[Any], list[Any]]:
        """Covariance models and numbers of components, each once and in their order."""
        given: tuple[Any, Any] = self.covariance_type, self.n_components
        names, ks = (list(dict.fromkeys([value] if isinstance(value, str | Integral) else value)) for value in given)
        if not names or not ks:
            empty = "n_components" if names else "covariance_type"
            raise ValueError(f"{empty} is empty, so there is no candidate: give one at least")
        for value in (value for value in names if value not in MODELS):
            raise ValueError(f"covariance_type {value!r} is not known: give some of {', '.join(MODELS)}")
        for value in (value for value in ks if not isinstance(value, Integral) or value < 1):
            raise ValueError(f"n_components {value!r} is not a number of components: give integers from 1 on")
        return names, ks

    def _encoding(self) -> FeatureEncoding:
        return self.best_estimator_._encoding()

    def _components(self) -> Components:
        return self.best_estimator_._components()

    def _n_parameters(self) -> int:
        return self.best_estimator_._n_parameters()


def _results(
    names: Sequence[str], ks: Sequence[int], estimators: Sequence[GaussianMixture], fits: Sequence[Fit | ValueError]
) -> xr.Dataset:
    import xarray as xr

    rows = [_row(estimator, fit) for estimator, fit in zip(estimators, fits, strict=True)]
    shape = len(names), len(ks)
    dims = "covariance_type", "n_components"
    return xr.Dataset(
        {name: (dims, np.array([row[name] for row in rows]).reshape(shape)) for name in rows[0]},
        coords={"covariance_type": np.array(names), "n_components": np.array(ks)},
    )


def _row(estimator: GaussianMixture, fit: Fit | ValueError) -> dict[str, Any]:
    """What `results_` says of a candidate."""
    if isinstance(fit, ValueError):
        nothing = dict.fromkeys(("bic", "aic", "icl", "log_likelihood", "n_parameters"), np.nan)
        return {**nothing, "n_iter": 0, "converged": False, "failure": str(fit)}
    weight, state = fit.survey.weight, fit.state
    n_parameters = estimator._family().n_parameters(*fit.parameters.means.shape)
    return {
        **criteria(weight * state.bounds.log_likelihood, weight * state.bounds.log_certainty, n_parameters, weight),
        "log_likelihood": weight * state.bounds.log_likelihood,
        "n_parameters": n_parameters,
        "n_iter": state.n_iter,
        "converged": state.converged,
        "failure": "",
    }
