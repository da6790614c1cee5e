"""scikit-learn's own tests of its GaussianMixture, run with daskgmm's in its place."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import daskgmm

# Left out, because what the test calls (`quoted`) is no part of scikit-learn's public interface or of ours, or asserts
# a sentence that we word for ourselves: those errors are under test in test_conformance.py and test_bad_input.py.
LEFT_OUT = {
    "test_suffstat_sk_full": "tests the private function `_estimate_gaussian_covariances_full`",
    "test_suffstat_sk_tied": "tests the private function `_estimate_gaussian_covariances_tied`",
    "test_suffstat_sk_diag": "tests the private function `_estimate_gaussian_covariances_diag`",
    "test_gaussian_suffstat_sk_spherical": "tests the private function `_estimate_gaussian_covariances_spherical`",
    "test_compute_log_det_cholesky": "tests the private function `_compute_log_det_cholesky`",
    "test_gaussian_mixture_log_probabilities": "tests the private function `_estimate_log_gaussian_prob`",
    "test_gaussian_mixture_precisions_init_diag": (
        "starts from `_estimate_gaussian_parameters` with the labels of a `KMeans` that is to draw the same numbers"
    ),
    "test_gaussian_mixture_precisions_init": "calls the private method `_initialize`",
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters": (
        "counts the calls of the private function `_estimate_gaussian_parameters`"
    ),
    "test_check_weights": "matches (`escape`) a text that exchanges maximum and minimum; ours has them right",
    "test_gaussian_mixture_fit_convergence_warning": "matches (`warns`) scikit-learn's wording; ours names the passes",
    "test_regularisation": "matches (`escape`) scikit-learn's wording of a collapse; ours names the component",
    "test_gaussian_mixture_array_api_compliance": "array API dispatch (`_array_api_for_tests`): not offered",
    "test_gaussian_mixture_raises_where_array_api_not_implemented": (
        "array API dispatch (`config_context`): not offered"
    ),
}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # the tests themselves say which they expect


def _load() -> ModuleType:
    """A copy of scikit-learn's test module in which GaussianMixture is ours."""
    original = importlib.util.find_spec("sklearn.mixture.tests.test_gaussian_mixture")
    assert original is not None
    assert original.origin is not None
    spec = importlib.util.spec_from_file_location("sklearn_suite", original.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module)["GaussianMixture"] = daskgmm.GaussianMixture
    return module


_TESTS: dict[str, Any] = {name: test for name, test in vars(_load()).items() if name.startswith("test_")}
globals().update({name: test for name, test in _TESTS.items() if name not in LEFT_OUT})


@pytest.fixture
def global_dtype() -> type:
    return np.float64


@pytest.fixture
def global_random_seed() -> int:
    return 42


def test_left_out_is_exact() -> None:
    """Each test left out exists, and calls what its reason quotes; each other one runs, on our estimator."""
    assert LEFT_OUT.keys() <= _TESTS.keys()
    for name, reason in LEFT_OUT.items():
        quoted = set(re.findall("`(.+?)`", reason))
        assert quoted, name
        assert quoted <= set(_TESTS[name].__code__.co_names), name
    for name in _TESTS.keys() - LEFT_OUT.keys():
        assert globals()[name] is _TESTS[name]
        assert _TESTS[name].__globals__["GaussianMixture"] is daskgmm.GaussianMixture
