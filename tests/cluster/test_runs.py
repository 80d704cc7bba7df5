"""Whole runs on a real encoder with its default dropout: the same in this process, on one worker or on two."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig, BertModel
from whole_runs import assert_same, copy_tokenizer, losses, only_run, outcome, run_command, started

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


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "small.yaml"
    # A relative path, which starts where the command was typed and not where Ray's workers are.
    path.write_text(EXPERIMENT.format(model=os.path.relpath(minilm_dir), storage=path.parent / "runs"))
    return path


@pytest.fixture(scope="module")
def undisturbed(experiment: Path) -> Path:
    """The run that the others are compared with."""
    run_command("train", experiment)
    return only_run(experiment.parent / "runs")


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_equal_one(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    run_command("train", experiment, "cluster.workers=2", f"cluster.storage={tmp_path}")
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
    copy_tokenizer(minilm_dir, student)
    overrides = (f"student.model={student}", f"teacher.model={minilm_dir}", "distillation.hidden_weight=1")
    for workers in (1, 2):
        run_command(
            "train", experiment, *overrides, f"cluster.workers={workers}", f"cluster.storage={tmp_path / str(workers)}"
        )
    one, two = (only_run(tmp_path / str(workers)) for workers in (1, 2))
    assert one.name == two.name
    assert len(losses(two)) == 20
    assert losses(one)[-1] < losses(one)[0]
    np.testing.assert_allclose(losses(two), losses(one), rtol=2e-4)


@pytest.mark.ray
@pytest.mark.slow
def test_this_process_equals_a_worker(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    run_command("train", experiment, "cluster.workers=0", f"cluster.storage={tmp_path}")
    assert_same(outcome(undisturbed), outcome(only_run(tmp_path)))


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_is_finished_returns_without_ray(experiment: Path, undisturbed: Path) -> None:
    nowhere = {"RAY_TMPDIR": os.devnull}  # Ray cannot start there
    assert "finished before" in run_command("train", experiment, environment=nowhere)


@pytest.mark.ray
def test_what_only_a_plan_finds_wrong_is_said_when_ray_has_ended(experiment: Path, tmp_path: Path) -> None:
    overrides = (f"cluster.storage={tmp_path}", "pruning.layers={include: [nowhere]}")
    with started("train", experiment, *overrides) as command:
        status, output = command.end()
    assert status == 2
    assert "pruning.layers.include: 'nowhere' matches no layer" in " ".join(output.split())
    assert "Traceback" not in output
    assert not (tmp_path / "small").exists()
