"""JupyterHub on one machine, whose users start Dask clusters of their own through dask-gateway.

On loopback: HUB_PORT is the public proxy's, the four after it are those of its API, the hub, the gateway's HTTP and its
schedulers. A reverse proxy with TLS stands in front of the first.
"""

import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821
port = int(os.environ.get("HUB_PORT", "8000"))
gateway_config = Path(__file__).resolve().parent.parent / "gateway" / "dask_gateway_config.py"

c.JupyterHub.bind_url = f"http://127.0.0.1:{port}"
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{port + 1}"
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{port + 2}"

# Unix accounts: members of the group "jupyter" log in with their password, and their servers run as they.
c.JupyterHub.authenticator_class = "pam"
c.PAMAuthenticator.allowed_groups = {"jupyter"}
c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"
c.Spawner.default_url = "/lab"

# The token of a user's server is the one that the gateway sees: it must be allowed to reach the gateway.
reach_gateway = "access:services!service=dask-gateway"
c.JupyterHub.load_roles = [
    {"name": "user", "scopes": ["self", reach_gateway]},
    {"name": "server", "scopes": ["users:activity!user", "access:servers!server", reach_gateway]},
]
c.JupyterHub.services = [
    {
        "name": "dask-gateway",
        "url": f"http://127.0.0.1:{port + 3}",
        "command": [sys.executable, "-m", "dask_gateway_server", "-f", str(gateway_config)],
        "environment": {"GATEWAY_PORT": str(port + 3)},
        "display": False,
    }
]
# What Gateway() without arguments needs to know, in any notebook.
c.Spawner.environment = {
    "DASK_GATEWAY__ADDRESS": f"http://127.0.0.1:{port}/services/dask-gateway",
    "DASK_GATEWAY__PUBLIC_ADDRESS": "/services/dask-gateway",  # links to dashboards, in the user's browser
    "DASK_GATEWAY__PROXY_ADDRESS": f"gateway://127.0.0.1:{port + 4}",
    "DASK_GATEWAY__AUTH__TYPE": "jupyterhub",
}
