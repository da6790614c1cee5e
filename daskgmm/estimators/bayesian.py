"""Variational Bayesian Gaussian mixtures, with scikit-learn's interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.utils._param_validation import Interval, StrOptions

from daskgmm.em.info import Info
from daskgmm.estimators.covariances import COVARIANCE_CONSTRAINTS, CovarianceMixture
from daskgmm.families.covariance import MODELS
from daskgmm.families.variational import VariationalGaussian, VariationalParameters, VariationalPrior
from daskgmm.fitting.fit import Fit
from daskgmm.fitting.starts import Start

_PROCESS, _DISTRIBUTION = "dirichlet_process", "dirichlet_distribution"
_POSITIVE = [None, Interval(Real, 0.0, None, closed="neither")]


class BayesianGaussianMixture(CovarianceMixture):
    """Variational Bayesian Gaussian mixture, on data of any size: superfluous components end without rows.

    The interface is that of :class:`sklearn.mixture.BayesianGaussianMixture`, and so are the priors and each step: with
    ``accelerate=False, subsample=None`` and the same start, iterates are equal to rounding. What the fit climbs is a
    bound below the logarithm of the evidence (Bishop 2006, Pattern Recognition and Machine Learning, eq. 10.70).

    Parameters
    ----------
    n_components : int, default=1
        The most components; how many have rows, the data and the concentration decide.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"
        Or, by mclust's codes, VVV, EEE, VVI, VII, EEI and EII.
    tol : float, default=1e-5
        EM stops when the bound per sample changes by less. scikit-learn's tol is of all samples together: components
        empty slowly.
    reg_covar : float, default=1e-6
        Added to the diagonal of the covariances that a component observes, in the squared units of the data.
    max_iter, n_init, init_params
        As of :class:`daskgmm.GaussianMixture`.
    weight_concentration_prior_type : {"dirichlet_process", "dirichlet_distribution"}, default="dirichlet_process"
    weight_concentration_prior : float, default=None
        The smaller, the fewer components have rows; None: 1 / n_components.
    mean_precision_prior : float, default=None
        Rows that the prior mean is worth; None: 1.
    mean_prior : array-like (n_features,), default=None
        None: the mean of the rows; of the fit's sample, where it has one.
    degrees_of_freedom_prior : float, default=None
        None: n_features.
    covariance_prior : float or array-like, default=None
        (n_features, n_features) for "full" and "tied", (n_features,) for "diag", a float for "spherical"; None: the
        covariance of the rows; of the fit's sample, where it has one.
    random_state, warm_start, verbose, verbose_interval, accelerate, subsample, missing, persist, checkpoint, callbacks
        As of :class:`daskgmm.GaussianMixture`.

    Attributes
    ----------
    weights_ : ndarray (n_components,)
    means_ : ndarray (n_components, n_features)
    covariances_, precisions_, precisions_cholesky_ : ndarray
        Of the expected precisions, in scikit-learn's shapes.
    n_components_effective_ : int
        Components that are expected to hold at least one row.
    weight_concentration_ : ndarray (n_components,), or tuple of two for a process
    mean_precision_ : ndarray (n_components,)
    degrees_of_freedom_ : ndarray (n_components,), or float for "tied"
    weight_concentration_prior_, mean_precision_prior_, mean_prior_, degrees_of_freedom_prior_, covariance_prior_
        The prior that was used.
    lower_bound_ : float
        The bound per sample, before the last step; all constants are in it.
    converged_, n_iter_, lower_bounds_, n_passes_, n_samples_, history_, n_features_in_,
    feature_names_in_, feature_units_in_
        As of :class:`daskgmm.GaussianMixture`.
    """

    _parameter_constraints = {  # noqa: RUF012
        **{name: c for name, c in COVARIANCE_CONSTRAINTS.items() if name not in ("weights_init", "means_init")},
        "weight_concentration_prior_type": [StrOptions({_PROCESS, _DISTRIBUTION})],
        "weight_concentration_prior": _POSITIVE,
        "mean_precision_prior": _POSITIVE,
        "mean_prior": [None, "array-like"],
        "degrees_of_freedom_prior": _POSITIVE,
        "covariance_prior": [None, "array-like", Interval(Real, 0.0, None, closed="neither")],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-5,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weight_concentration_prior_type: str = _PROCESS,
        weight_concentration_prior: float | None = None,
        mean_precision_prior: float | None = None,
        mean_prior: npt.ArrayLike | None = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: npt.ArrayLike | None = None,
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
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
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

    @property
    def _process(self) -> bool:
        return self.weight_concentration_prior_type == _PROCESS

    @property
    def _dof_dims(self) -> tuple[str, ...]:
        """One for each component, unless users know one covariance for all."""
        return tuple(dim for dim in MODELS[self.covariance_type].dims if dim == "component")

    def _family(self) -> VariationalGaussian:
        prior = VariationalPrior(
            self.weight_concentration_prior,
            self._process,
            self.mean_precision_prior,
            self.mean_prior,
            self.degrees_of_freedom_prior,
            self.covariance_prior,
        )
        return VariationalGaussian(MODELS[self.covariance_type], self.reg_covar, prior)

    def _start_from_params(self, k: int, d: int) -> Start:
        return Start()

    def _set_parameters(self, fit: Fit) -> None:
        super()._set_parameters(fit)
        family: Any = fit.family
        found, prior = fit.parameters, family.prior
        self.weight_concentration_ = tuple(found.concentrations) if self._process else found.concentrations
        self.mean_precision_ = found.mean_precisions
        self.degrees_of_freedom_ = found.dofs if self._dof_dims else found.dofs[0]
        self.n_components_effective_ = family.n_effective(found)
        self.weight_concentration_prior_ = prior.weight_concentration
        self.mean_precision_prior_ = prior.mean_precision
        self.mean_prior_ = prior.mean
        self.degrees_of_freedom_prior_ = prior.dof
        self.covariance_prior_ = prior.covariance

    def _parameters(self) -> VariationalParameters:
        known = super()._parameters()
        dofs = np.broadcast_to(self.degrees_of_freedom_, known.weights.shape)
        return VariationalParameters(
            known.weights,
            known.means,
            known.covariances,
            known.factors,
            np.asarray(self.weight_concentration_),
            self.mean_precision_,
            dofs,
        )

    def _after_load(self) -> None:
        super()._after_load()
        scale = np.asarray(self.covariance_prior_)
        for value in (
            *(self.weight_concentration_, self.mean_precision_, self.weight_concentration_prior_),
            *(self.mean_precision_prior_, np.linalg.eigvalsh(scale) if scale.ndim == 2 else scale),
        ):
            if np.min(value) <= 0:
                raise ValueError("a parameter of the posterior or of the prior is not positive")
        dofs = np.minimum(self.degrees_of_freedom_, self.degrees_of_freedom_prior_)
        if np.min(dofs) <= self.n_features_in_ - 1:
            raise ValueError("there are not more degrees of freedom than features but one")
        if not 0 <= self.n_components_effective_ <= len(self.weights_):
            raise ValueError(f"{self.n_components_effective_} of {len(self.weights_)} components are effective")
        if self._process:
            self.weight_concentration_ = tuple(self.weight_concentration_)

    def _state_dims(self) -> dict[str, tuple[str, ...]]:
        model = MODELS[self.covariance_type]
        whole = (model.code[1] != "I") + (not model.diagonal)  # dims of the prior's covariance
        return {
            **super()._state_dims(),
            "weight_concentration": ("stick", "component") if self._process else ("component",),
            "mean_precision": ("component",),
            "degrees_of_freedom": self._dof_dims,
            "n_components_effective": (),
            "weight_concentration_prior": (),
            "mean_precision_prior": (),
            "mean_prior": ("feature",),
            "degrees_of_freedom_prior": (),
            "covariance_prior": ("feature", "feature_")[:whole],
        }

    def _kind(self) -> str:
        return "Bayesian Gaussian"

    def _objective(self) -> str:
        return "bound below the log-evidence"
