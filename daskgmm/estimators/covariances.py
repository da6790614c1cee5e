"""What mixtures of components with covariances share."""

from __future__ import annotations

from numbers import Real
from typing import Any

from sklearn.utils._param_validation import Interval, StrOptions

from daskgmm.estimators.mixture import CONSTRAINTS, EMMixture
from daskgmm.families.covariance import MODELS
from daskgmm.families.gaussian import GaussianParameters
from daskgmm.fitting.fit import Fit
from daskgmm.fitting.starts import Start

COVARIANCE_CONSTRAINTS: dict[str, list[Any]] = {
    **CONSTRAINTS,
    "covariance_type": [StrOptions(set(MODELS))],
    "reg_covar": [Interval(Real, 0.0, None, closed="left")],
}


class CovarianceMixture(EMMixture):
    """A mixture whose components have means and covariances, of one of the models."""

    covariance_type: str
    reg_covar: float

    def _warm_start(self, k: int, d: int) -> Start:
        """The last fit's solution, to go on from."""
        model = self._family().model
        shapes = self.means_.shape, self.covariances_.shape
        if shapes != ((k, d), model.shape(k, d)) or not model.holds(self.covariances_, k, d):
            raise ValueError(
                f"the last fit's means {shapes[0]} and covariances {shapes[1]} are not of {k} components in {d} "
                f"features with covariance_type={self.covariance_type!r}: set warm_start=False to start anew"
            )
        return Start(complete=self._parameters(), previous_bound=self.lower_bound_)

    def _set_parameters(self, fit: Fit) -> None:
        compact, parameters = self._family().model.compact, fit.parameters
        self.weights_ = parameters.weights
        self.means_ = parameters.means
        self.covariances_ = compact(parameters.covariances)
        self.precisions_cholesky_ = compact(parameters.factors)
        self.precisions_ = compact(self._family().precisions(parameters.factors))

    def _after_load(self) -> None:
        family, parameters = self._family(), self._parameters()
        if not family.consistent(parameters.covariances, parameters.factors):
            raise ValueError("covariances are not positive definite, or precisions_cholesky is not of their inverses")
        self.precisions_ = family.model.compact(family.precisions(parameters.factors))

    def _state_dims(self) -> dict[str, tuple[str, ...]]:
        dims = self._family().model.dims
        return {"means": ("component", "feature"), "covariances": dims, "precisions_cholesky": dims}

    def _parameters(self) -> GaussianParameters:
        """The fitted parameters, about the origin."""
        expand, (k, d) = self._family().model.expand, self.means_.shape
        return GaussianParameters(
            self.weights_,
            self.means_,
            expand(self.covariances_, k, d),
            expand(self.precisions_cholesky_, k, d),
        )
