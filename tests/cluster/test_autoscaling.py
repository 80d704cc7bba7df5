"""raypp on a cluster that starts nodes as they are needed: Ray's own autoscaler, whose provider starts raylets here.

As in cluster.yaml, the head has no CPU and there is no worker until something waits for one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray_head import free_ports, listens, ray_head, short_folder
from whole_runs import TEST_SECONDS

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(TEST_SECONDS)]
DEADLINE_SECONDS = 240
# Raylets need no login, and are as they are to be.
WITHOUT_LOGIN = {"disable_node_updaters": True, "disable_launch_config_check": True, "worker_liveness_check": False}
PROVIDER = {"type": "fake_multinode", "head_node_id": "f" * 51 + "00000", **WITHOUT_LOGIN}
NODES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
}
COMMANDS = ("setup", "initialization", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


@pytest.fixture
def address() -> Iterator[str]:
    """A cluster with no worker, that may have two."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    config = {
        "cluster_name": "growing",
        "provider": {**PROVIDER, "gcs_address": address},
        "max_workers": 2,
        "idle_timeout_minutes": 10,
        "head_node_type": "ray.head.default",
        "available_node_types": NODES,
        "docker": {},
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{f"{name}_commands": [] for name in COMMANDS},
    }
    with short_folder() as folder:
        (folder / "autoscaling.yaml").write_text(yaml.safe_dump(config))
        options = [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0", "--include-dashboard=false"]
        options += [f"--autoscaling-config={folder / 'autoscaling.yaml'}"]
        environment = {**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        with ray_head(folder, options, environment, is_ready=lambda: listens(port)):
            yield address


@pytest.fixture
def experiment(tmp_path: Path, minilm_dir: Path) -> Path:
    path = tmp_path / "growing.yaml"
    values = {
        "task": "sentiment",
        "data": {"source": {"kind": "synthetic", "train_rows": 64, "dev_rows": 32}, "max_length": 32},
        "student": {"model": str(minilm_dir)},
        "teacher": {"train": {"max_steps": 2, "micro_batches": 2}},
        "pruning": {"method": "magnitude", "final_density": 0.5, "initial_warmup": 0, "final_warmup": 1},
        "train": {"max_steps": 4, "batch_size": 8, "micro_batches": 2},
        "cluster": {"workers": 1, "cpus_per_worker": 1, "storage": str(tmp_path / "runs")},
        "tracking": {"wandb": "off"},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def raypp(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_ADDRESS": address}
    command = [sys.executable, "-m", "raypp.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS)


def test_a_run_and_a_sweep_get_the_nodes_they_need(address: str, experiment: Path, tmp_path: Path) -> None:
    refused = raypp(address, "train", str(experiment))
    assert refused.returncode == 2
    assert "the cluster has 0" in refused.stderr
    assert "cluster.autoscaling=true" in refused.stderr
    for words in (("prepare", str(experiment)), ("train", str(experiment), "cluster.workers=0")):
        refused = raypp(address, *words)
        assert refused.returncode == 2, refused.stderr
        assert "none of them has a CPU" in refused.stderr

    done = raypp(address, "train", str(experiment), "cluster.autoscaling=true", "cluster.workers=2")
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "runs" / "growing").glob("*/result.json")
    assert json.loads(result.read_text())["metrics"]

    values = yaml.safe_load(experiment.read_text())
    values["sweep"] = {"space": {"pruning.final_density": {"choice": [0.4, 0.3, 0.2]}}}
    values["cluster"]["autoscaling"] = True
    experiment.write_text(yaml.safe_dump(values))
    unsaid = raypp(address, "sweep", str(experiment))
    assert unsaid.returncode == 2
    assert "sweep.concurrent" in unsaid.stderr
    swept = raypp(address, "sweep", str(experiment), "sweep.concurrent=2")
    assert swept.returncode == 0, swept.stderr
    assert "3 of 3 trials" in " ".join(swept.stdout.split())


def test_teacher_logits_alone_get_a_node(address: str, experiment: Path, tmp_path: Path) -> None:
    """With features and a teacher in the store, an actor with the teacher is the first that needs one."""
    prepared = raypp("", "prepare", str(experiment))
    assert prepared.returncode == 0, prepared.stderr
    (logits,) = (tmp_path / "runs" / "store").glob("*/logits")
    shutil.rmtree(logits)
    prepared = raypp(address, "prepare", str(experiment), "cluster.autoscaling=true")
    assert prepared.returncode == 0, prepared.stderr
    assert list(logits.glob("*/*/manifest.json"))
