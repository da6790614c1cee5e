"""What the pass of a report finds is what NumPy finds on all rows, however they are stored."""

from __future__ import annotations

import itertools
from dataclasses import fields

import numpy as np
import pytest
import xarray as xr
import zarr

from daskgmm import BernoulliMixture, GaussianMixture, open_samples
from daskgmm.reporting.grid import BINS, NO_GRID, grid_of, quantile, telling_pairs
from daskgmm.reporting.seen import UNCERTAINTIES, WORST, Worst, place, see

SHAPE = 30, 41
CHUNKS = [(30, 41), (7, 11), (1, 41), (13, 5)]


@pytest.fixture(scope="module")
def field():
    """Rows (30, 41, 3) of three components that overlap; some missing, two equal and far off."""
    rng = np.random.default_rng(3)
    centres = np.array([[0.0, 0.0, 0.0], [3.0, 1.0, 0.0], [0.0, 4.0, 1.0]])
    x = centres[rng.integers(3, size=SHAPE)] + rng.standard_normal((*SHAPE, 3))
    x[5, 6, 1] = np.nan
    x[20, 3] = x[4, 5] = [60.0, 0, 0]
    return x


@pytest.fixture(scope="module")
def gm(field):
    return GaussianMixture(3, random_state=0, missing="drop").fit(field[:20, 7:].reshape(-1, 3))


def seen(gm, data, grid, **names):
    samples = open_samples(data, missing="drop", **names)
    return see(samples, gm._components(), grid, "drop", gm._encoding()), samples


def grid(gm):
    return grid_of(gm.weights_, gm.means_, gm.covariances_)


@pytest.mark.parametrize("chunks", CHUNKS)
def test_it_is_what_numpy_finds_on_all_rows_for_any_chunking(gm, field, chunks, tmp_path):
    zarr.create_array(tmp_path / "x.zarr", data=field, chunks=(*chunks, 3))
    bins = grid(gm)
    found, samples = seen(gm, tmp_path / "x.zarr", bins)
    rows = field.reshape(-1, 3)
    log_density = gm.score_samples(rows)
    there = np.isfinite(log_density)
    assert (found.n, found.n_missing) == (len(rows) - 1, 1)
    assert found.log_density == pytest.approx(log_density[there].sum(), rel=1e-12)
    for feature, edges, counts in zip(bins.features, bins.edges, found.marginals, strict=True):
        np.testing.assert_array_equal(counts, np.histogram(rows[there, feature], edges)[0])
    for (i, j), counts in zip(bins.pairs, found.joints, strict=True):
        columns = rows[there][:, [bins.features[i], bins.features[j]]].T
        np.testing.assert_array_equal(counts, np.histogram2d(*columns, bins.edges[[i, j]])[0])
    labels, doubt = gm.predict(rows)[there], 1 - gm.predict_proba(rows)[there].max(axis=1)
    for k in range(3):
        counts = np.histogram(doubt[labels == k], UNCERTAINTIES)[0]
        np.testing.assert_array_equal(found.uncertainty[k], counts)
        assert found.doubt[k] == pytest.approx(doubt[labels == k].sum(), rel=1e-9)
    np.testing.assert_array_equal(found.counts, np.bincount(labels))
    order = np.argsort(np.where(there, log_density, np.inf), kind="stable")[:WORST]  # equal ones as they stand
    np.testing.assert_array_equal(found.worst.index, order)
    np.testing.assert_array_equal(found.worst.log_density, log_density[order])
    np.testing.assert_array_equal(found.worst.x, rows[order])
    assert found.worst.index[:2].tolist() == [4 * 41 + 5, 20 * 41 + 3]
    assert place(samples, found.worst.index[0]) == "row (4, 5)"


def test_places_have_the_names_of_dims_and_any_container_gives_the_same(gm, field):
    ds = xr.Dataset({name: (("lat", "lon"), field[..., i]) for i, name in enumerate("abc")})
    bins = grid(gm)
    (of_all, _), (lazy, samples) = seen(gm, field.reshape(-1, 3), bins), seen(gm, ds.chunk(lat=4, lon=9), bins)
    assert place(samples, lazy.worst.index[0]) == "lat=4, lon=5"
    there = open_samples(ds.assign_coords(lat=np.linspace(-59.25, 3, ds.sizes["lat"])), missing="drop")
    assert place(there, 5) == "lat=-59.25, lon=5 (position 0, 5)"
    for name in ("n", "n_missing", "marginals", "joints", "uncertainty"):
        np.testing.assert_array_equal(getattr(lazy, name), getattr(of_all, name))
    np.testing.assert_array_equal(lazy.worst.index, of_all.worst.index)


