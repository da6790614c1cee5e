"""What a user does, with real servers: log in, start a server, fit on a gateway's cluster; and what others must not do.

`check` makes the environment and calls this with a folder for all files. Ends all that it started, whatever happens.
"""

from __future__ import annotations

import ctypes
import getpass
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import zarr
from jupyter_kernel_client import JupyterKernelClient

from daskgmm import load

HERE = Path(__file__).resolve().parent
GATEWAY = "/services/dask-gateway/api/v1/clusters/"
USER, OTHER = getpass.getuser(), "somebody-else"  # the gateway starts clusters as the account of this name
FOREVER = """
GaussianMixture(
    3, random_state=0, subsample=None, accelerate=False, init_params="random", tol=0, max_iter=10**6,
    callbacks=[lambda info: (home / "passes").touch()],
).fit(home / "rows.zarr")
"""
NO_ANNOTATIONS = """
alone = GaussianMixture(n_components=3, random_state=0).fit(home / "rows.zarr")  # on the threads of the kernel
alone.save(home / "alone.zarr")
alone.predict(home / "rows.zarr").to_zarr(home / "alone-labels.zarr")
"""


def until(what: str, true: Callable[[], Any], seconds: float = 90) -> Any:
    """What `true` returns once it is true, in so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.2)
    raise TimeoutError(f"{what}: not within {seconds:g} s")


def free_ports(count: int) -> int:
    """The first of so many neighbouring ports on which nobody listens."""
    for first in range(20000 + secrets.randbelow(9000), 60000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for i, each in enumerate(sockets):
                each.bind(("127.0.0.1", first + i))
            return first
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise OSError("no free ports")


def started() -> list[psutil.Process]:
    """All processes that live and descend from this one, those that have lost their parents, too."""
    return [each for each in psutil.Process().children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def hub(folder: Path, password: str) -> Iterator[str]:
    """JupyterHub, which starts its proxy and the gateway: its URL."""
    port = free_ports(5)
    env = {
        "HUB_PORT": str(port),
        "CHECK_PASSWORD": password,
        "CHECK_USERS": f"{USER},{OTHER}",
        "CHECK_HOMES": str(folder),
    }
    url, log = f"http://127.0.0.1:{port}", folder / "hub.log"
    command = [sys.executable, "-m", "jupyterhub", "-f", str(HERE / "check_config.py")]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | env, stdout=out, stderr=out, start_new_session=True
        )
    try:

        def up() -> bool:
            if process.poll() is not None:
                raise RuntimeError("the hub ended")
            try:
                answer = requests.get(url + GATEWAY, timeout=5)
            except requests.ConnectionError:
                return False
            return answer.status_code == 401  # the gateway, by the hub's proxy, asks who it is

        until("hub, proxy and gateway", up)
        yield url
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        until("the end of all that the hub started", lambda: not started(), 30)
    except BaseException:
        print(log.read_text()[-6000:], file=sys.stderr)
        raise
    finally:
        for each in started():
            each.kill()


def log_in(url: str, user: str, password: str) -> str | None:
    """A token that the user asks for once he has logged in as a browser does; None where he is refused."""
    session = requests.Session()
    session.get(f"{url}/hub/login", timeout=30)
    form = {"username": user, "password": password, "_xsrf": session.cookies.get("_xsrf", path="/hub/")}
    answer = session.post(f"{url}/hub/login", data=form, allow_redirects=False, timeout=30)
    if answer.status_code != 302:
        return None
    session.get(f"{url}/hub/token", timeout=30)
    answer = session.post(
        f"{url}/hub/api/users/{user}/tokens",
        headers={"X-XSRFToken": session.cookies.get("_xsrf", path="/hub/")},
        json={"expires_in": 3600},
        timeout=30,
    )
    answer.raise_for_status()
    return str(answer.json()["token"])


def start_server(url: str, token: str) -> None:
    """The user's own server, as the button of the hub's page starts it."""
    headers = {"Authorization": f"token {token}"}
    requests.post(f"{url}/hub/api/users/{USER}/server", headers=headers, timeout=60).raise_for_status()

    def ready() -> bool:
        user = requests.get(f"{url}/hub/api/users/{USER}", headers=headers, timeout=30).json()
        return bool(user["servers"].get("", {}).get("ready"))

    until("the user's server", ready)


def run(kernel: JupyterKernelClient, code: str) -> str:
    """What a cell printed or displayed, as text; an error in the cell is one here."""
    reply = kernel.execute(code, timeout=180)
    text = "".join(
        output.get("text") or output.get("data", {}).get("text/plain") or "\n".join(output.get("traceback", []))
        for output in reply["outputs"]
    )
    if reply["status"] != "ok":
        raise RuntimeError(f"this cell failed:\n{code}\n{text}")
    return text


def nobody_else(url: str, cluster: str, owner: str, other: str) -> None:
    """A cluster is shown to its owner only, and nothing listens beyond loopback."""

    def status(token: str | None, name: str) -> tuple[int, str]:
        headers = {"Authorization": f"jupyterhub {token}"} if token else {}
        answer = requests.get(url + GATEWAY + name, headers=headers, timeout=30)
        return answer.status_code, answer.text

    assert status(owner, cluster)[0] == 200
    assert status(None, cluster)[0] == 401
    assert status(secrets.token_hex(16), cluster)[0] in (401, 403, 500)
    assert status(other, cluster)[0] in (403, 404), status(other, cluster)
    code, listed = status(other, "")
    assert code == 200, listed
    assert cluster not in listed
    processes = started()
    open_to = {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert open_to == {"127.0.0.1"}, open_to
    roles = [" ".join(process.cmdline()) for process in processes]
    assert sum("dask scheduler" in role for role in roles) == 1, roles
    assert sum("dask worker" in role for role in roles) == 2, roles


def interrupted(kernel: JupyterKernelClient, home: Path) -> None:
    """A fit without end, and the stop button: the kernel goes on, and the cluster has nothing left to do."""
    replies: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: replies.append(kernel.execute(FOREVER, timeout=120)))
    thread.start()
    until("the first pass", (home / "passes").exists)
    kernel.interrupt()
    thread.join(120)
    assert replies, "the fit did not end"
    assert "KeyboardInterrupt" in json.dumps(replies[0]["outputs"]), replies
    assert "True" in run(kernel, "client.submit(sum, [1, 1]).result(60) == 2 and not any(client.processing().values())")


def same_alone(home: Path) -> str:
    """The model and the labels of the cluster are, bit for bit, what the notebook's process finds alone."""
    on_cluster, alone = load(home / "model.zarr"), load(home / "alone.zarr")
    for name in ("weights_", "means_", "covariances_"):
        np.testing.assert_array_equal(getattr(on_cluster, name), getattr(alone, name), err_msg=name)
    labels = zarr.open_array(home / "labels.zarr", mode="r")[:]
    np.testing.assert_array_equal(labels, zarr.open_array(home / "alone-labels.zarr", mode="r")[:])
    shares = np.sort(np.bincount(labels) / len(labels))
    np.testing.assert_allclose(shares, [0.2, 0.3, 0.5], atol=0.005)
    return f"{len(labels):,} rows, weights {np.sort(on_cluster.weights_).round(3).tolist()}"


