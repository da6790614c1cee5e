"""The covariance models against those of the R package mclust, whose values tests/reference/mclust.R writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from daskgmm import GaussianMixture
from daskgmm.families.covariance import MODELS

Array = npt.NDArray[np.float64]

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "mclust.json").read_text())
DATA_SETS = ["faithful", "trees", "iris", "quakes"]
CODES = list(REFERENCE["iris"]["models"])
# Its VVE turns the axes by the criterion of EVE, so that its M-step is not a maximum, and EM ends lower than it could.
EXACT = [code for code in CODES if code != "VVE"]


def _groups(name: str) -> tuple[Array, Array, Array, Array]:
    """Rows; counts (k,), means and covariances of the groups of the reference's partition."""
    data = REFERENCE[name]
    x, which = np.array(data["rows"]), np.array(data["partition"])
    groups = [x[which == k] for k in range(which.max() + 1)]
    scatter = np.array([np.cov(group.T, bias=True) for group in groups])
    return x, np.array([float(len(group)) for group in groups]), np.array([g.mean(axis=0) for g in groups]), scatter


def _m_step(code: str, counts: Array, scatter: Array) -> Array:
    """Whole covariances of the model."""
    model = MODELS[code]
    seen = np.einsum("kii->ki", scatter).copy() if model.diagonal else scatter
    return model.compact(model.estimate(counts, seen))


def _theirs(name: str, code: str) -> Array:
    found = np.array(REFERENCE[name]["models"][code]["covariances"])
    d = len(REFERENCE[name]["rows"][0])
    return found.reshape(-1, d, d)


def _farthest(found: Array, expected: Array) -> float:
    """The largest difference, beside the largest value of its component."""
    return float((np.abs(found - expected).max(axis=(1, 2)) / np.abs(expected).max(axis=(1, 2))).max())


def _misfit(counts: Array, scatter: Array, covariances: Array) -> float:
    """−2 log-likelihood a row, but for a constant."""
    traces = np.einsum("kii->k", np.linalg.solve(covariances, scatter))
    return float(counts @ (np.linalg.slogdet(covariances)[1] + traces) / counts.sum())


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("code", EXACT)
def test_one_m_step(code: str, name: str) -> None:
    """EVE's is iterative there, too, and ends when the likelihood changes little."""
    _, counts, _, scatter = _groups(name)
    assert _farthest(_m_step(code, counts, scatter), _theirs(name, code)) < (1e-5 if code == "EVE" else 1e-6)


@pytest.mark.parametrize("name", DATA_SETS)
def test_one_m_step_of_vve(name: str) -> None:
    """Along the axes of EVE, covariances are those of mclust; along its own, they are likelier."""
    _, counts, _, scatter = _groups(name)
    axes = np.linalg.eigh(_m_step("EVE", counts, scatter)[0])[1]
    variances = np.einsum("ij,kij->kj", axes, scatter @ axes)
    theirs = _theirs(name, "VVE")
    assert _farthest((axes * variances[:, None, :]) @ axes.T, theirs) < 1e-5
    ours = _m_step("VVE", counts, scatter)
    assert _misfit(counts, scatter, ours) < _misfit(counts, scatter, theirs) - 1e-6


def _fit(name: str, code: str) -> tuple[GaussianMixture, Array]:
    x, counts, means, scatter = _groups(name)
    settings: dict[str, Any] = {  # textbook EM, as longer steps may end in another optimum
        "reg_covar": 0,
        "accelerate": False,
        "tol": 1e-11,
        "max_iter": 3000,
        "weights_init": counts / len(x),
        "means_init": means,
        "precisions_init": np.linalg.inv(_m_step(code, counts, scatter)),
    }
    return GaussianMixture(len(counts), covariance_type=code, **settings).fit(x), x


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("code", EXACT)
def test_em(code: str, name: str) -> None:
    """EM from the same partition ends in the same optimum; BIC and ICL are theirs, less being better here."""
    theirs = REFERENCE[name]["models"][code]
    gm, x = _fit(name, code)
    n = len(x)
    assert gm.score(x) * n == pytest.approx(theirs["log_likelihood"], abs=1e-6 * n)
    assert gm._n_parameters() == theirs["df"]
    assert gm.bic(x) == pytest.approx(-theirs["bic"], abs=2e-6 * n)
    assert gm.icl(x) == pytest.approx(-theirs["icl"], abs=1e-5 * n)  # which is not greatest there


@pytest.mark.parametrize("name", DATA_SETS)
def test_em_of_vve(name: str) -> None:
    theirs = REFERENCE[name]["models"]["VVE"]
    gm, x = _fit(name, "VVE")
    assert gm._n_parameters() == theirs["df"]
    assert theirs["log_likelihood"] < gm.score(x) * len(x) < theirs["log_likelihood"] + 0.01 * len(x)
