"""Laws of a pass: the same bits on any workers, each row read once a pass, whatever shares the pass."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

import daskgmm.data.blocks
import daskgmm.fitting.fit
import daskgmm.passes.memory
from daskgmm import GaussianMixture
from daskgmm.data.blocks import of_numpy
from daskgmm.data.open import open_samples
from daskgmm.fitting.survey import draw
from daskgmm.passes.graph import gather, total
from daskgmm.passes.reader import Reader
from daskgmm.process import single_blas

Array = npt.NDArray[np.float64]

CENTRES = np.array([[0.0, 0.0, 0.0], [9.0, 1.0, -5.0], [-4.0, 8.0, 3.0]])  # of conftest's blobs
FITTED = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_", "lower_bounds_")


@pytest.fixture(scope="module")
def rows(blobs: Array) -> Array:
    """2400 rows, in an order that differs from block to block."""
    rng = np.random.default_rng(1)
    rows: Array = rng.permutation(np.tile(blobs, (4, 1)) + 0.5 * rng.standard_normal((2400, 3)))
    return rows


@pytest.fixture(scope="module")
def store(rows: Array, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("data") / "x.zarr"
    zarr.create_array(str(path), data=rows, chunks=(50, 3), shards=(100, 3))
    return path


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 rows a block, 100 a region: 12 blocks of the store, a tree of two levels."""
    monkeypatch.setattr(daskgmm.data.blocks, "BLOCK_VALUES", 600)
    monkeypatch.setattr(daskgmm.data.blocks, "_REGION_VALUES", 300)


def fit(data: Any, **changes: Any) -> GaussianMixture:
    """A default start on a sample that is smaller than the data, then passes over the data."""
    options = {"n_components": 3, "random_state": 0, "subsample": 1000, "tol": 1e-5}
    return GaussianMixture(**{**options, **changes}).fit(data)


def assert_same_bits(found: GaussianMixture, expected: GaussianMixture) -> None:
    for name in FITTED:
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert found.n_passes_ == expected.n_passes_


# In this process


def numbers(block: Any, pieces: Any) -> tuple[float, int]:
    return sum(float(x.sum()) for x, _ in pieces), block.n


