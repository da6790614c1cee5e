"""Walk through the DAGs as their user: by dag.test(), and by a LocalExecutor over the REST API; kill, cancel tasks."""

from __future__ import annotations

import secrets
import sys
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

_TESTED = """
import sys
from daskgmm_dags import choose
conf = {"store": sys.argv[1], "folder": sys.argv[2], "workers": 1}
run = choose.test(run_conf={**conf, "options": {"n_components": [1, 2], "covariance_type": ["EEE"], "max_iter": 5}})
assert run.state == "success", run.state
"""


def main(folder: Path) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(HERE / "dags"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with Walk(folder, environment) as walk:
        store = build_samples(folder / "samples.zarr")
        expected = undisturbed(store, folder / "undisturbed")
        walk.run("airflow", "db", "migrate")
        walk.run(sys.executable, "-c", _TESTED, store, str(folder / "tested"), cwd=HERE / "dags")
        print("dag.test() is a success", flush=True)

        walk.start("airflow", "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1")
        scheduler = walk.start("airflow", "scheduler", "--skip-serve-logs")
        walk.start("airflow", "dag-processor")
        token = until(lambda: _token(address), "the API server")
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=f"{address}/api/v2", headers=headers, timeout=30) as client:
            runs = Runs(walk, client, store, scheduler)
            until(runs.known, "the DAGs")
            walk_through(runs, expected)
    print(
        "airflow: dag.test() and a LocalExecutor ran the DAGs; the retry of a task killed mid-fit resumed to the same "
        "bits; a cancelled task ended its Dask work; XCom held URLs and numbers"
    )


def walk_through(runs: Runs, expected: str) -> None:
    folder = runs.walk.folder
    runs.begin("plain")
    runs.succeeded("plain", expected)
    for task in ("fit", "predict"):
        message = runs.message("plain", task)
        assert message["output"].endswith(".zarr"), message
        assert all(isinstance(value, str | int | float | bool) for value in message.values()), message
    print("a LocalExecutor's run is a success", flush=True)

    runs.begin("killed")
    mid_fit(folder / "killed")
    dask = of_dask(runs.scheduler)
    dask[0].parent().kill()  # the task
    psutil.wait_procs(dask, timeout=60)
    assert not any(process.is_running() for process in dask), "Dask's processes outlive the task"
    before = kept(folder / "killed")
    runs.succeeded("killed", expected)
    print(f"the retry of a killed task {check_resumed(runs.log('killed', 2), before)}, to the same bits", flush=True)

    runs.begin("cancelled")
    mid_fit(folder / "cancelled")
    dask = of_dask(runs.scheduler)
    runs.fail("cancelled")
    until(lambda: runs.state("cancelled") == "failed", "the end of the cancelled run")
    psutil.wait_procs(dask, timeout=60)
    assert dask, "nothing of Dask ran when the task was cancelled"
    assert not any(process.is_running() for process in dask), "Dask's processes outlive the cancelled task"
    until(lambda: "the task is cancelled" in runs.log("cancelled", 1), "on_kill in the task's log", 30)
    print("a cancelled task leaves nothing on Dask", flush=True)


class Runs:
    """Runs of the DAG, and what the REST API says of them."""

    def __init__(self, walk: Walk, client: httpx.Client, store: str, scheduler: psutil.Process) -> None:
        self.walk, self.client, self.store, self.scheduler = walk, client, store, scheduler

    def known(self) -> bool:
        return self.client.get("/dags/daskgmm_label").is_success

    def begin(self, name: str) -> None:
        """A new run with an output of that name."""
        conf = {"store": self.store, "folder": str(self.walk.folder / name), "workers": 2}
        conf["options"] = {"n_components": N_COMPONENTS, **OPTIONS}
        asked = {"dag_run_id": name, "logical_date": None, "conf": conf}
        self.client.post("/dags/daskgmm_label/dagRuns", json=asked).raise_for_status()

    def state(self, name: str) -> str:
        return str(self._get(name)["state"])

    def succeeded(self, name: str, expected: str) -> None:
        ended = until(lambda: (s := self.state(name)) in ("success", "failed") and s, f"the end of {name!r}", 240)
        assert ended == "success", f"{name!r} is {ended}:\n{self.log(name, 1)}"
        assert digest(self.walk.folder / name) == expected, f"{name!r} has other bits"

    def fail(self, name: str) -> None:
        """What a person does who marks the task as failed."""
        task = f"/dags/daskgmm_label/dagRuns/{name}/taskInstances/fit"
        self.client.patch(task, json={"new_state": "failed"}).raise_for_status()

    def message(self, name: str, task: str) -> dict[str, Any]:
        return dict(self._get(name, f"/taskInstances/{task}/xcomEntries/return_value?deserialize=true")["value"])

    def log(self, name: str, attempt: int) -> str:
        logs = self.walk.folder / "airflow" / "logs"
        found = logs.glob(f"dag_id=daskgmm_label/run_id={name}/task_id=fit/attempt={attempt}.log")
        return "\n".join(path.read_text() for path in found)

    def _get(self, name: str, more: str = "") -> dict[str, Any]:
        return dict(self.client.get(f"/dags/daskgmm_label/dagRuns/{name}{more}").raise_for_status().json())


def _token(address: str) -> str | None:
    try:
        asked = httpx.get(f"{address}/auth/token")
    except httpx.HTTPError:
        return None
    return asked.json().get("access_token") if asked.is_success else None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
