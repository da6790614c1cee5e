"""daskgmm against other libraries, and against itself: one markdown table.

python tests/benchmarks/compare.py                      # all of it: an hour or two
python tests/benchmarks/compare.py --only pass,tied --quick
"""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import peers
import zarr
from peers import Rows, Timer, first, in_memory, mixture, on_workers, our_pass, write_store
from sklearn.mixture import GaussianMixture as Reference
from zarr.storage import LocalStore

from daskgmm import GaussianMixture, GaussianMixtureIC, Info
from daskgmm.data.blocks import Source, joined
from daskgmm.data.open import open_samples
from daskgmm.demo.photographs import Photographs, build_patches
from daskgmm.passes.cluster import workers

SHAPES = ((1_000_000, 4, 8), (500_000, 16, 16), (200_000, 16, 64), (200_000, 64, 16))  # rows, features, components
SKLEARN_ROWS = 200_000
PATCHES = {"n_components": 32, "reg_covar": 1 / 12, "random_state": 0}  # as in the demo, but for their number

Row = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Setup:
    """How much is measured."""

    rounds: int = 3
    share: float = 1.0  # of the rows
    full: bool = False  # all patches

    def rows(self, n: int) -> int:
        return max(4000, round(self.share * n))

    def compare(
        self, what: str, ours: Timer, peer: Timer, aim: str, name: str = "", saving: bool = True, scale: float = 1.0
    ) -> Row:
        """Paired runs; the ratio is peer / ours, or ours / peer of what is to cost little. ``scale``: of the peer."""
        try:
            pairs = [(ours(), scale * peer()) for _ in range(self.rounds)]
        except ImportError as error:
            return what, seconds(ours()), f"{name}: {error.name} is not installed", "", aim
        ratio = median(theirs / own if saving else own / theirs for own, theirs in pairs)
        own, theirs = (median(times) for times in zip(*pairs, strict=True))
        return what, seconds(own), f"{name} {seconds(theirs)}", f"{ratio:.2f}", aim


def seconds(value: float) -> str:
    return f"{value:.3g} s"


def described(n: int, d: int, k: int) -> str:
    return f"{n:,} × {d}, K = {k}"


def compare_pass(setup: Setup) -> Iterator[Row]:
    problems = [(setup.rows(n), d, k) for n, d, k in SHAPES]
    for shape, aim in zip(problems, ("1.5", "2", "2", "1.5"), strict=True):
        X, start = mixture(*shape)
        ours, what = our_pass(in_memory(X), start), f"pass in float64, {described(*shape)}"
        yield setup.compare(what, ours, partial(peers.onedal, X, start), aim, "oneDAL double")
    for shape, aim in zip(problems, ("2.5", "4", "4", "2.5"), strict=True):
        X, start = mixture(*shape, np.float32)
        ours, what = our_pass(in_memory(X), start, dtype=np.float32), f"pass in float32, {described(*shape)}"
        for name, given in (("double", X.astype(np.float64)), ("float", X)):
            yield setup.compare(what, ours, partial(peers.onedal, given, start), aim, f"oneDAL {name}")


def compare_sklearn(setup: Setup) -> Iterator[Row]:
    for n, d, k in SHAPES:
        n = setup.rows(n)
        X, start = mixture(n, d, k)
        some = X[:SKLEARN_ROWS]
        name = "scikit-learn" if len(some) == n else f"scikit-learn, by the row from {len(some):,} rows,"
        ours, peer, what = our_pass(in_memory(X), start), partial(peers.sklearn, some, start), described(n, d, k)
        yield setup.compare(f"pass, {what}", ours, peer, "20", name, scale=n / len(some))


def compare_spark(setup: Setup) -> Iterator[Row]:
    n, d, k = setup.rows(500_000), 16, 16
    X, start = mixture(n, d, k)
    ours, peer = our_pass(in_memory(X), start), partial(peers.spark, X, start)
    yield setup.compare(f"pass, {described(n, d, k)}", ours, peer, "10", "Spark MLlib")


def compare_families(setup: Setup) -> Iterator[Row]:
    n, d, k = setup.rows(500_000), 50, 10
    X, start = peers.bernoulli(n, d, k)
    ours, peer = peers.our_bernoulli_pass(X, start), partial(peers.stepmix, X.astype(np.float64), k)
    yield setup.compare(f"pass of Bernoullis, {described(n, d, k)}", ours, peer, "10", "StepMix")