@given(st.integers(1, 60), st.integers(1, 5), st.integers(2, 9))
@settings(deadline=None, max_examples=25)
def test_a_total_is_the_sum_over_any_number_of_blocks(n: int, block: int, fan_in: int) -> None:
    """Of whole numbers, so that no order of summation rounds."""
    values = np.arange(n, dtype=float).reshape(-1, 1)
    with (
        mock.patch.object(daskgmm.data.blocks, "BLOCK_VALUES", block),
        mock.patch("daskgmm.passes.graph.FAN_IN", fan_in),
    ):
        samples = of_numpy([values], (n,), 1)
        assert len(samples.blocks) == -(-n // block)
        with dask.config.set(scheduler="synchronous"):
            assert total(Reader(samples), numbers) == (values.sum(), n)


class Order:
    """A summand that remembers how it was added up."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __add__(self, other: Order) -> Order:
        return Order(f"({self.text}+{other.text})")


def named(block: Any, pieces: Any) -> tuple[Order]:
    return (Order(str(block.index)),)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_the_tree_depends_on_the_number_of_blocks_alone(scheduler: str) -> None:
    with mock.patch.object(daskgmm.data.blocks, "BLOCK_VALUES", 1):
        samples = of_numpy([np.zeros((10, 1))], (10,), 1)
    with dask.config.set(scheduler=scheduler):
        ((order),) = total(Reader(samples), named)
    assert order.text == "((((((((0+1)+2)+3)+4)+5)+6)+7)+(8+9))"


def test_gather_keeps_the_order_of_the_blocks() -> None:
    with mock.patch.object(daskgmm.data.blocks, "BLOCK_VALUES", 1):
        samples = of_numpy([np.arange(50.0).reshape(-1, 1)], (50,), 1)
    own = draw(samples, 50, np.random.RandomState(0))
    found = gather(Reader(samples), lambda block, pieces, mine: (float(next(iter(pieces))[0][0, 0]), int(mine[0])), own)
    assert found == [(float(i), i) for i in range(50)]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_same_bits_on_any_scheduler(scheduler: str, store: Path) -> None:
    expected = fit(store)
    with dask.config.set(scheduler=scheduler):
        assert_same_bits(fit(store), expected)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("count", [1, 4])
def test_a_store_is_read_by_as_many_threads_as_are_configured(count: int, store: Path) -> None:
    together = threading.Barrier(count, timeout=60)

    def ident(block: Any, pieces: Any) -> int:
        together.wait()
        return threading.get_ident()

    samples = open_samples(store)
    samples = replace(samples, blocks=samples.blocks[: 3 * count])
    with dask.config.set(num_workers=count):
        assert len(set(gather(Reader(samples), ident))) == count


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("n_init", [1, 4])
def test_starts_share_passes(n_init: int, store: Path, reads: Any) -> None:
    """Of the store, every row is read once a pass, however many starts there are."""
    with mock.patch.object(daskgmm.fitting.fit, "_FRAME_ROWS", 500), dask.config.set(scheduler="synchronous"):
        model = fit(store, subsample=None, n_init=n_init, persist=False)
    assert reads.rows == 2400 * model.n_passes_
    data_passes = [info for info in model.history_ if info.stage == "data"]
    assert data_passes[0].n_models == n_init
    # The survey, k-means‖'s rounds, one M-step a start, and EM.
    assert model.n_passes_ <= 1 + 6 + n_init + len(data_passes)


@pytest.mark.usefixtures("small_blocks")
def test_a_start_from_a_sample_costs_no_pass(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dask.config.set(scheduler="synchronous"):
        model = fit(store, n_init=5)
    data_passes = [info for info in model.history_ if info.stage == "data"]
    assert {info.n_models for info in data_passes} == {1}
    assert {info.n_samples for info in model.history_ if info.stage == "sample"} == {1000}
    assert model.n_passes_ == 1 + len(data_passes)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_that_fit_in_memory_are_read_once(
    weighted: bool, store: Path, reads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And give the same bits as rows that are read in each pass."""
    weight = {"sample_weight": np.linspace(0, 2, 2400)} if weighted else {}
    options = {"n_components": 3, "random_state": 0, "subsample": 1000}
    streamed = GaussianMixture(**options, persist=False).fit(str(store), **weight)
    reads.rows = 0
    kept = GaussianMixture(**options).fit(str(store), **weight)
    assert reads.rows == 2400
    assert_same_bits(kept, streamed)
    monkeypatch.setattr(daskgmm.passes.memory, "_SHARE_HERE", 0)  # no room
    GaussianMixture(**options).fit(str(store), **weight)
    assert reads.rows == 2400 + 2400 * kept.n_passes_


def distance(model: GaussianMixture) -> float:
    """Of the means from the true ones, in the order that fits best."""
    return min(float(abs(model.means_[list(order)] - CENTRES).max()) for order in permutations(range(3)))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["zarr", "dask"])
@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
def test_starts_found_in_passes_recover_separate_clusters(
    kind: str, init_params: str, store: Path, rows: Array
) -> None:
    data = store if kind == "zarr" else da.from_array(rows, chunks=(400, 3))
    with mock.patch.object(daskgmm.fitting.fit, "_FRAME_ROWS", 500), warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fit(data, subsample=None, init_params=init_params, n_init=3, covariance_type="spherical")
    assert distance(model) < 0.3
    np.testing.assert_allclose(model.weights_, 1 / 3, atol=0.01)


@pytest.mark.usefixtures("small_blocks")
def test_starts_found_in_passes_know_weights(store: Path) -> None:
    """Rows of no weight draw no centre: two of the three clusters, and as many components, are left."""
    labels = fit(store).predict(store).compute()
    weight = np.where(labels == 0, 0.0, 1.0)
    with mock.patch.object(daskgmm.fitting.fit, "_FRAME_ROWS", 500):
        for method in ("kmeans", "k-means++"):
            model = GaussianMixture(2, subsample=None, init_params=method, random_state=0).fit(
                zarr.open_array(store), sample_weight=weight
            )
            np.testing.assert_allclose(model.weights_, 0.5, atol=0.01)


# On a cluster: last, so that nothing above finds a client


