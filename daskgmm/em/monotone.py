"""What no step of EM does: lower the likelihood, by more than its M-step and rounding may cost.

Only steps in double precision are judged, from parameters that such a step made: others, of a start say, need not be of
the model, and what single precision makes of frequencies sums up to one only nearly.
"""

from __future__ import annotations

import numpy as np

from daskgmm.families.base import Components
from daskgmm.families.frame import Array, lost

_EPS = float(np.finfo(np.float64).eps)
_DIGITS = 100  # roundings of the terms of a log density, and of their sums


def rounding(components: Components, counts: Array, bound: float) -> float:
    """How far rounding may move the bound of a pass in double precision, per sample.

    Parameters
    ----------
    components : Components
        Those of the pass.
    counts : ndarray of shape (k,)
        Rows that each has.
    bound : float
    """
    terms = float(counts @ components.rounding_scale) / counts.sum()
    return _EPS * (_DIGITS * max(1.0, abs(bound)) + terms)


def fallen(
    before: float, after: float, n_iter: int, components: Components, counts: Array, weights: Array
) -> ValueError:
    """The error of a bound that fell: it names the component that is most likely at fault.

    That is the narrowest, relative to its distance from the origin, where rounding of its mean may cost as much. Else
    sums are not those of the rows, and the component is the one whose share of these has changed most, as χ² counts.
    """
    cost = lost(components.centre_distance_in_sd)
    shares = counts / counts.sum()
    if cost.max() >= before - after:
        k, cause = int(cost.argmax()), "is too narrow for where it is"
        remedy = "raise reg_covar, set prior='default' or lower n_components"
    else:
        k = int(((shares - weights) ** 2 / np.maximum(weights, _EPS)).argmax())
        cause = f"went from {weights[k]:.2%} to {shares[k]:.2%} of the rows, as the data or their sums changed"
        remedy = "see that nothing writes to the data, and fit again"
    return ValueError(
        f"the lower bound fell from {before:.10g} to {after:.10g} in pass {n_iter}, which no step of EM does: "
        f"component {k} {cause}: {remedy}"
    )
