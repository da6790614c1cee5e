"""One EM pass against one iteration of scikit-learn's GaussianMixture, in memory, in the same run.

python tests/benchmarks/speed.py                        # 1M x 16, 16 components, full
"""

from __future__ import annotations

import time
import warnings
from statistics import median

import click
import numpy as np
from sklearn.mixture import GaussianMixture as Reference

from daskgmm import GaussianMixture, Info


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--features", default=16, show_default=True)
@click.option("--components", default=16, show_default=True)
@click.option("--covariance", default="full", show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Paired runs; the median ratio is what counts.")
def main(rows: int, features: int, components: int, covariance: str, rounds: int) -> None:
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    centres = rng.normal(scale=3, size=(components, features))
    X = rng.normal(size=(rows, features)) + centres[rng.integers(components, size=rows)]
    start = Reference(components, covariance_type=covariance, means_init=centres, max_iter=1).fit(X[:20_000])
    options = {
        "covariance_type": covariance,
        "weights_init": start.weights_,
        "means_init": start.means_,
        "precisions_init": start.precisions_,
        "tol": 0,
    }
    ratios = []
    for _ in range(rounds):
        passes: list[Info] = []
        GaussianMixture(components, max_iter=4, callbacks=[passes.append], **options).fit(X)
        ours = median(info.seconds for info in passes)
        times = []
        for max_iter in (1, 3):  # the difference is two iterations, without what surrounds the loop
            begin = time.perf_counter()
            Reference(components, max_iter=max_iter, **options).fit(X)
            times.append(time.perf_counter() - begin)
        theirs = (times[1] - times[0]) / 2
        ratios.append(theirs / ours)
        click.echo(f"scikit-learn {theirs:.3f} s an iteration, daskgmm {ours:.3f} s a pass: {ratios[-1]:.1f} times")
    click.echo(f"median of {rounds}: {median(ratios):.1f} times ({rows:,} x {features}, {components} {covariance})")


if __name__ == "__main__":
    main()
