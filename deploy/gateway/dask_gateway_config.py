"""dask-gateway on one machine: schedulers and workers run under the Unix account of the JupyterHub user who asks.

JupyterHub starts it as a service (../jupyterhub/jupyterhub_config.py) and passes GATEWAY_PORT; JUPYTERHUB_API_TOKEN,
JUPYTERHUB_API_URL and JUPYTERHUB_SERVICE_NAME come from there, too.
"""

import os
import pwd
import sys
from pathlib import Path

from dask_gateway_server.backends.local import LocalBackend

c = get_config()  # noqa: F821
port = int(os.environ.get("GATEWAY_PORT", "8003"))


class AccountBackend(LocalBackend):
    """LocalBackend, which gives the user his cluster's folder and nothing else.

    In dask-gateway 2026.3 LocalBackend.setup_working_directory says `paths.extend(path)` of a string, so that each
    letter of it counts as a path: started as root it would give "/" to the user, and then fail.
    """

    def set_file_permissions(self, paths, username):
        folder, account = Path(paths[0]), pwd.getpwnam(username)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


c.DaskGateway.backend_class = AccountBackend
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.JupyterHubAuthenticator"

# The gateway's own proxy: HTTP for JupyterHub's proxy, and TLS to the schedulers, which the clients' certificates open.
c.Proxy.address = f"127.0.0.1:{port}"
c.Proxy.tcp_address = f"127.0.0.1:{port + 1}"
c.Proxy.prefix = "/services/dask-gateway"

# The defaults, dask-scheduler and dask-worker, are gone since distributed 2026.6. LocalBackend binds the scheduler and
# all dashboards to loopback, but of a worker only the dashboard.
c.ClusterConfig.scheduler_cmd = [sys.executable, "-m", "dask", "scheduler"]
c.ClusterConfig.worker_cmd = [sys.executable, "-m", "dask", "worker", "--host", "127.0.0.1"]

# daskgmm's workers hold 240 MiB, and 16 to 64 MiB a thread; the rest keeps rows. Per cluster.
# notebooks/memory-and-chunks.md has the formula.
c.ClusterConfig.worker_cores = 1
c.ClusterConfig.worker_memory = "1 G"
c.ClusterConfig.cluster_max_workers = 8
c.ClusterConfig.idle_timeout = 1800  # seconds
