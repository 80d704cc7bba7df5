"""Whole runs of task-agnostic distillation, in this process: resumed, delivered, and taken up by a run on a task."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel
from whole_runs import assert_same, copy_tokenizer, outcome, recorded_until

from raypp.cluster.launch import train
from raypp.commands.evaluate_model import evaluate_command
from raypp.errors import ConfigError
from raypp.load_config import experiment_from

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

Experiment = Callable[..., dict[str, Any]]
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """A random masked language model of four layers, with the default dropout."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(num_hidden_layers=4, initializer_range=0.1, **SMALL)).save_pretrained(folder)
    copy_tokenizer(minilm_dir, folder)
    return folder


@pytest.fixture
def settings(tmp_path: Path, store: Path, teacher: Path, glue_dir: Path) -> Experiment:
    """A small run on the sentences of MRPC, with sections replaced."""

    def make(**sections: Any) -> dict[str, Any]:
        source = {"kind": "glue_text", "directory": str(glue_dir), "tasks": ["mrpc"], "held_out_fraction": 0.05}
        return {
            "name": "small",
            "task": {"name": "sentences", "kind": "language_modeling"},
            "data": {"source": source, "max_length": 32, "max_train_rows": 400, "window_blocks": 100},
            "student": {"model": str(teacher), "layers": [0, 2]},
            "teacher": {"model": str(teacher)},
            "distillation": {"soft_weight": 5.0, "hard_weight": 2.0, "cosine_weight": 1.0, "hidden_weight": 0.5},
            "train": {"max_steps": 30, "batch_size": 16, "log_every_steps": 1, "learning_rate": 5e-4},
            "evaluation": {"every_steps": 10},
            "cluster": cluster(tmp_path, store),
            "tracking": {"wandb": "off"},
        } | sections

    return make


def cluster(folder: Path, store: Path) -> dict[str, Any]:
    return {"workers": 0, "storage": str(folder / "runs"), "store": str(store), "checkpoint_every_steps": 7}


def run(values: dict[str, Any]) -> dict[str, Any]:
    return train(experiment_from(values))


def records(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(result["paths"]["metrics"]).read_text().splitlines()]


def test_a_run_that_goes_on_is_the_uninterrupted_one(settings: Experiment, tmp_path: Path, store: Path) -> None:
    """30 steps are more than one epoch of 26 batches, in windows of six."""
    whole = run(settings())
    log = records(whole)
    terms = {"train/soft_loss": 5.0, "train/hard_loss": 2.0, "train/cosine_loss": 1.0, "train/hidden_loss": 0.5}
    for record in (record for record in log if "train/loss" in record):
        assert record["train/loss"] == pytest.approx(sum(w * record[term] for term, w in terms.items()), rel=1e-5)
    assert max(record.get("train/epoch", 0) for record in log) > 1

    shutil.copytree(tmp_path / "runs", tmp_path / "cut" / "runs")
    (copy,) = (tmp_path / "cut" / "runs" / "small").iterdir()
    (copy / "result.json").unlink()
    shutil.rmtree(copy / "model")
    shutil.rmtree(copy / "checkpoints" / "step-00000030")
    assert (copy / "checkpoints" / "step-00000028").is_dir()
    resumed = run(settings(cluster=cluster(tmp_path / "cut", store)))
    first, second = (Path(result["paths"]["run"]) for result in (whole, resumed))
    assert_same(outcome(first), outcome(second))
    assert recorded_until(second, 28) == recorded_until(first, 28)


