"""Execute notebooks, within a time and a memory: ``python execute.py [NAME.ipynb …]``.

Each runs in a kernel of its own, on two cores, in a folder that is removed; the files are left as they are. A line a
notebook; the exit code is 1 if one of them failed. ``PICTURES=FOLDER`` writes their pictures there.
"""

from __future__ import annotations

import base64
import contextlib
import os
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SECONDS, BYTES = 60.0, 2e9  # what each may take; of processor time, as the clock depends on what else runs
_STOP = 300  # seconds at which a cell is given up


class Watch(threading.Thread):
    """The most memory that all processes started from here held at once, and the processor time that they took."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.over = 0, threading.Event()
        self._times: dict[tuple[int, float], float] = {}  # of each process: seconds, as last seen

    def run(self) -> None:
        while not self.over.wait(0.25):
            running = psutil.Process().children(recursive=True)
            self.peak = max(self.peak, sum(map(_held, running)))
            for process in running:
                with contextlib.suppress(psutil.Error):  # it has ended
                    times = process.cpu_times()
                    self._times[process.pid, process.create_time()] = times.user + times.system

    @property
    def seconds(self) -> float:
        return sum(self._times.values())


def _held(process: psutil.Process) -> int:
    """Its own memory, and its part of what it shares."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, OSError):  # it has ended
        return 0


def execute(path: Path, pictures: Path | None) -> str:
    """Run one; what went wrong, or nothing."""
    notebook: Any = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    watch, begin, wrong = Watch(), time.perf_counter(), ""
    watch.start()
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=_STOP, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            wrong = str(error)
        seconds = time.perf_counter() - begin
        watch.over.set()
        watch.join()
        if left := os.listdir(folder):
            wrong = wrong or f"it left {', '.join(left)} where it ran"
    if not wrong and watch.seconds > SECONDS:
        wrong = f"it took more than {SECONDS:g} s of processor time"
    if not wrong and watch.peak > BYTES:
        wrong = f"it took more than {BYTES / 1e9:g} GB"
    if pictures is not None:
        keep_pictures(notebook, pictures / path.stem)
    took = f"{seconds:5.1f} s, {watch.seconds:5.1f} s of processor time, {watch.peak / 1e6:5.0f} MB"
    print(f"{path.name:28} {took}  {'failed' if wrong else 'ok'}", flush=True)
    return wrong


def keep_pictures(notebook: Any, folder: Path) -> None:
    """Write pictures, and beside them what was printed and how long each cell took."""
    folder.mkdir(parents=True, exist_ok=True)
    printed: list[str] = []
    for i, cell in enumerate(notebook.cells):
        times = [datetime.fromisoformat(each) for each in cell.metadata.get("execution", {}).values()]
        if times:
            printed.append(f"[{i}] took {(max(times) - min(times)).total_seconds():.1f} s")
        for j, output in enumerate(cell.get("outputs", ())):
            if png := output.get("data", {}).get("image/png"):
                (folder / f"{i:02}-{j}.png").write_bytes(base64.b64decode(png))
            else:
                printed.append(f"[{i}] {output.get('text') or output.get('data', {}).get('text/plain', '')}")
    (folder / "printed.txt").write_text("\n".join(printed))


def main(names: list[str]) -> int:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    pictures = Path(os.environ["PICTURES"]) if "PICTURES" in os.environ else None
    paths = [NOTEBOOKS / Path(name).name for name in names] or sorted(NOTEBOOKS.glob("*.ipynb"))
    failures = {path.name: wrong for path in paths if (wrong := execute(path, pictures))}
    for name, wrong in failures.items():
        print(f"\n{name}:\n{wrong}", file=sys.stderr)
    done = f"{len(paths)} notebooks ran, each within {SECONDS:g} s of processor time and {BYTES / 1e9:g} GB"
    print(f"failed: {', '.join(failures)}" if failures else f"{done}: all that they assert holds")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
