"""Seconds for one EM iteration of a full mixture, from a given start: other libraries', and ours.

Of another library it is the difference of two runs, so that what surrounds its loop does not count; one that is not
installed raises ImportError.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import zarr

from daskgmm.data.blocks import Block, Samples, joined, of_numpy
from daskgmm.data.open import open_samples
from daskgmm.families.bernoulli import Bernoulli
from daskgmm.families.covariance import MODELS
from daskgmm.families.gaussian import Gaussian, GaussianParameters
from daskgmm.families.product import ProductParameters
from daskgmm.fitting.em_pass import EMPass
from daskgmm.passes.cluster import workers
from daskgmm.passes.graph import total
from daskgmm.passes.reader import Reader
from daskgmm.process import single_blas

SHARD = 125_000  # rows; an eighth of them a chunk
MEMORY = "1GiB"  # of a worker

Rows = npt.NDArray[np.floating]
Timer = Callable[[], float]  # measures, and returns seconds


def onedal(X: Rows, start: GaussianParameters) -> float:
    """Intel's oneDAL, in the precision of X; all cores."""
    import daal4py

    k = len(start.weights)
    given = [start.weights.astype(X.dtype)[None], start.means.astype(X.dtype), list(start.covariances.astype(X.dtype))]
    fptype = "float" if X.dtype == np.float32 else "double"

    def run(iterations: int) -> int:
        algorithm = daal4py.em_gmm(nComponents=k, maxIterations=iterations, accuracyThreshold=0, fptype=fptype)
        return int(np.ravel(algorithm.compute(X, *given).nIterations)[0])

    return _an_iteration(run, 1, 11)


def sklearn(X: Rows, start: GaussianParameters) -> float:
    """scikit-learn, in the precision of X; its BLAS uses all cores."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    known = {"weights_init": start.weights, "means_init": start.means, "precisions_init": start.covariances}  # identity

    def run(iterations: int) -> int:
        return int(GaussianMixture(len(start.weights), max_iter=iterations, tol=0, **known).fit(X).n_iter_)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _an_iteration(run, 1, 3)


def spark(X: Rows, start: GaussianParameters) -> float:
    """Spark's MLlib on two threads of one process, its rows cached; it takes no start and draws its own."""
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    from pyspark.ml.clustering import GaussianMixture
    from pyspark.ml.linalg import Vectors

    if not (shutil.which("java") or "JAVA_HOME" in os.environ):
        raise ImportError("Spark needs Java", name="Java")
    session = _session()
    try:
        data = session.createDataFrame([(Vectors.dense(row),) for row in X], ["features"]).cache()
        data.count()

        def run(iterations: int) -> int:
            model = GaussianMixture(k=len(start.weights), maxIter=iterations, tol=0.0, seed=0).fit(data)
            return int(model.summary.numIter)

        return _an_iteration(run, 3, 13)
    finally:
        session.stop()


def stepmix(X: Rows, k: int) -> float:
    """StepMix's Bernoullis, on NumPy; it takes no start and draws its own."""
    from stepmix.stepmix import StepMix

    def run(iterations: int) -> int:
        options = {"n_init": 1, "abs_tol": 0, "rel_tol": 0, "random_state": 0, "progress_bar": 0, "verbose": 0}
        return int(StepMix(k, measurement="binary", max_iter=iterations, **options).fit(X).n_iter_)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _an_iteration(run, 1, 4)


def bernoulli(n: int, d: int, k: int) -> tuple[Rows, ProductParameters]:
    """Rows of zeros and ones, as bytes, and the probabilities that they are drawn with."""
    rng = np.random.default_rng(0)
    parameters = ProductParameters(np.full(k, 1 / k), rng.beta(0.5, 0.5, (k, d)))
    return (rng.random((n, d)) < parameters.means[rng.integers(k, size=n)]).astype(np.uint8), parameters


def our_bernoulli_pass(X: Rows, start: ProductParameters) -> Timer:
    family = Bernoulli(levels=(1,) * X.shape[1])
    frame = family.frame(X[:1].astype(np.float64), X[0], X[0])
    return timed_pass(in_memory(X), [family.components(start, frame)])


def _session() -> Any:
    from pyspark.sql import SparkSession

    options = {
        "spark.driver.memory": "6g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.rpc.message.maxSize": "1024",  # MiB: the rows travel with their tasks
    }
    return SparkSession.builder.master("local[2]").config(map=options).getOrCreate()


def _an_iteration(run: Callable[[int], int], few: int, many: int) -> float:
    """Seconds an iteration, of a function that runs at most so many and returns how many it made."""
    run(few)  # compilers and caches warm up
    seconds, made = [], []
    for iterations in (few, many):
        begin = time.perf_counter()
        made.append(run(iterations))
        seconds.append(time.perf_counter() - begin)
    return (seconds[1] - seconds[0]) / (made[1] - made[0]) if made[1] > made[0] else float("nan")


