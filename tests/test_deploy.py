"""deploy/ for KubeRay, offline; nothing was applied.

Covered: every field that the files use, by name, type, form and necessity, as KubeRay 1.7 and Kubernetes define them,
written down here in our own words (a field that is not listed is refused); what KubeRay's operator refuses besides;
what Ray's own autoscaler reads out of them; and KubeRay's own definitions, where they are at hand. Not covered: names
that only a cluster knows (image, service account, node labels, Secret).
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from ray.autoscaler._private.kuberay import autoscaling_config

from raypp.load_config import load_experiment

ROOT = Path(__file__).resolve().parent.parent
FILES = ("raycluster.yaml", "rayjob.yaml")

# --- the fields used, as they are defined ----------------------------------------------------------------------------


def fields(*required: str, **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def each(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}  # Kubernetes refuses numbers and booleans here
FLAG = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
NAME = {"type": "string", "pattern": r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"}
QUANTITY = {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY, "required": ["cpu", "memory"]}
SECRET_KEY = fields("name", "key", name=NAME, key=TEXT, optional=FLAG)
CONTAINER = fields(
    "name",
    "image",
    "resources",
    name=NAME,
    image=TEXT,
    env=each(
        fields("name", name=TEXT, value={"type": "string"}, valueFrom=fields("secretKeyRef", secretKeyRef=SECRET_KEY))
    ),
    ports=each(fields("containerPort", name={**NAME, "maxLength": 15}, containerPort={**COUNT, "maximum": 65535})),
    resources=fields("requests", "limits", requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=each(fields("name", "mountPath", name=NAME, mountPath=TEXT)),
)
POD = fields(
    "spec",
    spec=fields(
        "containers",
        containers=each(CONTAINER),
        serviceAccountName=NAME,
        restartPolicy=one_of("Always", "OnFailure", "Never"),
        nodeSelector=TEXTS,
        tolerations=each(
            fields(
                key=TEXT,
                operator=one_of("Exists", "Equal"),
                effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
            )
        ),
        terminationGracePeriodSeconds=COUNT,
        volumes=each(
            fields("name", "emptyDir", name=NAME, emptyDir=fields(medium=one_of("", "Memory"), sizeLimit=QUANTITY))
        ),
    ),
)
WORKERS = fields(
    "groupName",
    "minReplicas",
    "maxReplicas",
    "template",
    groupName=NAME,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    template=POD,
)
CLUSTER = fields(
    "rayVersion",
    "headGroupSpec",
    "workerGroupSpecs",
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=fields("mode", mode=one_of("token", "disabled")),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(version=one_of("v1", "v2"), idleTimeoutSeconds=COUNT),
    headGroupSpec=fields("template", rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=each(WORKERS),
)
JOB = fields(
    "entrypoint",
    "rayClusterSpec",
    entrypoint=TEXT,
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER,
)


def manifest(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    heads = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": fields("name", name=NAME)}
    return fields("apiVersion", "kind", "metadata", "spec", **heads, spec=spec)


SCHEMAS = {"RayCluster": manifest("RayCluster", CLUSTER), "RayJob": manifest("RayJob", JOB)}


def problems(loaded: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest: by the fields' definitions, then by what the operator and the scheduler refuse."""
    schema = SCHEMAS.get(loaded.get("kind", ""), SCHEMAS["RayCluster"])
    found = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in Draft7Validator(schema).iter_errors(loaded)
    ]
    if found:
        return found
    cluster = cluster_of(loaded)
    if cluster["authOptions"]["mode"] == "token" and tuple(map(int, cluster["rayVersion"].split("."))) < (2, 52, 0):
        found.append("authOptions: token needs Ray 2.52")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        if cluster["autoscalerOptions"]["version"] == "v2" and pod["restartPolicy"] != "Never":
            found.append("restartPolicy: must be Never with autoscaler v2")
        if group.get("minReplicas", 0) > group.get("maxReplicas", 0):
            found.append("minReplicas: above maxReplicas")
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            if requests != limits:
                found.append("resources: what is not reserved is taken away when the machine is full")
            found += [
                f"volumeMounts: no volume {m['name']}"
                for m in container.get("volumeMounts", [])
                if m["name"] not in volumes
            ]
    return found


