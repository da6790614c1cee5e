#!/usr/bin/env bash
# Under Dask's nanny every large buffer is mapped anew, which doubles the time of reads that allocate.
#
# Expected: a worker's C library gives a freed buffer to the next array of its size, as it does in any other process.
# Seen: the nanny starts workers with MALLOC_TRIM_THRESHOLD_=65536. Setting it also fixes glibc's threshold for mapping
# at 128 KiB, which otherwise grows with use: each buffer above that is mapped, and each of its pages faults, every time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q distributed==2026.8.0 dask==2026.8.0 numpy==2.4.6

cat >look.py <<'P'
import os
import platform
import sys

import dask.config
import distributed
import numpy as np
from distributed import Client, LocalCluster

N, SIZE = 200, 2**20  # buffers, one after another; bytes of each: 256 pages


def faults():
    import os
    import resource

    import numpy as np

    for _ in range(20):
        np.ones(SIZE, np.uint8)  # glibc learns how large buffers are
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(N):
        np.ones(SIZE, np.uint8)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return (after - before) / N, os.environ.get("MALLOC_TRIM_THRESHOLD_")


if __name__ == "__main__":
    print("distributed", distributed.__version__, "numpy", np.__version__, *platform.libc_ver())
    here, _ = faults()
    dask.config.set({"distributed.scheduler.worker-ttl": None})
    with LocalCluster(1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        there, variable = client.submit(faults).result()
    print(f"page faults a buffer of 1 MiB: {here:.1f} in this process, {there:.1f} in a worker ({variable=})")
    print("expected: about none in both")
    sys.exit(not (here < 30 and there > 200 and variable == "65536"))
P
env -u MALLOC_TRIM_THRESHOLD_ venv/bin/python look.py