def mixture(n: int, d: int, k: int, dtype: npt.DTypeLike = np.float64) -> tuple[Rows, GaussianParameters]:
    """Rows of overlapping unit Gaussians, and a start at their centres."""
    rng = np.random.default_rng(0)
    centres = rng.normal(scale=3, size=(k, d))
    X = rng.normal(size=(n, d)) + centres[rng.integers(k, size=n)]
    return X.astype(dtype, copy=False), first(centres, k)


def first(centres: npt.NDArray[np.float64], k: int) -> GaussianParameters:
    """A start at the first k centres, with equal weights and identity covariances."""
    unit = np.tile(np.eye(centres.shape[1]), (k, 1, 1))
    return GaussianParameters(np.full(k, 1 / k), centres[:k], unit, unit)


def in_memory(X: Any) -> Samples:
    return of_numpy([X], X.shape[:1], X.shape[1])


def our_pass(
    samples: Samples,
    *starts: GaussianParameters,
    dtype: npt.DTypeLike = np.float64,
    covariance: str = "full",
    calls: int = 3,
) -> Timer:
    """Median seconds of a pass as a fit makes it, after one that compiles and fills caches."""
    family = Gaussian(MODELS[covariance], 1e-6)
    sample = samples.source.read(samples.blocks[0].regions[0])[0].astype(np.float64)
    frame = family.frame(sample, sample.min(axis=0), sample.max(axis=0))
    return timed_pass(samples, [family.components(start.moved(-frame.shift), frame) for start in starts], dtype, calls)


def timed_pass(samples: Samples, components: list[Any], dtype: npt.DTypeLike = np.float64, calls: int = 3) -> Timer:
    """Median seconds of a pass under these components, after one that compiles and fills caches."""
    one_pass = EMPass(Reader(samples))

    def call() -> float:
        begin = time.perf_counter()
        one_pass(components, [np.dtype(dtype)] * len(components))
        return time.perf_counter() - begin

    @single_blas()  # as around a fit
    def timer() -> float:
        return median(call() for _ in range(calls))

    call()
    return timer


def our_read(samples: Samples) -> Timer:
    """Seconds of a pass that does no more than to read and decode, on both cores."""
    regions = [region for block in samples.blocks for region in block.regions]

    def timer() -> float:
        begin = time.perf_counter()
        with ThreadPoolExecutor(2) as threads:
            for _ in threads.map(samples.source.read, regions):
                pass
        return time.perf_counter() - begin

    return timer


def write_store(path: Path, n: int, d: int, k: int) -> GaussianParameters:
    """A sharded float32 store of a mixture, the same rows in each shard; returns a start."""
    block, start = mixture(SHARD, d, k, np.float32)
    layout = {"chunks": (SHARD // 8, d), "shards": (SHARD, d), "compressors": zarr.codecs.ZstdCodec()}
    array = zarr.create_array(path, shape=(n, d), dtype="float32", **layout)
    for at in range(0, n, SHARD):
        array[at : at + SHARD] = block[: n - at]
    return start


def on_workers(path: Path, start: GaussianParameters, n_workers: int) -> float:
    """Seconds of a pass on so many worker processes of its own."""
    with workers(None, n_workers, MEMORY):
        return our_pass(joined(open_samples(path)), start)()


def scaled(path: Path, sizes: list[int], d: int, k: int, rounds: int) -> Iterator[tuple[float, float, str]]:
    """Of stores of so many rows: seconds of a pass on two workers and of an idle one, resident memory around passes."""
    with workers(None, 2, MEMORY) as client:
        processes = {"driver": os.getpid(), "scheduler": client.run_on_scheduler(os.getpid)}
        for n in sizes:
            start = write_store(path, n, d, k)
            samples = joined(open_samples(path))
            passes = our_pass(samples, start, calls=rounds)
            before = resident(processes)
            taken = passes()
            after = resident(processes)
            idle = median(idle_pass(samples) for _ in range(rounds))
            shutil.rmtree(path)
            yield taken, idle, ", ".join(f"{name} {before[name]:.0f} → {after[name]:.0f} MiB" for name in processes)


def idle_pass(samples: Samples) -> float:
    """Seconds of a pass whose tasks do nothing, not even read: what Dask takes for them."""

    def nothing(block: Block, pieces: Iterator[Any]) -> tuple[float]:  # in here, so that workers need not import it
        return (0.0,)

    begin = time.perf_counter()
    total(Reader(samples), nothing)
    return time.perf_counter() - begin


def resident(processes: dict[str, int]) -> dict[str, float]:
    return {name: psutil.Process(pid).memory_info().rss / 2**20 for name, pid in processes.items()}
