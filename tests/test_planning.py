"""Laws of a plan: it counts what a pass really has, and its times follow from rates that are given."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner, Result
from dask.callbacks import Callback
from hypothesis import given
from hypothesis import strategies as st

import daskgmm.data.blocks
from daskgmm.cli import main
from daskgmm.data.open import open_samples
from daskgmm.families.covariance import MODELS
from daskgmm.families.frame import Frame
from daskgmm.families.gaussian import Gaussian
from daskgmm.families.gaussian_components import GaussianComponents
from daskgmm.passes.graph import total
from daskgmm.passes.memory import check_memory, worker_memory
from daskgmm.passes.reader import Reader
from daskgmm.planning.measure import calibrate
from daskgmm.planning.plan import Plan, Rates, Work, flops_a_row

RATES = Rates(decode=1e-7, arithmetic=2e-7, exact=3e-7, scan=5e-8, maximize=1e-3, combine=1e-4)


def blank(k: int, d: int, covariance: str = "full") -> GaussianComponents:
    return Gaussian(MODELS[covariance]).zero_components(k, Frame.identity(d))


def work(blocks: int = 4096, rows_a_block: int = 100_000) -> Work:
    rows = blocks * rows_a_block
    return Work(rows, 16, 8, blocks, blocks // 7, 4, rows * 64, None, rows * 5000, 10_000, 2e8, 100_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("plan")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 3)) + 5 * rng.integers(2, size=(3000, 1))
    zarr.create_array(path / "x.zarr", data=X.astype("f4"), chunks=(100, 3))
    ds = xr.Dataset({name: (("time", "x"), X[:, i].reshape(30, 100).copy()) for i, name in enumerate("abc")})
    ds["a"][3, 4] = np.nan
    ds.chunk(time=5).to_zarr(path / "ds.zarr", consolidated=False)
    return path


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 rows a block of the store: 30 blocks, in a tree of two levels."""
    monkeypatch.setattr(daskgmm.data.blocks, "BLOCK_VALUES", 300)


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["plan", *map(str, args)])


# What a pass has to do


def test_bytes_are_those_of_the_rows_and_of_the_files(folder: Path) -> None:
    found = Work.of(open_samples(folder / "x.zarr"), blank(2, 3))
    assert found.decoded_bytes == 3000 * 3 * 4
    assert found.stored_bytes == sum(file.stat().st_size for file in (folder / "x.zarr").rglob("*") if file.is_file())
    variables = open_samples(folder / "ds.zarr", missing="drop")
    files = [file for name in variables.names or () for file in (folder / "ds.zarr" / name).rglob("*")]
    assert Work.of(variables, blank(2, 3)).stored_bytes == sum(file.stat().st_size for file in files if file.is_file())


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("blocks", "levels"), [(1, 0), (8, 0), (9, 2), (30, 2)])
def test_tasks_are_those_of_the_graph(blocks: int, levels: int, folder: Path) -> None:
    ran: list[Any] = []
    samples = open_samples(folder / "x.zarr")
    samples = replace(samples, blocks=samples.blocks[:blocks])
    with dask.config.set(scheduler="synchronous"), Callback(posttask=lambda key, *_: ran.append(key)):
        total(Reader(samples), lambda block, pieces: (block.n,))
    found = Work.of(samples, blank(2, 3))
    tasks = [key for key in ran if isinstance(key, tuple)]  # but for the nodes that all tasks share
    assert (found.blocks, found.levels) == (blocks, levels)
    assert len(tasks) == found.blocks + found.sums
    assert sum("sum" in key[0] for key in tasks) == found.sums


@pytest.mark.parametrize(
    ("covariance", "d", "flops"),
    [
        ("full", 3, 2 * 9 + 6 + 2 * 2 * 2 * 10),  # W x; the products; θ φ and φ γ of 10 values, 2 components
        ("diag", 3, 2 * 3 + 3 + 2 * 2 * 2 * 7),
        ("spherical", 3, 2 * 3 + 3 + 2 * 2 * 2 * 7),
        ("tied", 3, 2 * 9 + 0 + 2 * 2 * 2 * 4),  # Σφ of the products is known from the first pass
        ("full", 32, 2 * 32**2 + 0 + 2 * 2 * 2 * 32**2),  # Fᵀ (x − mean), and its square
    ],
)
def test_flops_are_those_counted_by_hand(covariance: str, d: int, flops: int) -> None:
    components = Gaussian(MODELS[covariance]).zero_components(2, Frame.identity(d))
    assert flops_a_row(replace(components, pooled=MODELS[covariance].pooled)) == flops


def test_a_worker_of_the_planned_memory_is_just_large_enough(folder: Path) -> None:
    samples = open_samples(folder / "x.zarr")
    needed = Work.of(samples, blank(2, 3)).worker_bytes
    assert needed == worker_memory(samples, 1)
    check_memory(samples, needed)
    with pytest.raises(MemoryError, match="give workers more memory"):
        check_memory(samples, needed - 1)


def test_em_runs_on_a_sample_where_it_is_smaller_than_the_data(folder: Path) -> None:
    samples = open_samples(folder / "x.zarr")
    assert Work.of(samples, blank(2, 3), subsample=1000).sample_rows == 1000
    assert Plan(Work.of(samples, blank(2, 3), subsample=3000), RATES, 1, 1).sample == 0


