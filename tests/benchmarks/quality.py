"""How often one fit finds the best known optimum: ours with default settings, scikit-learn's best of several, mclust's.

    python tests/benchmarks/quality.py --only grid,pixels --seeds 50

Prints a table in Markdown: the share of seeds that end within 1e-3 nats a row of the best mixture that anyone found.
Each is carried on to convergence before it is looked at, as its optimum is in question, not its tolerance. One that
then has a component on fewer rows than a component has parameters does not count, whoever found it: about a few rows
in a plane only ``reg_covar`` bounds the likelihood (McLachlan & Peel 2000, Finite Mixture Models).

scikit-learn's fits are textbook EM from its own start, ended by its own rule, which give its iterates (see
tests/estimators/test_parity.py) in less time; ``--peer`` runs scikit-learn itself. The best of n starts is the one of
the greatest lower bound, as it chooses; its share is the mean over all ways to draw n of the starts that were made,
twice as many as there are seeds. mclust takes its hierarchical start (``hcVVV`` on 2,000 rows, its default for more)
in R, and is carried on the same way; it is left out where there is no Rscript.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from math import comb
from pathlib import Path

import numpy as np
import numpy.typing as npt
from problems import PROBLEMS, Problem, overlapping
from sklearn.mixture import GaussianMixture as Peer

from daskgmm import GaussianMixture

Array = npt.NDArray[np.float64]

_ROWS = 20_000
_NEAR = 1e-3  # nats a row
_R = """
suppressMessages(library(mclust))
args <- commandArgs(TRUE)
x <- matrix(readBin(args[1], "double", file.size(args[1]) / 8), ncol = as.integer(args[2]))
for (seed in seq_len(as.integer(args[4]))) {
  set.seed(seed)
  rows <- sample(nrow(x), mclust.options("subset"))
  part <- hclass(hc(x[rows, ], modelName = "VVV", use = "SVD"), as.integer(args[3]))
  cat(rows - 1, "\\n", part - 1, "\\n")
}
"""


def grid() -> Array:
    """25 equal spheres on a square grid, four standard deviations apart."""
    rng = np.random.default_rng(6)
    return 4.0 * rng.integers(5, size=(_ROWS, 2)) + rng.standard_normal((_ROWS, 2))


def nested() -> Array:
    """Groups of very different sizes and widths, narrow ones inside wide ones, in five features."""
    rng = np.random.default_rng(7)
    which = rng.choice(12, _ROWS, p=rng.dirichlet(np.full(12, 2.0)))
    means, widths = 2 * rng.standard_normal((12, 5)), np.geomspace(0.3, 3, 12)
    return means[which] + widths[which, None] * rng.standard_normal((_ROWS, 5))


CHOSEN = (
    PROBLEMS[1],
    Problem("grid of 25, 2 features", 25, grid),
    Problem("narrow inside wide, 5 features", 12, nested),
    Problem("overlapping, 6 features, 24 components", 24, lambda: overlapping(_ROWS, 6, 24, 3.0, 9)),
    *(PROBLEMS[i] for i in (2, 3, 6, 7, 8, 9)),
)


def carried_on(x: Array, found: GaussianMixture) -> float:
    """The log-likelihood a row of the optimum that a mixture leads to; -inf with a component on next to no rows."""
    optimum = _from(x, found.weights_, found.means_, found.precisions_, tol=1e-6, max_iter=2000)
    d = x.shape[1]
    return float(optimum.score(x)) if optimum.weights_.min() * len(x) >= d + d * (d + 1) / 2 else -np.inf


def _from(x: Array, weights: Array, means: Array, precisions: Array, **settings: object) -> GaussianMixture:
    start = {"weights_init": weights, "means_init": means, "precisions_init": precisions, "subsample": None}
    return GaussianMixture(len(means), **start, **settings).fit(x)


def ours(x: Array, k: int, seed: int) -> tuple[float, float]:
    """Lower bound, and log-likelihood a row of the optimum."""
    found = GaussianMixture(k, random_state=seed).fit(x)
    return found.lower_bound_, carried_on(x, found)


def scikit_learn(x: Array, k: int, seed: int) -> tuple[float, float]:
    """The same, of one start of scikit-learn's."""
    first = Peer(k, max_iter=1, random_state=seed).fit(x)
    found = _from(x, first.weights_, first.means_, first.precisions_, accelerate=False, max_iter=99)
    return found.lower_bound_, carried_on(x, found)