def cluster_of(loaded: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = loaded["spec"]
    return spec if loaded["kind"] == "RayCluster" else dict(spec["rayClusterSpec"])


def autoscaling(loaded: dict[str, Any]) -> dict[str, Any]:
    """What Ray's autoscaler makes of it, checked by Ray's own schema on the way."""
    resource = {"metadata": {"name": "raypp", "namespace": "default"}, "spec": cluster_of(loaded)}
    return dict(autoscaling_config._derive_autoscaling_config_from_ray_cr(resource))


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / name).read_text())
    return loaded


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_field_is_one_and_has_its_form(name: str) -> None:
    assert problems(load(name)) == []


def strict(schema: Any) -> Any:
    """A schema of Kubernetes as JSON Schema, which refuses unknown fields as `kubectl apply` does."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    converted = {name: strict(each) for name, each in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        converted.pop("type", None)
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        converted.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return converted


@pytest.mark.parametrize("name", FILES)
def test_kuberay_itself_defines_every_field(name: str) -> None:
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("KUBERAY_CRDS does not name a copy of KubeRay's helm-chart/kuberay-operator/crds")
    loaded = load(name)
    definition = yaml.safe_load(Path(folder, f"ray.io_{loaded['kind'].lower()}s.yaml").read_text())
    (schema,) = [each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == "v1"]
    validator = Draft7Validator(strict(schema))
    assert [error.message for error in validator.iter_errors(loaded)] == []
    loaded["spec"]["entrypoints"] = loaded["spec"].pop("rayVersion", None)
    assert any("'entrypoints' was unexpected" in error.message for error in validator.iter_errors(loaded))


@pytest.mark.parametrize("name", FILES)
def test_the_head_does_not_compute_and_gpus_come_and_go(name: str) -> None:
    read = autoscaling(load(name))
    nodes = read["available_node_types"]
    assert nodes[read["head_node_type"]]["resources"]["CPU"] == 0
    assert "GPU" not in nodes[read["head_node_type"]]["resources"]
    assert nodes["gpu"]["resources"]["GPU"] == 1
    assert nodes["gpu"]["resources"]["CPU"] == 7
    assert (nodes["gpu"]["min_workers"], nodes["gpu"]["max_workers"]) == (0, 4)
    assert cluster_of(load(name))["enableInTreeAutoscaling"]


def test_both_files_are_the_same_cluster() -> None:
    """But for who may reach the dashboard."""
    cluster, job = (cluster_of(load(name)) for name in FILES)
    assert cluster["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    assert job["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "0.0.0.0"
    assert cluster == job
    assert job["authOptions"] == {"mode": "token"}


def test_pods_run_the_ray_that_the_tests_ran_with_and_this_raypp() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    cluster = cluster_of(load(FILES[0]))
    assert cluster["rayVersion"] == pinned["ray"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["spec"]["containers"][0]["image"].endswith(f"/raypp:{version[1]}")
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{pinned['ray']}-py311-" in dockerfile
    assert "--constraint /home/ray/raypp/constraints.txt --editable /home/ray/raypp" in dockerfile


def test_no_pod_has_a_secret_written_out() -> None:
    cluster = cluster_of(load(FILES[0]))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        variables = {each["name"]: each for each in group["template"]["spec"]["containers"][0]["env"]}
        assert "secretKeyRef" in variables["WANDB_API_KEY"]["valueFrom"]
        secret = variables["WANDB_API_KEY"]["valueFrom"]["secretKeyRef"]["name"]
        assert secret not in [load(name)["metadata"]["name"] for name in FILES], "KubeRay keeps its token under that"
        assert [name for name, each in variables.items() if "value" in each] == [
            "RAY_JOB_STOP_WAIT_TIME_S",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S",
        ]


def test_a_pod_that_is_to_go_has_time_to_be_drained() -> None:
    for name in FILES:
        for group in cluster_of(load(name))["workerGroupSpecs"]:
            spec = group["template"]["spec"]
            variables = {each["name"]: each.get("value") for each in spec["containers"][0]["env"]}
            drains = float(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            assert 30 < drains < spec["terminationGracePeriodSeconds"] < 120, "of the two minutes that AWS gives"


def test_the_job_is_a_command_of_this_repository() -> None:
    command, verb, experiment, *overrides = load("rayjob.yaml")["spec"]["entrypoint"].split()
    assert (command, verb) == ("raypp", "sweep")
    here = experiment.replace("/home/ray/raypp/", f"{ROOT}/")
    loaded = load_experiment(here, overrides)
    assert loaded.sweep is not None
    assert loaded.cluster.storage.startswith("s3://"), "pods share no disk"
    assert loaded.cluster.gpus_per_worker == 1
    assert loaded.cluster.autoscaling
    assert loaded.sweep.concurrent == cluster_of(load("rayjob.yaml"))["workerGroupSpecs"][0]["maxReplicas"]


# --- the checks themselves -------------------------------------------------------------------------------------------

Edit = Callable[[dict[str, Any]], Any]


def worker(cluster: dict[str, Any]) -> dict[str, Any]:
    return dict(cluster["workerGroupSpecs"][0]["template"]["spec"])


MISTAKES: list[tuple[str, Edit]] = [
    (
        "Additional properties are not allowed ('headGroupSpecs' was unexpected)",
        lambda c: c.update(headGroupSpecs=c.pop("headGroupSpec")),
    ),
    ("Additional properties are not allowed ('auth' was unexpected)", lambda c: c.update(auth={"mode": "token"})),
    (
        "authOptions.mode: 'tokens' is not one of ['token', 'disabled']",
        lambda c: c["authOptions"].update(mode="tokens"),
    ),
    ("enableInTreeAutoscaling: 'true' is not of type 'boolean'", lambda c: c.update(enableInTreeAutoscaling="true")),
    (
        "workerGroupSpecs.0.maxReplicas: '4' is not of type 'integer'",
        lambda c: c["workerGroupSpecs"][0].update(maxReplicas="4"),
    ),
    ("minReplicas: above maxReplicas", lambda c: c["workerGroupSpecs"][0].update(minReplicas=9)),
    ("workerGroupSpecs.0: 'maxReplicas' is a required property", lambda c: c["workerGroupSpecs"][0].pop("maxReplicas")),
    (
        "headGroupSpec.rayStartParams.num-cpus: 0 is not of type 'string'",
        lambda c: c["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    ),
    (
        "limits.memory: '16 GB' does not match",
        lambda c: worker(c)["containers"][0]["resources"]["limits"].update(memory="16 GB"),
    ),
    (
        "emptyDir.sizeLimit: '8GiB' does not match",
        lambda c: worker(c)["volumes"][0]["emptyDir"].update(sizeLimit="8GiB"),
    ),
    (
        "resources: what is not reserved is taken away",
        lambda c: worker(c)["containers"][0]["resources"]["requests"].update(cpu="1"),
    ),
    ("volumeMounts: no volume shared-memory", lambda c: worker(c)["volumes"][0].update(name="memory")),
    (
        "restartPolicy: must be Never with autoscaler v2",
        lambda c: c["workerGroupSpecs"][0]["template"]["spec"].update(restartPolicy="Always"),
    ),
    (
        "valueFrom: Additional properties are not allowed ('secretKey' was unexpected)",
        lambda c: worker(c)["containers"][0]["env"][0].update(valueFrom={"secretKey": {}}),
    ),
    ("authOptions: token needs Ray 2.52", lambda c: c.update(rayVersion="2.51.0")),
]


@pytest.mark.parametrize(("message", "edit"), MISTAKES, ids=[message for message, _ in MISTAKES])
@pytest.mark.parametrize("name", FILES)
def test_a_mistake_is_found(name: str, message: str, edit: Edit) -> None:
    loaded = copy.deepcopy(load(name))
    edit(loaded["spec"] if loaded["kind"] == "RayCluster" else loaded["spec"]["rayClusterSpec"])
    assert any(message in problem for problem in problems(loaded)), problems(loaded)
