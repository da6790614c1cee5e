"""What can be known of the manifests without a Kubernetes cluster.

1. Each is what the operator's CRD says, with no field that the CRD does not know (Kubernetes would drop it).
2. What the operator would make of it, by the operator's own functions, is what Kubernetes says, strictly, in the oldest
   and newest version that kubernetes-validate knows.
3. Its containers' commands, with their environment, run here as processes on loopback: a scheduler and workers that
   speak TLS only, and the job's fit on a local store. Arguments are put before each command: those of a container, say.
"""

from __future__ import annotations

import copy
import functools
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask_kubernetes.operator
import jsonschema
import kubernetes_validate
import numpy as np
import yaml
import zarr
from dask_kubernetes.operator.controller import controller
from dask_kubernetes.operator.validation import validate_cluster_name
from distributed import Client, Security
from kubernetes_validate.utils import all_versions

from daskgmm import load

HERE = Path(__file__).resolve().parent
CRDS = Path(dask_kubernetes.operator.__file__).parent / "deployment/helm/dask-kubernetes-operator/crds"
WORKERS = 2  # processes here, for the replicas there


def strict(schema: Any) -> Any:
    """The schema, where an object with named properties has no others."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    return out


def read(path: Path) -> Any:
    """YAML: libyaml takes a tenth of the time, where PyYAML has it."""
    return yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@functools.cache
def crd(kind: str) -> tuple[str, jsonschema.Draft7Validator]:
    """A kind's apiVersion, and what checks its spec."""
    definition = read(CRDS / f"{kind.lower()}.yaml")["spec"]
    [version] = definition["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return f"{definition['group']}/{version['name']}", jsonschema.Draft7Validator(strict(schema))


def against_crd(manifest: dict[str, Any]) -> None:
    """Raises jsonschema's error, which names the field."""
    api_version, validator = crd(manifest["kind"])
    assert manifest["apiVersion"] == api_version
    validator.validate(manifest["spec"])
    validate_cluster_name(manifest["metadata"]["name"])


def made_of(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the operator creates: Deployments, a Service, a Pod; and DaskCluster and DaskWorkerGroup on the way."""
    name, namespace, spec = manifest["metadata"]["name"], "somewhere", manifest["spec"]
    if manifest["kind"] == "DaskJob":
        spec = spec["cluster"]["spec"]
        cluster = controller.build_cluster_spec(name, spec["worker"], spec["scheduler"], {}, {})
        against_crd(cluster)
        yield controller.build_job_pod_spec(name, name, namespace, manifest["spec"]["job"]["spec"], {}, {})
    group = controller.build_default_worker_group_spec(name, spec["worker"], {}, {})
    against_crd(group)
    yield controller.build_scheduler_deployment_spec(name, spec["scheduler"]["spec"], {}, {})
    service = controller.build_scheduler_service_spec(name, spec["scheduler"]["service"], {}, {})
    assert service["spec"]["selector"].items() <= service["metadata"]["labels"].items()  # it finds the scheduler
    yield service
    pod = copy.deepcopy(spec["worker"]["spec"])
    yield controller.build_worker_deployment_spec(f"{name}-default", namespace, name, "0123456789", pod, {}, {})


def containers(resources: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each pod the one container, by its name; and what all must have."""
    found = {}
    for resource in resources:
        pod = resource["spec"].get("template", resource)["spec"]
        if "containers" in pod:
            [container] = pod["containers"]
            found[container["name"]] = container
            assert pod["securityContext"]["runAsNonRoot"]
            assert not pod["automountServiceAccountToken"]
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["resources"]["limits"]["memory"]
            assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    return found


def command(
    container: dict[str, Any], replaced: dict[str, str], more: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """The container's command and environment, as Kubernetes expands them, with other names for what is elsewhere."""
    env = {each["name"]: each["value"] for each in container["env"]} | more
    args = list(container["args"])
    for name, value in env.items():
        args = [arg.replace(f"$({name})", value) for arg in args]
    for old, new in replaced.items():
        args = [arg.replace(old, new) for arg in args]
        env = {name: value.replace(old, new) for name, value in env.items()}
    return args, env


def certificates(folder: Path) -> None:
    """As the Secret daskgmm-tls has them: an authority, and a pair of its making for all pods."""
    security = Security.temporary()
    folder.mkdir()
    (folder / "ca.crt").write_text(security.tls_ca_file)
    (folder / "tls.crt").write_text(security.tls_scheduler_cert)
    (folder / "tls.key").write_text(security.tls_scheduler_key)


def run(found: dict[str, dict[str, Any]], folder: Path, prefix: list[str]) -> str:
    """Scheduler, workers and job as processes here: the model that the job wrote."""
    certificates(folder / "tls")
    centres = np.array([[0.0, 0.0], [9.0, 3.0], [-5.0, 8.0]])
    rng = np.random.default_rng(0)
    rows = centres[rng.choice(3, size=60_000, p=[0.5, 0.3, 0.2])] + rng.standard_normal((60_000, 2))
    store = zarr.create_group(folder / "bucket" / "ocean.zarr")
    for name, values in zip(("temperature", "salinity"), rows.T, strict=True):
        store.create_array(name, data=values, chunks=(10_000,), dimension_names=["sample"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = next(each["value"] for each in found["scheduler"]["env"] if each["name"] == "DASK_SCHEDULER_ADDRESS")
    replaced = {"/etc/dask-tls": f"{folder}/tls", "s3://bucket": f"{folder}/bucket", "127.0.0.1:8787": "127.0.0.1:0"}
    replaced |= {address: "tls://127.0.0.1:8786", "8786": port}  # in this order
    processes = []

    def start(name: str, *extra: str, **more: str) -> subprocess.Popen[bytes]:
        args, env = command(found[name], replaced, more)
        with (folder / f"{name}.log").open("ab") as log:
            command_line, env = [*prefix, *args, *extra], os.environ | env
            process = subprocess.Popen(command_line, env=env, stdout=log, stderr=log, cwd=folder)
        processes.append(process)
        return process

    try:
        start("scheduler", "--host", "127.0.0.1")
        for i in range(WORKERS):
            start("worker", "--host", "127.0.0.1", DASK_WORKER_NAME=f"worker-{i}")
        job = start("job")
        if job.wait(240):
            raise RuntimeError(f"the job failed: {shlex.join(map(str, job.args))}")
        try:
            Client(f"tcp://127.0.0.1:{port}", timeout="3s").close()
        except OSError:
            pass
        else:
            raise AssertionError("the scheduler took a client without TLS")
    except BaseException:
        for log in folder.glob("*.log"):
            print(f"--- {log.name}", log.read_text()[-3000:], sep="\n", file=sys.stderr)
        raise
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)
    model = load(folder / "bucket" / "daskgmm-fit" / "model.zarr")
    assert model.n_samples_ == len(rows)
    assert model.converged_
    return f"a fit of {model.n_components} components to {len(rows):,} rows"


def main() -> None:
    versions = all_versions()
    kinds, found = [], {}
    for path in sorted(HERE.glob("*.yaml")):
        manifest = read(path)
        against_crd(manifest)
        resources = list(made_of(manifest))
        for resource in resources:
            for version in (versions[0], versions[-1]):
                kubernetes_validate.validate(resource, version, strict=True)
        kinds.append(f"{manifest['kind']} → {', '.join(resource['kind'] for resource in resources)}")
        found |= containers(resources)
    with tempfile.TemporaryDirectory() as folder:
        fitted = run(found, Path(folder), sys.argv[1:])
    print(
        f"manifests: {'; '.join(kinds)}: as CRDs and Kubernetes {versions[0]} to {versions[-1]} want them, offline; "
        f"their commands ran here over TLS ({fitted})"
    )


if __name__ == "__main__":
    main()