def itself(x: Array, k: int, seed: int) -> tuple[float, float]:
    """The same, by scikit-learn."""
    found = Peer(k, random_state=seed).fit(x)
    return found.lower_bound_, carried_on(x, found)


def mclust(x: Array, k: int, seeds: int) -> list[tuple[float, float]]:
    """The same, of mclust's starts: partitions of some rows."""
    with tempfile.TemporaryDirectory() as folder:
        rows, script = Path(folder) / "rows", Path(folder) / "start.R"
        np.asfortranarray(x).ravel(order="F").tofile(rows)
        script.write_text(_R)
        command = ["Rscript", str(script), str(rows), str(x.shape[1]), str(k), str(seeds)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    results = []
    for some, part in zip(lines[::2], lines[1::2], strict=True):
        chosen, which = x[np.array(some.split(), dtype=int)], np.array(part.split(), dtype=int)
        groups = [chosen[which == c] for c in range(k)]
        try:
            found = _from(
                x,
                np.array([len(group) for group in groups]) / len(chosen),
                np.array([group.mean(axis=0) for group in groups]),
                np.linalg.inv([np.cov(group.T, bias=True) + 1e-6 * np.eye(x.shape[1]) for group in groups]),
                accelerate=False,
                tol=1e-5,
                max_iter=1000,
            )
            results.append((found.lower_bound_, carried_on(x, found)))
        except (ValueError, np.linalg.LinAlgError):  # a group too small to be a component, as mclust finds too
            results.append((-np.inf, -np.inf))
    return results


def share(results: Sequence[tuple[float, float]], best: float, starts: int = 1) -> float:
    """Of all ways to draw so many of the results, in how many the one of the greatest bound is near the best."""
    ranked = sorted(results, reverse=True)
    n = len(ranked)
    chosen = (comb(n - 1 - i, starts - 1) for i in range(n))  # draws of which the i-th is the first
    return sum(c for c, (_, at) in zip(chosen, ranked, strict=True) if at > best - _NEAR) / comb(n, starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="parts of problems' names, with commas between them")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--peer", action="store_true", help="run scikit-learn itself")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    theirs: Callable[[Array, int, int], tuple[float, float]] = itself if options.peer else scikit_learn
    print("| problem | daskgmm | scikit-learn, 1 | 10 | 20 | mclust | best | seconds: daskgmm, scikit-learn's start |")
    print("|---|---|---|---|---|---|---|---|")
    for problem in CHOSEN:
        if not any(part in problem.name for part in options.only.split(",")):
            continue
        x, k = problem.make(), problem.n_components
        x = x[np.random.default_rng(0).permutation(len(x))[:_ROWS]]
        begin = time.perf_counter()
        mine = [ours(x, k, seed) for seed in range(options.seeds)]
        middle = time.perf_counter()
        other = [theirs(x, k, seed) for seed in range(2 * options.seeds)]
        end = time.perf_counter()
        by_r = mclust(x, k, options.seeds) if shutil.which("Rscript") else []
        best = max(at for _, at in (*mine, *other, *by_r))
        shares = [share(mine, best), *(share(other, best, n) for n in (1, 10, 20) if n <= len(other))]
        cells = [f"{100 * s:.0f} %" for s in (*shares, *([share(by_r, best)] if by_r else []))]
        each = f"{(middle - begin) / options.seeds:.2f}, {(end - middle) / len(other):.2f}"
        print(f"| {problem.name} | {' | '.join(cells)} | {best:.4f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