# How long that takes


def test_twice_the_rows_take_twice_the_arithmetic() -> None:
    rates = replace(RATES, decode=0, task=0)
    once, twice = (Plan(work(blocks), rates, 8, 8) for blocks in (1024, 2048))
    assert twice.compute == pytest.approx(2 * once.compute)
    assert once.compute == pytest.approx(once.work.rows * rates.arithmetic / 8)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 4096))
def test_more_workers_are_never_slower(workers: int, more: int, blocks: int) -> None:
    """But for the parameters, which have to reach them all."""
    few, many = (Plan(work(blocks), RATES, w, 2, remote=True) for w in (workers, workers + more))
    assert many.one_pass - many.broadcast <= (few.one_pass - few.broadcast) * (1 + 1e-12)
    assert many.survey <= few.survey


def test_a_pass_is_the_sum_of_its_terms() -> None:
    plan = Plan(work(64), RATES, 4, 4)
    assert plan.compute == pytest.approx(16 * (100_000 * 3e-7 + 5e-3))
    assert plan.scheduling == pytest.approx((64 + 9) / 400)
    assert plan.reduction == pytest.approx(4 * (5e-3 + 8 * 1e-5 + 1e-4))
    assert plan.broadcast == pytest.approx(3 * (5e-3 + 1e-5))
    assert plan.one_pass == pytest.approx(plan.compute + plan.reduction + plan.broadcast + 1e-3 + 0.03)
    assert plan.seconds(9) - plan.seconds(8) == pytest.approx(plan.one_pass)
    assert plan.last_pass - plan.one_pass == pytest.approx(16 * 100_000 * 1e-7)  # in double precision
    assert plan.seconds(1) == pytest.approx(RATES.start + plan.survey + plan.sample + plan.last_pass)


def test_the_scheduler_bounds_many_workers() -> None:
    plan = Plan(work(), RATES, 1000, 2, remote=True)
    assert plan.compute < plan.scheduling < plan.one_pass
    useful = plan.most_workers
    assert 1 < useful < 1000
    assert replace(plan, workers=useful).compute <= plan.scheduling
    assert replace(plan, workers=useful // 2).compute > plan.scheduling


def test_few_blocks_bound_the_workers() -> None:
    plan = Plan(work(3, 10**7), RATES, 2, 64)
    assert plan.compute == pytest.approx(replace(plan, workers=1).compute * 2 / 3)
    assert plan.most_workers == 3
    assert replace(plan, workers=64).compute == replace(plan, workers=3).compute


def test_workers_share_the_cores_of_this_machine_unless_they_have_their_own() -> None:
    here = Plan(work(), RATES, 16, 2)
    assert here.compute == replace(here, workers=2).compute
    assert replace(here, remote=True).compute == pytest.approx(here.compute / 8)


# On a store


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical", "EEI", "VVE"])
@pytest.mark.parametrize("k", [1, 2, 500])
def test_rates_are_measured_for_every_model(folder: Path, covariance: str, k: int) -> None:
    family = Gaussian(MODELS[covariance], 1e-6)
    rates, components = calibrate(open_samples(folder / "x.zarr"), family, k, at_once=2, budget=0)
    assert components.means.shape == (k, 3)
    assert all(0 < value < math.inf for value in vars(rates).values())


def test_the_command_reports_each_term_and_writes_nothing(folder: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    args = (folder / "x.zarr", "--components", 2, "--workers", 1, "--budget", 0, "--memory-limit", "1GiB")
    result = run(*args, "--json", "--passes", 5)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["work"]["rows"] == 3000
    assert found["passes"] == 5
    seconds = found["rates"]["start"] + found["survey"] + found["sample"] + 4 * found["one_pass"] + found["last_pass"]
    assert found["minutes"] == pytest.approx(seconds / 60)
    assert found["core_hours"] == pytest.approx(seconds / 3600)
    text = run(*args).stdout
    for term in ("bytes", "flops", "tasks", "memory", "compute", "scheduling", "reduction", "M-step", "4 to 20"):
        assert term in text
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_missing_values_are_left_out_or_refused_as_in_a_fit(folder: Path) -> None:
    args = (folder / "ds.zarr", "--components", 2, "--budget", 0, "--variables")
    assert run(*args, "a,c", "--missing", "drop").exit_code == 0
    assert "variable 'a' at time=3, x=4 is nan" in run(*args, "a,c").stderr


def test_nothing_is_learnt_of_rows_that_are_all_missing() -> None:
    samples = open_samples(np.full((100, 2), np.nan))
    with pytest.raises(ValueError, match="none of the 100 rows"):
        calibrate(samples, Gaussian(MODELS["full"]), 2, missing="drop", budget=0)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("nowhere.zarr", "--components", 2), "cannot open"),
        (("x.zarr", "--components", 5000), "lower n_components"),
        (("x.zarr", "--components", 2, "--memory-limit", "100MiB"), "give workers more memory"),
        (("x.zarr", "--components", 2, "--memory-limit", "much"), "much"),
    ],
)
def test_an_error_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, args: Any, words: str) -> None:
    monkeypatch.chdir(folder)
    result = run(*args)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert words in line
