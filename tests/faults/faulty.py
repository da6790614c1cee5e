"""What a worker loads before it starts (``dask worker --preload``): reads as slow, or as deadly, as a test asks for."""

from __future__ import annotations

import os
import time
from typing import Any

from daskgmm.data.blocks import Source

SECONDS = float(os.environ.get("FAULTY_SECONDS", 0))  # that each read takes longer
DEADLY_ROW = int(os.environ.get("FAULTY_ROW", -1))  # with which the process ends
READ = vars(Source).get("sound", Source.read)  # Dask loads this file more than once


def read(source: Source, region: Any) -> Any:
    time.sleep(SECONDS)
    if region[0].start <= DEADLY_ROW < region[0].stop:
        os._exit(1)
    return READ(source, region)


Source.sound = READ  # type: ignore[attr-defined]
Source.read = read  # type: ignore[method-assign]
