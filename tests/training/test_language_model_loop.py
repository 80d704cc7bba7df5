"""The training loop on plain text, without Ray: blocks from a store made by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.numpy import load_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM
from whole_runs import copy_tokenizer

from raypp.corpus.blocks import SCHEMA, TOKEN_COUNTS
from raypp.data.tokenization import Vocabulary
from raypp.load_config import experiment_from
from raypp.models.loading import model_fingerprint
from raypp.storage import Location
from raypp.store import Artifact, Store, StoredFile, write_part
from raypp.tasks import resolve_task
from raypp.training.job import Job
from raypp.training.loop import fit
from raypp.training.worker import Worker

LENGTHS = (60, 40, 30, 30, 13)


def blocks(store: Store, vocabulary: Vocabulary) -> Artifact:
    """Blocks of random words, of very different lengths."""
    chance = np.random.default_rng(0)
    ids = [chance.integers(2000, vocabulary.size, length).tolist() for length in LENGTHS]
    with store.build("features", "blocks", {}) as build:
        columns = {"row": [*range(len(ids))], "piece": [0] * len(ids), "input_ids": ids}
        part = write_part(build.location, pa.table(columns, schema=SCHEMA), row_group_size=512)
        counts = json.dumps([1] * vocabulary.size).encode()
        (build.location / TOKEN_COUNTS).write_bytes(counts)
        files = [part, StoredFile(TOKEN_COUNTS, len(counts), hashlib.sha256(counts).hexdigest())]
        return build.finish(len(ids), {"part_blocks": [[part.name, len(ids)]]}, files)


def test_a_fisher_score_counts_a_batch_by_its_targets(tmp_path: Path, minilm_dir: Path) -> None:
    """Against plain autograd, on weights that do not change: a batch of 4 blocks, and one of a single block."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForMaskedLM(config).eval()
    model.save_pretrained(tmp_path / "student")
    copy_tokenizer(minilm_dir, tmp_path / "student")
    vocabulary = Vocabulary.of(AutoTokenizer.from_pretrained(minilm_dir))
    source = {"kind": "text", "files": ["unused.txt"], "held_out_fraction": 0.5}
    experiment = experiment_from(
        {
            "name": "fisher",
            "task": {"name": "corpus", "kind": "language_modeling"},
            "data": {"source": source, "max_length": 64},
            "student": {"model": str(tmp_path / "student")},
            "pruning": {"method": "fisher", "fisher_decay": 0.9, "initial_warmup": 1, "final_warmup": 0},
            "train": {"max_steps": 3, "warmup_steps": 1, "batch_size": 4, "learning_rate": 1e-12},
            "cluster": {"workers": 0, "storage": str(tmp_path), "checkpoint_every_steps": 1, "keep_checkpoints": 3},
            "tracking": {"wandb": "off", "figures": "main"},
        }
    )
    assert experiment.data.source is not None
    artifact = blocks(Store(Location.of(tmp_path / "store")), vocabulary)
    job = Job(
        experiment=experiment,
        task=resolve_task(experiment.task, experiment.data.source),
        run=Location.of(tmp_path / "run"),
        phase="student",
        micro_batches=2,
        vocabulary=vocabulary,
        student_fingerprint=model_fingerprint(tmp_path / "student"),
        train=artifact,
        evaluation={"dev": artifact},
    )
    fit(job, Worker(device=torch.device("cpu")))
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-00000002" / "model.safetensors")

    names = [name for name in saved if name.endswith("mask_scores")]
    assert len(names) == 6
    weights = [model.get_parameter(name.replace("mask_scores", "weight")) for name in names]
    expected = [torch.zeros_like(weight) for weight in weights]
    targets = []
    for examples, batch in job.kind.training_data(experiment, 1, vocabulary, artifact, None).batches(0, 0):
        inputs = examples.collate(batch.indices, vocabulary.pad_id)
        labels = inputs["labels"]
        loss = model(inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels).loss
        targets.append(int((labels != -100).sum()))
        for mean, weight, gradient in zip(expected, weights, torch.autograd.grad(loss, weights), strict=True):
            mean.mul_(0.9).add_(0.1 * targets[-1] * (weight * gradient).detach() ** 2)
    assert len(targets) == 2
    assert targets[0] > 4 * targets[1], "blocks differ in their numbers of targets"
    for name, mean in zip(names, expected, strict=True):
        np.testing.assert_allclose(saved[name], mean.numpy(), rtol=1e-3, atol=1e-5 * float(mean.max()), err_msg=name)
