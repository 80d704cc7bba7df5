"""Whole runs on a real encoder with its default dropout: the same on one worker or two, and after a kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import BertConfig, BertModel

EXPERIMENT = """
name: small
task: sentiment
data: {{source: {{kind: synthetic, train_rows: 320, dev_rows: 96}}, max_length: 64}}
student: {{model: "{model}"}}
teacher: {{train: {{max_steps: 6, learning_rate: 5.0e-5, micro_batches: 2}}}}
pruning: {{method: topk, final_density: 0.3, initial_warmup: 1, final_warmup: 1}}
train: {{max_steps: 20, batch_size: 16, micro_batches: 2, learning_rate: 5.0e-5, log_every_steps: 1}}
evaluation: {{every_steps: 5}}
cluster: {{workers: 1, cpus_per_worker: 1, storage: "{storage}"}}
tracking: {{wandb: off}}
"""
DEADLINE_SECONDS = 240


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "small.yaml"
    # A relative path, which starts where the command was typed and not where Ray's workers are.
    path.write_text(EXPERIMENT.format(model=os.path.relpath(minilm_dir), storage=path.parent / "runs"))
    return path


@pytest.fixture(scope="module")
def undisturbed(experiment: Path) -> Path:
    """The run that the others are compared with."""
    train(experiment)
    return only_run(experiment.parent / "runs")


def command(experiment: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "raypp.cli", "train", str(experiment), *overrides]


def train(experiment: Path, *overrides: str) -> str:
    """Runs the command to its end; returns what it printed."""
    done = subprocess.run(command(experiment, *overrides), capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def only_run(storage: Path) -> Path:
    (run,) = (storage / "small").iterdir()
    return run


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["train/loss"] for record in records if "train/loss" in record]


def outcome(run: Path) -> tuple[dict[str, float], dict[str, np.ndarray], list[float]]:
    """Everything of a run that must not depend on what happened to it."""
    result = json.loads((run / "result.json").read_text())
    return result["metrics"], load_file(run / "model" / "model.safetensors"), losses(run)


def assert_same(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    assert first[0] == second[0], "metrics"
    assert first[2] == second[2], "losses, step by step"
    assert first[1].keys() == second[1].keys()
    for name, value in first[1].items():
        assert np.array_equal(value, second[1][name]), name


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def checkpoints(storage: Path) -> list[str]:
    folders = storage.glob("small/*/checkpoints/step-*/manifest.json")
    return sorted(folder.parent.name for folder in folders)


def train_workers() -> list[int]:
    """Process ids of Ray Train's workers on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"RayTrainWorker" in line:
            found.append(int(folder.name))
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_equal_one(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    train(experiment, "cluster.workers=2", f"cluster.storage={tmp_path}")
    two = only_run(tmp_path)
    assert two.name == undisturbed.name, "the number of workers is no part of what a run is"
    assert len(losses(two)) == 20
    np.testing.assert_allclose(losses(two), losses(undisturbed), rtol=2e-4)


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_with_an_online_teacher_equal_one(experiment: Path, minilm_dir: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    BertModel(
        BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96)
    ).save_pretrained(student)
    for file in minilm_dir.glob("*token*"):
        (student / file.name).write_bytes(file.read_bytes())
    (student / "vocab.txt").write_bytes((minilm_dir / "vocab.txt").read_bytes())
    overrides = (f"student.model={student}", f"teacher.model={minilm_dir}", "distillation.hidden_weight=1")
    for workers in (1, 2):
        train(experiment, *overrides, f"cluster.workers={workers}", f"cluster.storage={tmp_path / str(workers)}")
    one, two = (only_run(tmp_path / str(workers)) for workers in (1, 2))
    assert one.name == two.name
    assert len(losses(two)) == 20
    assert losses(one)[-1] < losses(one)[0]
    np.testing.assert_allclose(losses(two), losses(one), rtol=2e-4)


@pytest.mark.ray
@pytest.mark.slow
def test_this_process_equals_a_worker(
    experiment: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    train(experiment, "cluster.workers=0", f"cluster.storage={tmp_path}")
    assert_same(outcome(undisturbed), outcome(only_run(tmp_path)))


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_changes_nothing(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(experiment, f"cluster.storage={tmp_path}"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(lambda: "step-00000010" in checkpoints(tmp_path), "the second checkpoint")
    (victim,) = train_workers()
    os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, output
    assert_same(outcome(undisturbed), outcome(only_run(tmp_path)))


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_changes_nothing(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command(experiment, f"cluster.storage={tmp_path}"), stdout=subprocess.DEVNULL)
    wait_for(lambda: "step-00000010" in checkpoints(tmp_path), "the second checkpoint")
    process.kill()
    process.wait(timeout=DEADLINE_SECONDS)
    wait_for(lambda: not train_workers(), "the orphaned workers to end")
    assert not list(tmp_path.glob("small/*/result.json"))
    train(experiment, f"cluster.storage={tmp_path}")
    assert_same(outcome(undisturbed), outcome(only_run(tmp_path)))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_same_command_resumes_what_was_interrupted(name: str, experiment: Path, tmp_path: Path) -> None:
    overrides = (f"cluster.storage={tmp_path}", "train.seed=7")
    process = subprocess.Popen(
        command(experiment, *overrides),
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, which these tests may be, hand down an ignored Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: "step-00000005" in checkpoints(tmp_path), "the first checkpoint")
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130, errors
    assert "the same command goes on from the last checkpoint: raypp train" in errors
    assert "Traceback" not in errors
    assert "from the store" in train(experiment, *overrides)
    assert "finished before" in train(experiment, *overrides)
