"""Fits in processes of their own that can be killed: ``python driver.py STORE FOLDER N SEED`` prints a line a kill.

A fit is killed (SIGKILL) at a random moment, and the same call made again. The line, JSON, says whether it ended with
the bits of a fit that was not killed, and how many rows both read beyond those of one fit.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import distributed  # noqa: F401  what a fit needs is imported once
import numpy as np
import sklearn.cluster  # noqa: F401

import daskgmm.data.blocks
import daskgmm.estimators.gaussian
import daskgmm.fitting.checkpoint
import daskgmm.fitting.fit
from daskgmm.data.blocks import Source

ROWS_A_BLOCK = 500


def fit(store: str, folder: Path, checkpoint: Path | None) -> None:
    """In a child: writes what was fitted, and as many bytes to ``read`` as rows were read."""
    read, log = Source.read, os.open(folder / "read", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def counted(source: Source, region: Any) -> Any:
        time.sleep(1e-3)
        found = read(source, region)
        if source.store_root is not None:
            os.write(log, b"." * len(found[0]))
        return found

    blocks = daskgmm.data.blocks
    with (
        mock.patch.object(blocks, "BLOCK_VALUES", 3 * ROWS_A_BLOCK),
        mock.patch.object(blocks, "_REGION_VALUES", 3 * ROWS_A_BLOCK),
        mock.patch.object(Source, "read", counted),
        mock.patch.object(daskgmm.fitting.checkpoint, "_INTERVAL", 0),
    ):
        model = daskgmm.estimators.gaussian.GaussianMixture(
            3, random_state=0, subsample=None, n_init=2, tol=1e-9, max_iter=8, persist=False, checkpoint=checkpoint
        ).fit(store)
    found = [getattr(model, f"{name}_").tobytes() for name in ("weights", "means", "covariances")]
    partial = folder / "partial"
    partial.write_bytes(pickle.dumps((found, model.lower_bounds_, model.n_passes_)))
    partial.rename(folder / "found")


def child(store: str, folder: Path, checkpoint: Path | None) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            fit(store, folder, checkpoint)
        finally:
            os._exit(0)
    return pid


def run(store: str, folder: Path, checkpoint: Path | None) -> tuple[Any, float]:
    begin = time.perf_counter()
    os.waitpid(child(store, folder, checkpoint), 0)
    return pickle.loads((folder / "found").read_bytes()), time.perf_counter() - begin


def main(store: str, folder: Path, n: int, seed: int) -> None:
    moments = random.Random(seed)
    (folder / "undisturbed").mkdir()
    daskgmm.GaussianMixture(init_params="random").fit(np.eye(3))  # compiles, or loads what was, for all children
    expected, seconds = run(store, folder / "undisturbed", None)
    rows = (folder / "undisturbed" / "read").stat().st_size
    for i in range(n):
        (here := folder / str(i)).mkdir()
        pid = child(store, here, here / "kept")
        time.sleep(moments.uniform(0, 1.1 * seconds))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        left = sorted(path.name for path in (here / "kept").glob("*")) if (here / "kept").exists() else []
        before = (here / "read").stat().st_size if (here / "read").exists() else 0
        found, _ = run(store, here, here / "kept")
        lost = ((here / "read").stat().st_size - rows) / (rows / expected[2])
        print(json.dumps({"same": found == expected, "lost": lost, "read": before / rows, "left": left}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
