"""The hub's configuration, but for what needs Unix accounts: the check runs all as whoever starts it."""

import os

c = get_config()  # noqa: F821
load_subconfig("jupyterhub_config.py", path=os.path.dirname(os.path.abspath(__file__)))  # noqa: F821

c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = os.environ["CHECK_PASSWORD"]
c.Authenticator.allowed_users = set(os.environ["CHECK_USERS"].split(","))
c.JupyterHub.spawner_class = "simple"  # no change of account, and a home in the check's folder
c.SimpleLocalProcessSpawner.home_dir_template = os.environ["CHECK_HOMES"] + "/{username}"
if os.getuid() == 0:
    c.Spawner.args = ["--allow-root"]
