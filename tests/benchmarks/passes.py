"""How many passes a fit takes to within 1e-4 a row of the best likelihood known, against plain EM from k-means.

python tests/benchmarks/passes.py                       # ten problems, some eight minutes
python tests/benchmarks/passes.py --only 0,7 --limit 300

A pass is n rows visited: EM on n / 8 rows of the sample counts as an eighth of one, for each model, and so do looks at
them to propose a move and to judge one; EM of two components on the rows of one counts by components.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import numpy.typing as npt
from problems import PROBLEMS

from daskgmm import GaussianMixture
from daskgmm.em import split_merge
from daskgmm.fitting import sample

Array = npt.NDArray[np.float64]

_WITHIN = 1e-4


@dataclass(frozen=True)
class Course:
    """What a fit had found after so many passes, and seconds; those without a likelihood of all rows left out."""

    bounds: Array  # nats a row
    passes: Array
    seconds: Array
    sampled: float = 0.0  # of the passes, those over the sample and for its moves
    total: float = 0.0  # seconds

    def first(self, best: float) -> float:
        """Passes until a likelihood is within reach of the best; infinity if none is."""
        reached = self.bounds >= best - _WITHIN
        return float(self.passes[np.argmax(reached)]) if reached.any() else np.inf


def plain(X: Array, k: int, limit: int, seed: int) -> Course:
    """Textbook EM from scikit-learn's k-means on all rows, the time for which is left out."""
    start = GaussianMixture(k, subsample=None, max_iter=0, random_state=seed).fit(X)
    given = {"weights_init": start.weights_, "means_init": start.means_, "precisions_init": start.precisions_}
    begin = time.perf_counter()
    fit = GaussianMixture(k, accelerate=False, tol=0, max_iter=limit, **given).fit(X)
    bounds, seconds = np.array(fit.lower_bounds_), time.perf_counter() - begin
    made = np.arange(1, len(bounds) + 1)
    return Course(bounds, made, made / len(bounds) * seconds, total=seconds)


@contextmanager
def counted(k: int) -> Iterator[list[float]]:
    """Rows visited by moves, besides those of the history: looks at them, and passes of two components of k."""
    visited: list[float] = []

    def count(function: Any, rows: Any) -> Any:
        def call(*arguments: Any) -> Any:
            visited.append(rows(*arguments))
            return function(*arguments)

        return call

    with ExitStack() as stack:
        for where, name, rows in (
            (sample, "moves", lambda em, parameters, rows, *_: 2 * len(rows)),  # an E-step; moments, twice
            (sample, "predict", lambda samples, model, output, missing: samples.n),
            (
                split_merge,
                "block_stats_of_models",
                lambda pieces, models, dtypes: len(models) * 2 / k * len(pieces[0][0]),
            ),
        ):
            stack.enter_context(patch.object(where, name, count(getattr(where, name), rows)))
        yield visited


def ours(X: Array, k: int, seed: int) -> Course:
    """A fit as it is by default, but for a tolerance that lets it end where plain EM would."""
    times: list[float] = []
    begin = time.perf_counter()
    with counted(k) as moving:
        options = {"tol": 1e-7, "max_iter": 200, "random_state": seed}
        fit = GaussianMixture(k, callbacks=[lambda _: times.append(time.perf_counter() - begin)], **options).fit(X)
    seconds = time.perf_counter() - begin
    visited = (np.cumsum([info.n_samples * info.n_models for info in fit.history_]) + sum(moving)) / len(X)
    on_data = np.array([info.stage == "data" for info in fit.history_])
    bounds = np.array([info.lower_bound for info in fit.history_])
    sampled = visited[~on_data].max(initial=0)
    return Course(bounds[on_data], visited[on_data], np.array(times)[on_data], sampled, seconds)


@click.command()
@click.option("--only", help="Numbers of problems, separated by commas.")
@click.option("--limit", default=600, show_default=True, help="Passes of plain EM, at most.")
@click.option("--seed", default=0, show_default=True)
def main(only: str | None, limit: int, seed: int) -> None:
    warnings.simplefilter("ignore")
    click.echo("| problem | plain EM | ours | on the sample | times fewer | ours − plain, nats a row | seconds |")
    click.echo("| --- | --- | --- | --- | --- | --- | --- |")
    ratios = []
    for i in map(int, only.split(",")) if only else range(len(PROBLEMS)):
        problem = PROBLEMS[i]
        X = problem.make()
        theirs, own = plain(X, problem.n_components, limit, seed), ours(X, problem.n_components, seed)
        best = max(theirs.bounds.max(), own.bounds.max())
        slow, fast = theirs.first(best), own.first(best)
        ratio = min(slow, limit) / fast
        ratios.append(ratio)
        click.echo(
            f"| {problem.name}, {len(X):,} rows, K = {problem.n_components} "
            f"| {slow if np.isfinite(slow) else f'never in {limit}'} | {fast:.1f} | {own.sampled:.1f} "
            f"| {'> ' if np.isinf(slow) else ''}{ratio:.1f} | {own.bounds.max() - theirs.bounds.max():+.1e} "
            f"| {own.total:.1f} of {theirs.total:.0f} |"
        )
    click.echo(f"\ngeometric mean: {np.exp(np.mean(np.log(ratios))):.1f} times fewer ('never' counted as {limit})")


if __name__ == "__main__":
    main()