def main(folder: Path) -> None:
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what loses its parent becomes a child of this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun, password = time.monotonic(), secrets.token_hex(16)
    (folder / USER).mkdir()
    with hub(folder, password) as url:
        assert log_in(url, USER, password + "?") is None
        owner, other = log_in(url, USER, password), log_in(url, OTHER, password)
        assert owner
        assert other
        start_server(url, owner)
        cells = json.loads((HERE / "gateway.ipynb").read_text())["cells"]
        *first, last = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        headers = {"Authorization": f"token {owner}"}
        # A hub's servers take no token from the URL of a websocket, where this client has it: the header, too.
        there = {"server_url": f"{url}/user/{USER}", "token": owner, "client_kwargs": {"headers": dict(headers)}}
        with JupyterKernelClient(**there) as kernel:
            for code in first:
                run(kernel, code)
            nobody_else(url, run(kernel, "print(cluster.name)").strip(), owner, other)
            interrupted(kernel, folder / USER)
            run(kernel, last + NO_ANNOTATIONS)
        requests.delete(f"{url}/hub/api/users/{USER}/server", headers=headers, timeout=60).raise_for_status()
    found = same_alone(folder / USER)
    print(
        f"JupyterHub and dask-gateway: a user logged in and fitted on a cluster of his own ({found}; the bits of one "
        "process); others do not see it; nothing listens beyond loopback; an interrupted fit leaves kernel and cluster "
        f"usable; nothing is left running; {time.monotonic() - begun:.0f} s"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
