"""Walk through the deployment as its user: run it, let a retry resume, kill a worker mid-fit, cancel a run."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from walking import (  # noqa: E402
    N_COMPONENTS,
    OPTIONS,
    Walk,
    build_samples,
    check_resumed,
    digest,
    free_port,
    kept,
    mid_fit,
    of_dask,
    undisturbed,
    until,
)

_HARNESS = """
import sys
from prefect.testing.utilities import prefect_test_harness
with prefect_test_harness():
    from flow import label
    print(label(sys.argv[1], sys.argv[2], 2, {"max_iter": 3, "subsample": 1000}, workers=0))
"""


def main(folder: Path) -> None:
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",  # for so long a scheduler that was killed is waited for
        "DO_NOT_TRACK": "1",
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.2",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    with Walk(folder, environment) as walk, httpx.Client(base_url=api, timeout=30) as client:
        runs = Runs(walk, client, build_samples(folder / "samples.zarr"))
        walk.start("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        expected = undisturbed(runs.store, folder / "undisturbed")
        until(lambda: _up(client), "the server")
        walk.run("prefect", "work-pool", "create", "daskgmm", "--type", "process")
        walk.run("prefect", "--no-prompt", "deploy", "--all", cwd=HERE)

        run, _ = runs.begin("plain")
        runs.completed(run, "plain", expected)
        shown = runs.artifacts(run)
        assert {"daskgmm-fit-report", "daskgmm-fit-table", "daskgmm-predict-report"} <= shown.keys(), shown.keys()
        assert shown["daskgmm-fit-progress"] == 100, shown["daskgmm-fit-progress"]
        print("a run of the deployment is Completed, with its artifacts", flush=True)

        run, worker = runs.begin("retried")
        mid_fit(folder / "retried")
        of_dask(worker)[0].kill()  # its scheduler: the task fails
        until(lambda: any(state == "AwaitingRetry" for state in runs.task_states(run)), "a task that awaits its retry")
        before = kept(folder / "retried")
        runs.completed(run, "retried", expected)
        print(f"a retry {check_resumed(runs.log(run), before)}, to the same bits", flush=True)

        run, worker = runs.begin("killed")
        mid_fit(folder / "killed")
        ours, dask = worker.children(recursive=True), of_dask(worker)
        for process in [worker, *(child for child in ours if child not in dask)]:
            _kill(process)
        psutil.wait_procs(dask, timeout=60)
        assert not any(process.is_running() for process in dask), "Dask's processes outlive the run"
        before = kept(folder / "killed")
        again, _ = runs.begin("killed")
        runs.completed(again, "killed", expected)
        print(f"a run after a killed worker {check_resumed(runs.log(again), before)}, to the same bits", flush=True)

        runs.cancelled(*runs.begin("cancelled", run_once=False))
        print("a cancelled run leaves nothing on Dask", flush=True)
        environment = {key: value for key, value in walk.environment.items() if key != "PREFECT_API_URL"}
        walk.environment = environment
        walk.run(sys.executable, "-c", _HARNESS, runs.store, str(folder / "harness"), cwd=HERE)
    print(
        "prefect: a deployed flow Completed; a retry, and a run after a worker was killed mid-fit, resumed to the same "
        "bits; a cancelled run ended its Dask work; the flow ran in Prefect's test harness"
    )


class Runs:
    """Runs of the deployment, and what the server says of them."""

    def __init__(self, walk: Walk, client: httpx.Client, store: str) -> None:
        self.walk, self.client, self.store = walk, client, store

    def begin(self, name: str, run_once: bool = True) -> tuple[str, psutil.Process]:
        """A new run with an output of that name, and a worker for it."""
        parameters = {
            "store": self.store,
            "folder": str(self.walk.folder / name),
            "n_components": N_COMPONENTS,
            "options": OPTIONS,
            "workers": 2,
        }
        deployment = self.client.get("/deployments/name/daskgmm/label").raise_for_status().json()["id"]
        asked = self.client.post(f"/deployments/{deployment}/create_flow_run", json={"parameters": parameters})
        run: str = asked.raise_for_status().json()["id"]
        once = ["--run-once"] if run_once else []
        return run, self.walk.start("prefect", "worker", "start", "--pool", "daskgmm", *once)

    def state(self, run: str) -> str:
        found: str = self.client.get(f"/flow_runs/{run}").raise_for_status().json()["state"]["name"]
        return found

    def completed(self, run: str, name: str, expected: str) -> None:
        ended = until(lambda: self._ended(run), f"the end of {name!r}", 240)
        assert ended == "Completed", f"{name!r} is {ended}:\n{self.log(run)}"
        assert digest(self.walk.folder / name) == expected, f"{name!r} has other bits"

    def cancelled(self, run: str, worker: psutil.Process) -> None:
        """Cancel a run mid-fit."""
        mid_fit(self.walk.folder / "cancelled")
        dask = of_dask(worker)
        self.walk.run("prefect", "flow-run", "cancel", run)
        ended = until(lambda: self._ended(run), "the end of the cancelled run")
        assert ended == "Cancelled", f"the cancelled run is {ended}"
        psutil.wait_procs(dask, timeout=60)
        assert dask, "nothing of Dask ran when the run was cancelled"
        assert not any(process.is_running() for process in dask), "Dask's processes outlive the cancelled run"
        worker.terminate()

    def task_states(self, run: str) -> list[str]:
        asked = self.client.post("/task_runs/filter", json={"flow_runs": {"id": {"any_": [run]}}})
        return [task["state"]["name"] for task in asked.raise_for_status().json() if task["state"]]

    def artifacts(self, run: str) -> dict[str, Any]:
        asked = self.client.post("/artifacts/filter", json={"artifacts": {"flow_run_id": {"any_": [run]}}})
        return {artifact["key"]: artifact["data"] for artifact in asked.raise_for_status().json()}

    def log(self, run: str) -> str:
        time.sleep(2)  # what was logged last is on its way
        asked = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return "\n".join(entry["message"] for entry in self.client.post("/logs/filter", json=asked).json())

    def _ended(self, run: str) -> str | None:
        state = self.state(run)
        return state if state in ("Completed", "Failed", "Crashed", "Cancelled") else None


def _up(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.HTTPError:
        return False


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
