"""Fit a store much larger than the workers' memory; print peak resident memory of workers and driver.

python tests/benchmarks/memory.py                       # 6 GB of float32, 2 workers of 512 MiB
python tests/benchmarks/memory.py --gigabytes 1 --features 64 --memory-limit 384MiB
python tests/benchmarks/memory.py --binary --gigabytes 0.6 --features 30 --memory-limit 512MiB    # 20 million rows
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import zarr

from daskgmm import BernoulliMixture, GaussianMixture
from daskgmm.passes.cluster import workers


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_store(path: Path, gigabytes: float, n_features: int, n_components: int, binary: bool) -> int:
    """A store of a mixture, written shard by shard: of float32, or of zeros and ones as bytes."""
    rng = np.random.default_rng(0)
    chunk = 2**20 // n_features  # 4 MiB
    shard = 16 * chunk
    dtype = np.dtype("uint8" if binary else "float32")
    n_shards = max(1, round(gigabytes * 1e9 / (dtype.itemsize * n_features * shard)))
    centres = rng.normal(scale=6, size=(n_components, n_features))
    shape = (n_shards * shard, n_features)
    array = zarr.create_array(path, shape=shape, chunks=(chunk, n_features), shards=(shard, n_features), dtype=dtype)
    noise = rng.normal(size=(shard, n_features)).astype("float32")
    labels = rng.integers(n_components, size=shard)
    for i in range(n_shards):
        rows = np.roll(noise, i, axis=0) + centres[np.roll(labels, 7 * i)] * (0.15 if binary else 1)
        array[i * shard : (i + 1) * shard] = rows > 0 if binary else rows
    return shape[0]


@click.command()
@click.option("--gigabytes", default=6.0, show_default=True)
@click.option("--features", default=16, show_default=True)
@click.option("--components", default=8, show_default=True)
@click.option("--workers", "n_workers", default=2, show_default=True)
@click.option("--memory-limit", default="512MiB", show_default=True)
@click.option("--passes", default=3, show_default=True)
@click.option("--binary", is_flag=True, help="Zeros and ones, and a Bernoulli mixture.")
def main(
    gigabytes: float, features: int, components: int, n_workers: int, memory_limit: str, passes: int, binary: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder, workers(None, n_workers, memory_limit) as client:
        path = Path(folder) / "data.zarr"
        n = make_store(path, gigabytes, features, components, binary)
        stored = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        dtype, size = ("uint8", 1) if binary else ("float32", 4)
        size *= n * features / 1e9
        click.echo(f"store: {n:,} x {features} {dtype}, {size:.2f} GB ({stored / 1e9:.2f} GB on disk)")
        before_driver = peak_mib()
        before = client.run(os.getpid)
        begin = time.perf_counter()
        mixture = BernoulliMixture if binary else GaussianMixture
        gm = mixture(components, max_iter=passes, tol=0, random_state=0, persist=False).fit(path)
        seconds = time.perf_counter() - begin
        peaks = client.run(peak_mib)
        events = [
            (address, event)
            for address in before
            for _, event in client.get_events(address)
            if event.get("action") == "worker-status-change" and event.get("status") == "paused"
        ]
        click.echo(f"fit: {gm.n_passes_} passes in {seconds:.0f} s, log-likelihood {gm.lower_bound_:.6f} a sample")
        for address, peak in peaks.items():
            click.echo(f"worker {address}: peak {peak:.0f} MiB of {memory_limit}")
        click.echo(f"driver: peak {peak_mib():.0f} MiB, {before_driver:.0f} MiB before the fit")
        click.echo(f"workers restarted: {before != client.run(os.getpid)}; paused: {len(events)}")


if __name__ == "__main__":
    main()