def test_a_student_learns_and_is_delivered_for_any_task(settings: Experiment, store: Path, tmp_path: Path) -> None:
    values = settings(
        train={"max_steps": 120, "batch_size": 32, "learning_rate": 3e-3, "freeze_position_embeddings": True},
        evaluation={"every_steps": 20, "select": "best"},
        teacher=None,
        distillation=None,
        tracking={"wandb": "off", "statistics_every_steps": 50},
    )
    result = run(values)
    perplexities = {r["step"]: r["eval/perplexity"] for r in records(result) if "eval/perplexity" in r}
    assert perplexities[120] < 0.5 * perplexities[20] < math.inf
    assert result["best"] == {
        "step": min(perplexities, key=perplexities.__getitem__),
        "value": min(perplexities.values()),
    }
    assert result["metrics"]["eval/perplexity"] == min(perplexities.values())
    assert evaluate_command(result["paths"]["run"], out=tmp_path)["dev"]["perplexity"] == pytest.approx(
        result["metrics"]["eval/perplexity"], rel=1e-5
    )

    folder = result["paths"]["model"]
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == 2
    start = load_file(Path(values["student"]["model"], "model.safetensors"))
    name = "bert.embeddings.{}_embeddings.weight".format
    after = load_file(Path(folder, "model.safetensors"))
    assert np.array_equal(after[name("position")], start[name("position")]), "frozen"
    assert not np.array_equal(after[name("word")], start[name("word")])
    assert not np.array_equal(after[name("token_type")], start[name("token_type")])
    logged = [record for record in records(result) if f"parameters/{name('word')}/std" in record]
    assert [record["step"] for record in logged] == [50, 100]
    assert f"gradients/{name('word')}/max" in logged[0]
    assert not any("position" in key and key.startswith("gradients/") for key in logged[0])

    on_a_task = run(
        {
            "name": "task",
            "task": "sentiment",
            "data": {"source": {"kind": "synthetic", "train_rows": 64, "dev_rows": 32}, "max_length": 64},
            "student": {"model": folder, "layers": [1]},
            "train": {"max_steps": 2, "batch_size": 16},
            "cluster": cluster(tmp_path, store),
            "tracking": {"wandb": "off"},
        }
    )
    tuned = load_file(Path(on_a_task["paths"]["model"], "model.safetensors"))
    layers = {key.split(".")[3] for key in tuned if key.startswith("bert.encoder.layer.")}
    assert layers == {"0"}
    query = "bert.encoder.layer.{}.attention.self.query.weight".format
    assert np.abs(tuned[query(0)] - after[query(1)]).max() < 1e-3, "two steps from where the language model left it"


def test_a_causal_student_of_another_shape_follows_its_teacher(
    settings: Experiment, minilm_dir: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_head": 2, "n_positions": 64, "vocab_size": 30522}
    GPT2LMHeadModel(GPT2Config(n_layer=3, **sizes, initializer_range=0.1)).save_pretrained(tmp_path / "gpt")
    copy_tokenizer(minilm_dir, tmp_path / "gpt")
    (tmp_path / "small.json").write_text(json.dumps({"n_layer": 1, "n_embd": 16}))
    result = run(
        settings(
            task={"name": "next", "kind": "language_modeling", "objective": "causal"},
            student={"model": str(tmp_path / "gpt"), "config": str(tmp_path / "small.json")},
            teacher={"model": str(tmp_path / "gpt")},
            train={"max_steps": 16, "batch_size": 16, "learning_rate": 1e-2, "log_every_steps": 1},
            evaluation={"every_steps": 16},
        )
    )
    log = [record for record in records(result) if "train/loss" in record]
    assert log[-1]["train/soft_loss"] < log[0]["train/soft_loss"]
    assert log[-1]["train/cosine_loss"] < 0.9 * log[0]["train/cosine_loss"], "its projection learns"
    assert log[-1]["train/hard_loss"] < log[0]["train/hard_loss"]
    config = json.loads(Path(result["paths"]["model"], "config.json").read_text())
    assert (config["n_layer"], config["n_embd"], config["model_type"]) == (1, 16, "gpt2")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"batch_tokens": 512, "max_steps": 3}}, "train.batch_tokens: plain text comes in blocks"),
        ({"data": {"source": {"kind": "synthetic"}}}, "data.source: sentences needs kind: text, hub_text or glue_text"),
        (
            {"student": {"model": "MINILM"}, "teacher": {"model": "MINILM"}},
            "teacher.model: .* is not fine-tuned, because it lacks",
        ),
        ({"student": {"model": "TEACHER", "layers": [1, 4]}}, "student.layers: 4 is no layer of .*; allowed: 0 to 3"),
        ({"student": {"model": "TEACHER", "config": "nowhere.json"}}, "student.config: 'nowhere.json' cannot be read"),
        ({"data": {"source": {"kind": "text", "files": ["nowhere.txt"]}}}, "data.source.files: there is no file"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_starts(
    sections: dict[str, Any], message: str, settings: Experiment, minilm_dir: Path, teacher: Path
) -> None:
    values = json.loads(
        json.dumps(settings(**sections)).replace("MINILM", str(minilm_dir)).replace("TEACHER", str(teacher))
    )
    with pytest.raises(ConfigError, match=message):
        run(values)


@pytest.mark.slow
def test_two_workers_are_one(settings: Experiment, tmp_path: Path, store: Path) -> None:
    logs = []
    for workers in (0, 2):
        storage = cluster(tmp_path / str(workers), store) | {"workers": workers, "cpus_per_worker": 1}
        train_settings = settings()["train"] | {"micro_batches": 2, "max_steps": 12}
        if workers == 0:
            del storage["cpus_per_worker"]
        result = run(settings(cluster=storage, train=train_settings))
        logs.append([record["train/loss"] for record in records(result) if "train/loss" in record])
    assert len(logs[0]) == 12
    np.testing.assert_allclose(logs[1], logs[0], rtol=2e-4)