@pytest.fixture(scope="module", params=[(1, 1), (2, 2)], ids=["one worker", "two workers of two threads"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    workers, threads = request.param
    options = {"processes": True, "dashboard_address": ":0", "host": "127.0.0.1", "memory_limit": "1GiB"}
    with LocalCluster(n_workers=workers, threads_per_worker=threads, **options) as cluster, Client(cluster) as client:
        yield client


def tasks_done(client: Client) -> int:
    return sum(client.run(lambda dask_worker: dask_worker.state.executed_count).values())


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_same_bits_on_any_workers(client: Client, covariance_type: str, store: Path) -> None:
    before = tasks_done(client)
    found = fit(store, covariance_type=covariance_type)
    assert tasks_done(client) - before >= 12 * found.n_passes_
    with client.as_current(), dask.config.set(scheduler="threads"):
        here = fit(store, covariance_type=covariance_type)
    assert_same_bits(found, here)


@pytest.mark.usefixtures("small_blocks")
def test_same_bits_where_the_start_is_found_in_passes(client: Client, store: Path) -> None:
    with mock.patch.object(daskgmm.fitting.fit, "_FRAME_ROWS", 500):
        found = fit(store, subsample=None)
        with dask.config.set(scheduler="synchronous"):
            here = fit(store, subsample=None)
    assert_same_bits(found, here)


def test_rows_in_memory_stay_in_this_process(client: Client, rows: Array) -> None:
    before = tasks_done(client)
    model = fit(rows)
    model.predict(rows)
    model.score(rows)
    model.predict(xr.DataArray(rows, dims=("sample", "feature")))
    assert tasks_done(client) == before


def test_predictions_are_computed_by_the_workers(client: Client, store: Path, rows: Array) -> None:
    model = fit(rows)
    lazy = model.predict(store)
    before = tasks_done(client)
    np.testing.assert_array_equal(lazy.compute(), model.predict(rows))
    assert tasks_done(client) > before


def test_arrays_that_the_cluster_holds(client: Client, rows: Array) -> None:
    """Persisted arrays are futures in a graph: as rows, as weights, as fields, with work still to do on them."""
    weight = (np.arange(2400) % 2 + 1).astype(float)
    lazy, lazy_weight = da.from_array(rows, chunks=(800, 3)), da.from_array(weight, chunks=700)
    expected = fit(lazy, subsample=None)
    weighted = GaussianMixture(3, random_state=0).fit(lazy, sample_weight=weight)
    held, held_weight = client.persist([lazy, lazy_weight])
    fields = xr.DataArray(held.reshape(4, 600, 3), dims=("time", "x", "feature")).persist()
    for data in (held, held.rechunk((900, 2)), held + 0, fields):
        np.testing.assert_allclose(fit(data, subsample=None).means_, expected.means_, rtol=1e-8)
    for w in (lazy_weight, held_weight):
        found = GaussianMixture(3, random_state=0).fit(held, sample_weight=w)
        np.testing.assert_allclose(found.means_, weighted.means_, rtol=1e-8)
    np.testing.assert_array_equal(expected.predict(held).compute(), expected.predict(rows))
    np.testing.assert_array_equal(expected.predict(fields).persist().values.ravel(), expected.predict(rows))


def test_a_store_that_workers_cannot_see_is_an_error(client: Client, rows: Array) -> None:
    """fsspec's memory is each process's own: there, Zarr would read fill values without a word."""
    zarr.create_array("memory://passes.zarr", data=rows, chunks=(800, 3), overwrite=True)
    with pytest.raises(FileNotFoundError, match="not there for this worker: put the data where all workers"):
        fit("memory://passes.zarr")


def test_blocks_larger_than_a_worker_are_refused_before_the_first_pass(client: Client, tmp_path: Path) -> None:
    """A chunk of 240 MB decoded, which was never written, and workers of 1 GiB."""
    array = zarr.create_array(str(tmp_path / "x.zarr"), shape=(10**8, 3), chunks=(10**7, 3), dtype="float64")
    before = tasks_done(client)
    with pytest.raises(
        MemoryError, match="limit is 1024 MiB: give workers more memory or fewer threads, or rechunk the data"
    ):
        fit(array, missing="fill")
    assert tasks_done(client) == before


@pytest.mark.usefixtures("small_blocks")
def test_bad_rows_are_named_from_afar(client: Client, rows: Array, tmp_path: Path) -> None:
    gappy = rows.copy()
    gappy[[1234, 2000], [2, 0]] = np.nan
    data = zarr.create_array(str(tmp_path / "x.zarr"), data=gappy, chunks=(100, 3))
    with pytest.raises(ValueError, match="row 1234, feature 2 is nan"):
        fit(data)


def test_blas_has_one_thread_in_every_task_and_its_own_number_after() -> None:
    """Whoever was limited before, and from whichever thread."""
    samples = of_numpy([np.zeros((10, 2))], (10,), 2)
    before = _blas_threads()
    for _ in range(3):
        assert set(gather(Reader(samples), lambda block, pieces: _blas_threads())[0]) == {1}
        with single_blas():
            assert set(_blas_threads()) == {1}
        assert _blas_threads() == before


def _blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
