"""Gaussian mixtures, with scikit-learn's interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Literal

import numpy as np
import numpy.typing as npt
from sklearn.utils._param_validation import StrOptions

from daskgmm.em.info import Info
from daskgmm.estimators.covariances import COVARIANCE_CONSTRAINTS, CovarianceMixture
from daskgmm.families.covariance import MODELS
from daskgmm.families.gaussian import Gaussian, GaussianParameters
from daskgmm.families.prior import Prior
from daskgmm.fitting.starts import Start, given, shaped


class GaussianMixture(CovarianceMixture):
    """Gaussian mixture by EM, on data of any size.

    The interface is that of :class:`sklearn.mixture.GaussianMixture`. Rows never leave where they are: each
    pass maps over the blocks of the data and brings back only sums, on the active Dask client's workers
    or, without one, on the threads of this process.

    Parameters
    ----------
    n_components : int, default=1
        The number of mixture components.
    covariance_type : str, default="full"
        scikit-learn's "full", "tied", "diag" and "spherical" (each component its own matrix, all one matrix, own
        variances, or one variance a component), or a model of Celeux & Govaert 1995 by mclust's code. Its letters say
        what volume, shape and orientation are: E equal for all components, V varying, I the identity.

        ======= ======= =============== ========== ==========
        volume  shape   axes: features' equal      varying
        ======= ======= =============== ========== ==========
        equal   spheres EII
        varying spheres VII (spherical)
        equal   equal   EEI             EEE (tied) EEV
        varying equal   VEI             VEE        VEV
        equal   varying EVI             EVE        EVV
        varying varying VVI (diag)      VVE        VVV (full)
        ======= ======= =============== ========== ==========
    tol : float, default=1e-3
        EM stops when the log-likelihood per sample changes by less.
    reg_covar : float, default=1e-6
        Added to the diagonal of the covariances, in the squared units of the data, before they are made equal in
        volume, shape or orientation.
    prior : None, "default" or Prior, default=None
        Of weights, means and covariances, so that the fit maximizes the posterior density, and no component collapses
        unless a feature is constant: :class:`daskgmm.Prior`, or "default" for ``Prior()``, which is mclust's.
    max_iter : int, default=100
        The most EM steps of one start; each is one pass over the data.
    n_init : int, default=1
        Starts; the best is kept. They share passes. At least four where all rows are in hand (see ``subsample``), and
        one with labels.
    init_params : {"kmeans", "k-means++", "random", "random_from_data"}, default="kmeans"
        How a start is found.
    weights_init, means_init, precisions_init : array-like, default=None
        A start, as a whole or in part: (n_components,), (n_components, n_features), and in the shape of
        ``precisions_``. A complete one is taken straight to the data. Components keep the order that is given.
    random_state : int, RandomState instance or None, default=None
    warm_start : bool, default=False
        Go on from the last fit's solution.
    verbose : int, default=0
        Show progress.
    verbose_interval : int, default=10
        Passes between two updates of what ``verbose=1`` shows; ``verbose=2`` shows each.
    accelerate : bool, default=True
        Extrapolate from EM's last steps (Anderson mixing). What lowers the likelihood is dropped and EM's own step
        taken, which costs a pass; False: textbook EM.
    subsample : int or None, default=100_000
        Rows of a uniform random sample. EM runs on it first, from all starts, if the data have more rows, and
        the best is improved by moves: a component split in two, two others merged to one. The same is done with all
        rows where these are fewer, but 20 a parameter or 1,000 a component, or there is a prior, for three components
        or more, from four starts at least. None: start on all data.
    missing : {"raise", "drop", "fill"}, default="raise"
        What to do with rows that hold a NaN or an infinity: refuse them, naming the first; or leave them out of the
        fit and label them -1 (NaN where the result is a float). "fill" refuses them too, but reads chunks that
        a Zarr store lacks as its fill value.
    persist : bool or "auto", default="auto"
        Keep the decoded rows in the workers' memory (of this process without a client), so that a store is read once:
        "auto": where they fit there; False: read it in each pass.
    checkpoint : str, path-like or None, default=None
        A directory, or fsspec URL, where the state of the fit is kept after each pass, at most once a second. The same
        call again goes on from there, also after a kill, and ends with the same bits; a finished one returns at once.
        ``tol`` and ``max_iter`` may differ; other data or parameters are refused. Nothing in it is run when it is read.
    callbacks : sequence of callable, default=()
        Each is called after each pass with a `daskgmm.Info`.

    Attributes
    ----------
    weights_ : ndarray (n_components,)
    means_ : ndarray (n_components, n_features)
    covariances_, precisions_, precisions_cholesky_ : ndarray
        (n_components, n_features, n_features) for "full" and every code, (n_features, n_features) for "tied",
        (n_components, n_features) for "diag", (n_components,) for "spherical".
    converged_ : bool
    n_iter_ : int
        EM steps of the best start.
    lower_bound_ : float
        Log-likelihood per sample before the last step; with a prior, its logarithm over n_samples_ is added.
    lower_bounds_ : list of float
        The same, of all steps.
    n_passes_ : int
        Times that all of the data were read: survey, start and EM.
    n_samples_ : int
        Rows that were fitted.
    history_ : tuple of Info
        One a pass, those over the sample first.
    n_features_in_ : int
    feature_names_in_ : ndarray (n_features,)
        Where the features have names: columns, or variables of a Dataset.
    feature_units_in_ : ndarray (n_features,)
        Where they say so, by CF's attribute ``units``. Data in others are warned of.

    Notes
    -----
    Nothing ends as a model that is not one. What happens instead:

    - A component that loses all its rows starts again on the row that the others explain worst, with a warning; after
      three times ``n_components`` of these, the fit ends with an error.
    - Where a covariance is singular and ``reg_covar`` does not mend it, that start ends, and the others go on. If none
      is left, the error names the component, how many rows it has, and what to do.
    - Fewer distinct rows than components, or a constant feature: an error if ``reg_covar`` is 0 and there is no prior,
      else a warning. ``precisions_init`` that are not positive definite are refused.
    - The likelihood may fall by what ``reg_covar`` and rounding cost, which is computed in each step. If an EM step
      lowers it by more, sums or data are wrong, and the fit ends with an error that names the pass and the component.
    """

    _parameter_constraints = {  # noqa: RUF012
        **COVARIANCE_CONSTRAINTS,
        "prior": [Prior, StrOptions({"default"}), None],
        "precisions_init": ["array-like", None],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        prior: Prior | str | None = None,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: npt.ArrayLike | None = None,
        means_init: npt.ArrayLike | None = None,
        precisions_init: npt.ArrayLike | None = None,
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
        self.prior = prior
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
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

    def _start_from_params(self, k: int, d: int) -> Start:
        """The start that the user gives.

        Raises
        ------
        ValueError
            A shape is wrong, the weights do not sum to one, or a precision is not positive definite.
        """
        known = given(k, d, self.weights_init, self.means_init)
        if self.precisions_init is not None:
            family, model = self._family(), self._family().model
            name = f"{model.name} precision"
            precisions = shaped(name, self.precisions_init, model.shape(k, d))
            symmetric = model.diagonal or np.allclose(precisions, np.swapaxes(precisions, -1, -2))
            try:
                known["covariances"], known["factors"] = family.from_precisions(model.expand(precisions, k, d))
            except np.linalg.LinAlgError:
                symmetric = False
            if not symmetric:
                kind = "positive" if model.diagonal else "symmetric, positive-definite"
                raise ValueError(f"'{name}' should be {kind}, as no component has another: correct precisions_init")
            if not model.holds(precisions, k, d):
                raise ValueError(
                    f"'{name}' should be {model.form}, as the model has no others: give such ones, or choose a freer "
                    "covariance_type"
                )
        return Start(known, GaussianParameters(**known) if len(known) == len(fields(GaussianParameters)) else None)

    def _objective(self) -> str:
        return "log-likelihood" if self.prior is None else "log-posterior"

    def _family(self) -> Gaussian:
        prior = Prior() if isinstance(self.prior, str) else self.prior
        return Gaussian(MODELS[self.covariance_type], self.reg_covar, prior)