def compare_tied(setup: Setup) -> Iterator[Row]:
    n, d, k = setup.rows(500_000), 16, 16
    X, start = mixture(n, d, k)
    tied, full = (our_pass(in_memory(X), start, covariance=name) for name in ("tied", "full"))
    yield setup.compare(f"tied pass, {described(n, d, k)}", tied, full, "3", "full")


class Counted:
    """An array that keeps how many values each read took from it."""

    def __init__(self, array: Rows) -> None:
        self.array, self.sizes = array, list[int]()

    def __getitem__(self, region: Any) -> Rows:
        part = self.array[region]
        self.sizes.append(part.size)
        return part


def compare_sweep(setup: Setup) -> Iterator[Row]:
    n, d, k = setup.rows(500_000), 16, 20
    X, start = mixture(n, d, k)
    starts, counted = [first(start.means, i + 1) for i in range(k)], Counted(X)
    samples = replace(in_memory(X), source=Source((counted,)))
    sweep, what = our_pass(samples, *starts, calls=1), f"K = 1 … {k} in one pass, {n:,} × {d}"
    counted.sizes.clear()
    sweep()
    read = sum(counted.sizes)
    yield setup.compare(what, sweep, our_pass(in_memory(X), start), "≤ 12", f"K = {k} alone", saving=False)
    yield what, f"{read:,} values read", f"{X.size:,} values", f"{read / X.size:.2f}", "1"


def compare_stream(setup: Setup) -> Iterator[Row]:
    for n, d, k in ((setup.rows(2_000_000), 16, 64), (setup.rows(16_000_000), 16, 64)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.zarr"
            start = write_store(path, n, d, k)
            stored, held = joined(open_samples(path)), in_memory(zarr.open_array(path, mode="r")[:])
            ours, peer, what = our_pass(stored, start), our_pass(held, start), f"pass from Zarr, {described(n, d, k)}"
            yield setup.compare(what, ours, peer, "≤ 1.25", "in memory", saving=False)
            alone = peers.our_read(stored)
            yield setup.compare(f"{what}: no arithmetic", alone, peer, "", "in memory", saving=False)


def compare_workers(setup: Setup) -> Iterator[Row]:
    n, d, k = setup.rows(2_000_000), 16, 64
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.zarr"
        start = write_store(path, n, d, k)
        one, two = (partial(on_workers, path, start, count) for count in (1, 2))
        yield setup.compare(f"pass from Zarr on 2 workers, {described(n, d, k)}", two, one, "", "1 worker")


def compare_scale(setup: Setup) -> Iterator[Row]:
    sizes, times, idle_times = [setup.rows(n) for n in (10**6, 10**7, 10**8)], [], []
    with tempfile.TemporaryDirectory() as folder:
        measured = peers.scaled(Path(folder) / "data.zarr", sizes, 8, 8, setup.rounds)
        for n, (taken, idle, memory) in zip(sizes, measured, strict=True):
            times.append(taken)
            idle_times.append(idle)
            what = f"pass from Zarr, 2 workers, {described(n, 8, 8)}"
            yield what, f"{seconds(taken)}; {memory}", f"with tasks that do nothing {seconds(idle)}", "", "flat memory"
    exponent, without = (
        np.polyfit(np.log(sizes), np.log(spent), 1)[0] for spent in (times, np.subtract(times, idle_times))
    )
    what = "time grows as rows to the power of"
    yield what, f"{exponent:.3f}", f"without what such tasks take {without:.3f}", "", "1.00 ± 0.05"


def patch_store(folder: Path, step: int) -> Path:
    """The demo's patches, or every so manieth of them."""
    path, some = folder / "patches.zarr", folder / "some.zarr"
    build_patches(path, Photographs.bundled())
    if step == 1:
        return path
    patches = zarr.open_array(path, mode="r")
    X = patches[:][::step]
    zarr.create_array(some, data=X, chunks=patches.chunks, shards=patches.shards)
    return some


class Counting(LocalStore):
    """A store that keeps how many bytes were read from it."""

    read = 0

    async def get(self, *arguments: Any, **options: Any) -> Any:
        found = await super().get(*arguments, **options)
        Counting.read += 0 if found is None else len(found)
        return found


def compare_search(setup: Setup) -> Iterator[Row]:
    """A search, against its candidates one by one; both on threads of this process, streaming."""
    warnings.simplefilter("ignore")
    n, d, ks, names = setup.rows(1_000_000), 8, range(1, 11), ("full", "tied", "diag", "spherical", "VEE", "EEV")
    options = {"random_state": 0, "tol": 1e-5, "persist": False}
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder) / "data.zarr", n, d, 6)

        def fit(estimator: Any) -> tuple[float, int]:
            Counting.read, begin = 0, time.perf_counter()
            estimator.fit(zarr.open_array(Counting(Path(folder) / "data.zarr"), mode="r"))
            return time.perf_counter() - begin, Counting.read

        fit(GaussianMixtureIC(2, covariance_type=names, **options))  # compilers and caches warm up
        together, read = fit(GaussianMixtureIC(ks, covariance_type=names, **options))
        alone = [fit(GaussianMixture(k, covariance_type=name, **options)) for name in names for k in ks]
    what = f"{len(alone)} candidates, {described(n, d, 10)} at most"
    longest, total = max(most for _, most in alone), sum(taken for taken, _ in alone)
    yield what, f"{read:,} bytes read", f"the longest alone {longest:,}", f"{read / longest:.2f}", "1"
    yield what, seconds(together), f"one by one {seconds(total)}", f"{total / together:.2f}", ""


