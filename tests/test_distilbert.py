"""The shipped DistilBERT experiment runs as it is: a narrow BERT and a short Wikipedia in the place of the real ones,
smaller batches, a few steps, and nothing else of the file replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from transformers import BertConfig, BertForMaskedLM
from whole_runs import copy_tokenizer

from raypp.cluster.launch import train
from raypp.load_config import experiment_from, load_experiment

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SHIPPED = Path(__file__).resolve().parent.parent / "experiments" / "distilled" / "distilbert.yaml"
LAYERS = (0, 2, 4, 7, 9, 11)
CARD = """---
configs:
- {config_name: 20231101.de, data_files: 20231101.de/*.parquet}
- {config_name: 20231101.en, data_files: 20231101.en/*.parquet}
---
"""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """BERT-base with its twelve layers, vocabulary and default dropout, but narrow and random."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_attention_heads=2, intermediate_size=64, initializer_range=0.1)
    BertForMaskedLM(config).save_pretrained(folder)
    copy_tokenizer(minilm_dir, folder)
    return folder


@pytest.fixture(scope="module")
def wikipedia(tmp_path_factory: pytest.TempPathFactory, glue_dir: Path) -> Path:
    """A repository with Wikipedia's configurations, columns and split; its articles are sentences of MRPC."""
    folder = tmp_path_factory.mktemp("wikipedia")
    (folder / "README.md").write_text(CARD)
    lines = (glue_dir / "MRPC" / "train.tsv").read_text(encoding="utf-8-sig").splitlines()[1:241]
    texts = [" ".join(line.split("\t")[3:]) for line in lines]
    for language in ("de", "en"):
        (folder / f"20231101.{language}").mkdir()
        for part in range(2):
            rows = texts[part::2] if language == "en" else ["Nicht auf Englisch."]
            columns = {name: [f"{name} {place}" for place in range(len(rows))] for name in ("id", "url", "title")}
            name = f"train-{part:05d}-of-00002.parquet"
            pq.write_table(pa.table({**columns, "text": rows}), folder / f"20231101.{language}" / name)
    return folder


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_file_makes_a_student_of_half_the_layers_for_any_task(
    workers: int,
    bert: Path,
    wikipedia: Path,
    glue_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    overrides = [
        f"data.source.repository={wikipedia}",
        "data.source.held_out_fraction=0.1",  # of few texts
        f"student.model={bert}",
        f"teacher.model={bert}",
        "train.max_steps=5",
        "train.batch_size=40",
        "train.micro_batches=4",
        "train.log_every_steps=1",
        "evaluation.every_steps=4",
        f"cluster.workers={workers}",
        "cluster.gpus_per_worker=0",
        f"cluster.storage={tmp_path / 'runs'}",
        "tracking.wandb=off",
    ]
    result = train(load_experiment(SHIPPED, overrides))
    log = [json.loads(line) for line in Path(result["paths"]["metrics"]).read_text().splitlines()]
    losses = [record for record in log if "train/loss" in record]
    assert len(losses) == 5
    for record in losses:
        terms = {"train/soft_loss": 5.0, "train/hard_loss": 2.0, "train/cosine_loss": 1.0}
        assert record["train/loss"] == pytest.approx(sum(w * record[term] for term, w in terms.items()), rel=1e-4)
        assert all(record[term] > 0 for term in terms)
    assert result["metrics"]["eval/perplexity"] > 1

    before, after = (
        load_file(bert / "model.safetensors"),
        load_file(Path(result["paths"]["model"], "model.safetensors")),
    )
    kinds = ("attention.self.query.weight", "output.dense.weight")
    for kept, layer in enumerate(LAYERS):
        for kind in kinds:
            name = f"bert.encoder.layer.{{}}.{kind}".format
            moved = np.abs(after[name(kept)] - before[name(layer)]).max()
            assert 0 < moved < 5e-3, "five small steps from the layer that it was"
    assert not any(name.startswith("bert.encoder.layer.6.") for name in after)
    assert np.array_equal(after[POSITIONS], before[POSITIONS]), "frozen"

    tuned = train(experiment_from(on_sst2(result["paths"]["model"], glue_dir, tmp_path)))
    assert tuned["headline"] == "eval/accuracy"
    first = load_file(Path(tuned["paths"]["model"], "model.safetensors"))
    name = "bert.encoder.layer.5.attention.self.query.weight"
    assert np.abs(first[name] - after[name]).max() < 1e-3, "two small steps from what was distilled"


POSITIONS = "bert.embeddings.position_embeddings.weight"


def on_sst2(model: str, glue_dir: Path, folder: Path) -> dict[str, Any]:
    return {
        "name": "sst2",
        "task": "sst2",
        "data": {"source": {"kind": "official", "directory": str(glue_dir / "SST-2")}, "max_train_rows": 64},
        "student": {"model": model},
        "train": {"max_steps": 2, "batch_size": 16},
        "cluster": {"workers": 0, "storage": str(folder / "runs")},
        "tracking": {"wandb": "off"},
    }
