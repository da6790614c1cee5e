"""Predict in forked processes that are killed before their n-th change of the target: run by test_predict.py.

Reads lines of JSON, [store, target, n], and answers each with how many changes there were; 0 kills none.
"""

import json
import os
import signal
import sys

import xarray  # noqa: F401  what a run needs is imported once

from daskgmm import load, open_samples
from daskgmm.prediction.predict import LABELS, PROBA
from daskgmm.prediction.write import write_predictions

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def run(model: str, store: str, target: str, n: int, answer: int) -> None:
    count = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if event not in CHANGES or not str(args[0]).startswith(target):
            return
        if event == "open" and not int(str(args[2])) & (os.O_WRONLY | os.O_RDWR):
            return
        count += 1
        if count == n:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    outputs = (LABELS, PROBA)
    write_predictions(open_samples(store), load(model)._components(), outputs, target, origin="x")
    os.write(answer, str(count).encode())


if __name__ == "__main__":
    for line in sys.stdin:
        store, target, n = json.loads(line)
        reading, writing = os.pipe()
        if not (pid := os.fork()):
            run(sys.argv[1], store, target, n, writing)
            os._exit(0)
        os.close(writing)
        _, status = os.waitpid(pid, 0)
        print(json.dumps([os.WTERMSIG(status), int(os.read(reading, 20) or 0)]), flush=True)
        os.close(reading)
