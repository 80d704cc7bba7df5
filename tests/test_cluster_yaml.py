"""cluster.yaml against Ray's own schema, offline, and against what the repository says elsewhere."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


def test_ray_accepts_it_and_not_a_misspelt_one(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(cluster)))
    cluster["max_wrokers"] = 1
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config(cluster))


def test_nodes_run_the_ray_that_the_tests_ran_with(cluster: dict[str, Any]) -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert f":{pinned['ray']}-py311-" in cluster["docker"]["image"]


def test_what_is_mounted_exists_and_holds_what_the_setup_installs(cluster: dict[str, Any]) -> None:
    ((target, source),) = cluster["file_mounts"].items()
    (install,) = cluster["setup_commands"]
    for name in ("constraints.txt", "pyproject.toml"):
        assert (ROOT / source / name).is_file()
    assert f"--constraint {target}/constraints.txt" in install
    assert f"--editable {target}" in install


def test_services_listen_on_loopback_and_the_head_does_not_compute(cluster: dict[str, Any]) -> None:
    (start,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    nodes = cluster["available_node_types"]
    assert nodes[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert sum(node.get("max_workers", 0) for node in nodes.values()) == cluster["max_workers"]
