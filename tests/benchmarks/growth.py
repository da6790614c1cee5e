"""Many passes over many small blocks: does memory level off, and does a pass go on taking the same time?

``python tests/benchmarks/growth.py [PASSES [BLOCKS]]``, by default 500 passes over 2000 blocks of 100 rows, on two
workers: a line at each tenth of the passes, with the seconds a pass since the line before it (the first: with the
survey and the start), and what the processes hold, in MiB.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr

import daskgmm.data.blocks
from daskgmm import GaussianMixture
from daskgmm.passes.cluster import workers

_ROWS = 100  # of a block


def main(passes: int = 500, blocks: int = 2000) -> None:
    daskgmm.data.blocks.BLOCK_VALUES = daskgmm.data.blocks._REGION_VALUES = 2 * _ROWS
    driver, begin, n = psutil.Process(), time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder, workers(None, 2, "1GiB") as client:
        rows = np.random.default_rng(0).normal(size=(blocks * _ROWS, 2))
        zarr.create_array(str(path := Path(folder) / "x.zarr"), data=rows, chunks=(_ROWS, 2), shards=(100 * _ROWS, 2))
        pids = {"scheduler": client.run_on_scheduler(_pid), **client.run(_pid)}
        held = {"driver": driver, **{name: psutil.Process(pid) for name, pid in pids.items()}}
        print("passes  s/pass  " + "  ".join(name.rpartition("/")[2] for name in held), flush=True)

        def watch(info: Any) -> None:
            nonlocal begin, n
            if info.stage != "data":
                begin = time.perf_counter()
                return
            n += 1
            if n % max(1, passes // 10) == 0:
                seconds, begin = (time.perf_counter() - begin) / max(1, passes // 10), time.perf_counter()
                sizes = (f"{process.memory_info().rss / 2**20:.0f}" for process in held.values())
                print(f"{n:6}  {seconds:6.2f}  " + "  ".join(sizes), flush=True)

        GaussianMixture(2, random_state=0, tol=0, max_iter=passes, persist=False, callbacks=[watch]).fit(path)


def _pid(dask_scheduler: Any = None) -> int:
    import os

    return os.getpid()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