def test_the_worst_rows_are_a_monoid(gm, field):
    """Merging is associative, has no memory of the order of blocks, and of fewer rows than asked it keeps all."""
    rng = np.random.default_rng(0)
    parts = [
        Worst(rng.integers(0, 9, 15).astype(float), np.arange(15) + 15 * i, np.zeros(15, int), rng.random((15, 2)))
        for i in range(3)
    ]
    sums = [a + b + c for a, b, c in itertools.permutations(parts)] + [parts[0] + (parts[1] + parts[2])]
    for other in sums[1:]:
        for each in fields(Worst):
            np.testing.assert_array_equal(getattr(other, each.name), getattr(sums[0], each.name))
    assert len((parts[0] + parts[0]).index) == WORST
    few, _ = seen(gm, field[0, :4], grid(gm))
    assert len(few.worst.index) == 4


def test_a_row_that_is_too_far_off_for_numbers_is_the_worst(gm, field):
    rows = field.reshape(-1, 3).copy()
    rows[100] = 1e300
    with np.errstate(over="ignore", invalid="ignore"):
        found, _ = seen(gm, rows, grid(gm))
    assert (found.n, found.n_missing, found.counts.sum()) == (len(rows) - 1, 1, len(rows) - 1)
    assert (found.worst.index[0], found.worst.log_density[0]) == (100, -np.inf)


def test_a_family_without_covariances_and_a_missing_value_of_a_row():
    rng = np.random.default_rng(1)
    x = (rng.random((500, 4)) < np.where(np.arange(500)[:, None] % 2, 0.2, 0.9)).astype(float)
    x[3, 1] = np.nan
    bm = BernoulliMixture(2, missing="skip", random_state=0).fit(x)
    found, _ = seen(bm, x, NO_GRID)
    assert (found.n, found.n_missing, found.joints.size) == (500, 0, 0)
    np.testing.assert_array_equal(found.counts, np.bincount(bm.predict(x)))
    assert found.log_density == pytest.approx(bm.score_samples(x).sum())


def test_pairs_tell_the_components_apart_and_show_as_many_features_as_they_can():
    means = np.zeros((2, 6))
    means[1, [1, 4]] = 6.0, 5.0
    covariances = np.tile(np.eye(6), (2, 1, 1))
    pairs = telling_pairs(np.array([0.4, 0.6]), means, covariances)
    assert pairs[0] == (1, 4)
    shown = [{feature for pair in pairs[:i] for feature in pair} for i in range(len(pairs))]
    assert not any(some.issuperset(pair) for some, pair in zip(shown, pairs, strict=True))
    diagonal = telling_pairs(np.array([0.4, 0.6]), means, np.ones((2, 6)))
    assert diagonal == pairs
    scales = np.array([1e-9, 1e9, 1, 1e3, 1e-3, 1])  # units do not matter
    assert telling_pairs(np.array([0.4, 0.6]), means * scales, covariances * np.outer(scales, scales)) == pairs


def test_bins_hold_what_the_mixture_does_and_whole_numbers_evenly():
    weights, means, variances = np.array([0.9, 0.1]), np.array([[0.0], [30.0]]), np.array([[1.0], [4.0]])
    rows = np.random.default_rng(0).normal(
        np.repeat(means[:, 0], [90_000, 10_000]), np.repeat([1, 2], [90_000, 10_000])
    )
    for share in (0.01, 0.5, 0.95):
        found = quantile(share, weights, means[:, 0], np.sqrt(variances[:, 0]))
        assert (rows < found).mean() == pytest.approx(share, abs=0.005)
    edges = grid_of(weights, means, variances).edges[0]
    assert ((rows > edges[0]) & (rows < edges[-1])).mean() > 0.995
    whole = grid_of(weights, 20 * means, 400 * variances, np.uint16).edges[0]
    assert len(whole) == BINS + 1
    assert np.histogram(np.arange(-1000, 2000), whole)[0].std() == 0