class Reached(Exception):
    """A fit is as good as was aimed at."""


def fit_until(target: float, path: Path) -> tuple[float, float, str]:
    """Our fit, until its history reaches a log-likelihood or it ends: seconds, the log-likelihood, and on what."""
    bounds, ends = [-math.inf], dict[str, float]()

    def watch(info: Info) -> None:
        ends.setdefault("survey", time.perf_counter() - info.seconds)
        ends[info.stage] = time.perf_counter()
        if info.stage == "data":
            bounds.append(info.lower_bound)
            if info.lower_bound >= target:
                raise Reached

    begin = time.perf_counter()
    with suppress(Reached):
        GaussianMixture(**PATCHES, callbacks=[watch]).fit(path)
    spent = zip(ends, np.diff([begin, *ends.values()]), strict=True)
    return time.perf_counter() - begin, max(bounds), ", ".join(f"{stage} {seconds(taken)}" for stage, taken in spent)


def compare_patches(setup: Setup) -> Iterator[Row]:
    warnings.simplefilter("ignore")  # neither is to converge
    with tempfile.TemporaryDirectory() as folder:
        path = patch_store(Path(folder), 1 if setup.full else round(10 / setup.share))
        X = zarr.open_array(path, mode="r")[:]
        begin = time.perf_counter()
        target = float(Reference(**PATCHES, tol=0, max_iter=30).fit(X).lower_bound_)
        theirs = time.perf_counter() - begin
        runs = []
        for _ in range(setup.rounds):  # it is short, and what else the machine does shows in it
            with workers(None, 2, peers.MEMORY):
                runs.append(fit_until(target, path))
        ours, bound, spent = sorted(runs)[len(runs) // 2]
        ratio = f"{theirs / ours:.2f}" if bound >= target else f"not reached: {bound:.3f}"
        what = f"{len(X):,} patches, K = 32, to {target:.3f} nats a patch, 2 workers"
        yield (
            what,
            f"{seconds(ours)} ({spent}; {seconds(min(runs)[0])} to {seconds(max(runs)[0])})",
            f"scikit-learn, 30 iterations, {seconds(theirs)}",
            ratio,
            "30",
        )


SECTIONS: dict[str, Callable[[Setup], Iterator[Row]]] = {
    "pass": compare_pass,
    "sklearn": compare_sklearn,
    "spark": compare_spark,
    "families": compare_families,
    "tied": compare_tied,
    "sweep": compare_sweep,
    "stream": compare_stream,
    "workers": compare_workers,
    "scale": compare_scale,
    "patches": compare_patches,
    "search": compare_search,
}


@click.command()
@click.option("--only", default=",".join(SECTIONS), show_default=True, help="Sections, with commas between them.")
@click.option("--rounds", default=3, show_default=True, help="Paired runs; the median ratio is what counts.")
@click.option("--quick", is_flag=True, help="A tenth of the rows.")
@click.option("--full", is_flag=True, help="All of the demo's patches, not a tenth.")
@click.option("--share", default=1.0, hidden=True, help="Of the rows.")
def main(only: str, rounds: int, quick: bool, full: bool, share: float) -> None:
    names = only.split(",")
    if unknown := set(names) - set(SECTIONS):
        raise click.BadParameter(f"there is no section {', '.join(sorted(unknown))}", param_hint="--only")
    setup = Setup(rounds, share / 10 if quick else share, full)
    for row in (("what", "ours", "peer", "ratio", "aim"), ("---",) * 5):
        click.echo(f"| {' | '.join(row)} |")
    for name in names:
        for row in SECTIONS[name](setup):
            click.echo(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
