"""Write models and checkpoints that later versions have to read: ``python earlier.py FOLDER``, under daskgmm 0.1.0.

Two fits are left after six passes; ``expected.json`` holds what the same fits find when nothing stops them, and what
the models say of the rows. The folder is kept as 0.1.0.zip.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import daskgmm.checkpointing  # where 0.1.0 has it
import numpy as np

import daskgmm


class Stop(Exception):
    pass


def stop_at(n_iter: int) -> Any:
    def watch(info: Any) -> None:
        if info.stage == "data" and info.n_iter == n_iter:
            raise Stop

    return watch


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    daskgmm.checkpointing._INTERVAL = 0
    rng = np.random.default_rng(0)
    x = np.repeat([[0.0, 0, 0], [6, 1, -5], [-4, 8, 3]], 400, axis=0) + rng.standard_normal((1200, 3))
    rng.shuffle(x)
    b = (rng.random((1200, 4)) < np.repeat(rng.random((3, 4)), 400, axis=0)).astype("u1")
    x = x.astype(np.float32)
    np.savez_compressed(folder / "rows.npz", x=x, b=b)
    x = x.astype(np.float64)
    expected: dict[str, Any] = {}
    for name, mixture, rows in (
        ("full", daskgmm.GaussianMixture(3, random_state=0), x),
        ("bayesian", daskgmm.BayesianGaussianMixture(3, covariance_type="diag", random_state=0), x),
        ("bernoulli", daskgmm.BernoulliMixture(3, random_state=0), b),
    ):
        mixture.fit(rows).save(folder / name)
        expected[name] = {
            "predict": mixture.predict(rows)[:20].tolist(),
            "score": mixture.score(rows),
            "lower_bound": mixture.lower_bound_,
        }
    options = {"random_state": 0, "subsample": None, "init_params": "random", "tol": 1e-9, "max_iter": 40}
    for name, mixture, rows in (("full", daskgmm.GaussianMixture, x), ("bernoulli", daskgmm.BernoulliMixture, b)):
        name = f"checkpoint-{name}"
        try:
            mixture(3, **options, checkpoint=folder / name, callbacks=[stop_at(6)]).fit(rows)
        except Stop:
            whole = mixture(3, **options).fit(rows)
            expected[name] = {"means": whole.means_.tolist(), "lower_bounds": list(whole.lower_bounds_)}
    (folder / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
