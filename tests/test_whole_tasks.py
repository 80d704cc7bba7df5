"""Whole runs on tasks that differ from most: several evaluation splits, values to predict; a teacher with a tokenizer,
and an order of labels, of its own. The first step's losses are transformers' own."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
)
from whole_runs import copy_tokenizer

import raypp
from raypp.cluster.launch import train
from raypp.events import Event, Message
from raypp.kinds import kind_of
from raypp.load_config import experiment_from
from raypp.models.loading import load_pretrained
from raypp.tasks import TASKS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
WORDS = ("a", "the", "red", "cat", "dog", "sat", "ran", "home", "not", "twice")
# As the processors of older transformers had them, which is not the hub's order.
TEACHERS_LABELS = ("contradiction", "entailment", "neutral")
ROWS = {
    "mnli": {"train": 24, "dev_matched": 14, "dev_mismatched": 9},
    "stsb": {"train": 24, "dev": 14},
}

Example = tuple[str, str, str]
"""Two sentences and the label as the files have it."""


def write_task(task: str, folder: Path) -> dict[str, list[Example]]:
    """A small task in the official layout; returns its examples."""
    draw = random.Random(task)

    def sentence() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 9)))

    def label() -> str:
        return draw.choice(TASKS[task].labels) if task == "mnli" else f"{draw.uniform(0, 5):.3f}"

    column = "gold_label" if task == "mnli" else "score"
    folder.mkdir()
    written = {}
    for split, count in ROWS[task].items():
        written[split] = [(sentence(), sentence(), label()) for _ in range(count)]
        lines = ["\t".join(("index", "sentence1", "sentence2", column))]
        lines += ["\t".join((str(row), *example)) for row, example in enumerate(written[split])]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return written


def write_student(tokenizer: Path, folder: Path) -> None:
    torch.manual_seed(3)
    BertModel(BertConfig(**SMALL)).save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)


def write_teacher(task: str, folder: Path) -> None:
    """A classifier of decided opinions that knows only these words, each by another number than the student."""
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    names = dict(enumerate(TEACHERS_LABELS if task == "mnli" else ("score",)))
    torch.manual_seed(5)
    numbers = {name: number for number, name in names.items()}
    config = BertConfig(vocab_size=len(vocabulary), initializer_range=0.5, id2label=names, label2id=numbers, **SMALL)
    BertForSequenceClassification(config).save_pretrained(folder)


@torch.no_grad()
def logits_of(model: Any, tokenizer_folder: Path, examples: Sequence[Example]) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    first, second, _ = zip(*examples, strict=True)
    inputs = tokenizer(list(first), list(second), padding=True, return_tensors="pt")
    logits: Tensor = model.eval()(**inputs).logits
    return logits


def teacher_logits(task: str, folder: Path, examples: Sequence[Example]) -> Tensor:
    """In the order of the task's labels."""
    logits = logits_of(AutoModelForSequenceClassification.from_pretrained(folder), folder, examples)
    return logits if task == "stsb" else logits[:, [TEACHERS_LABELS.index(label) for label in TASKS[task].labels]]


def accuracy(labels: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    return {"accuracy": float(np.mean([label == answer for label, answer in zip(labels, predicted, strict=True)]))}


def correlations(labels: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    numbers = np.array(labels, float), np.array(predicted, float)
    return {
        "pearson": scipy.stats.pearsonr(*numbers).statistic,
        "spearman": scipy.stats.spearmanr(*numbers).statistic,
    }


@pytest.mark.parametrize("task", ["mnli", pytest.param("stsb", marks=pytest.mark.slow)])
def test_a_run_has_the_losses_and_metrics_of_transformers_and_scipy(
    task: str, minilm_dir: Path, tmp_path: Path
) -> None:
    examples = write_task(task, tmp_path / "data")
    write_student(minilm_dir, tmp_path / "student")
    write_teacher(task, tmp_path / "teacher")
    result = raypp.train(
        experiment_from(
            {
                "name": "whole",
                "task": task,
                "data": {"source": {"kind": "official", "directory": str(tmp_path / "data")}, "max_length": 32},
                "student": {"model": str(tmp_path / "student")},
                "teacher": {"model": str(tmp_path / "teacher")},
                "distillation": {"soft_weight": 0.6, "hard_weight": 0.4, "temperature": 2.0},
                # All rows in one batch, so that the first step's losses are those of the model as it begins.
                "train": {"max_steps": 2, "batch_size": 24, "dropout": 0, "learning_rate": 1e-3, "log_every_steps": 1},
                "cluster": {"workers": 0, "storage": str(tmp_path / "runs")},
                "tracking": {"wandb": "off", "figures": "main"},
            }
        )
    )
    rows, splits = examples["train"], tuple(examples)[1:]
    student = logits_of(
        load_pretrained(tmp_path / "student", kind_of(TASKS[task]), seed=42), tmp_path / "student", rows
    )
    teacher = teacher_logits(task, tmp_path / "teacher", rows)
    if task == "mnli":
        targets = torch.tensor([TASKS[task].labels.index(label) for *_, label in rows])
        hard = functional.cross_entropy(student, targets)
        divergence = functional.kl_div((student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="batchmean")
        soft = 4 * divergence
    else:
        targets = torch.tensor([float(label) for *_, label in rows])
        hard = functional.mse_loss(student[:, 0], targets)
        soft = functional.mse_loss(student, teacher)
    first = json.loads(Path(result["paths"]["metrics"]).read_text().splitlines()[0])
    assert first["train/hard_loss"] == pytest.approx(float(hard), rel=1e-4)
    assert first["train/soft_loss"] == pytest.approx(float(soft), rel=1e-4)
    assert first["train/loss"] == pytest.approx(0.4 * float(hard) + 0.6 * float(soft), rel=1e-4)

    # The label, or the value itself, which the prediction is rounded from.
    metrics_of, told = (accuracy, 3) if task == "mnli" else (correlations, 4)
    table = [line.split("\t") for line in Path(result["paths"]["run"], "predictions.tsv").read_text().splitlines()[1:]]
    assert [row[:2] for row in table] == [[split, str(row)] for split in splits for row in range(ROWS[task][split])]
    for split in splits:
        key = {"dev_matched": "eval/matched/", "dev_mismatched": "eval/mismatched/"}.get(split, "eval/")
        labels = [label for *_, label in examples[split]]
        expected = metrics_of(labels, [row[told] for row in table if row[0] == split])
        assert {name: result["metrics"][key + name] for name in expected} == pytest.approx(expected, abs=1e-4)
        logits = teacher_logits(task, tmp_path / "teacher", examples[split])
        names = [TASKS[task].labels[place] for place in logits.argmax(1)] if task == "mnli" else logits[:, 0].tolist()
        expected = metrics_of(labels, names)
        assert {name: result["teacher_metrics"][key + name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert result["headline"] == ("eval/matched/accuracy" if task == "mnli" else "eval/pearson")
    delivered = AutoModelForSequenceClassification.from_pretrained(result["paths"]["model"])
    logits = logits_of(delivered, Path(result["paths"]["model"]), examples[splits[0]])
    written = [[float(value) for value in row[4:]] for row in table if row[0] == splits[0]]
    np.testing.assert_allclose(logits, written, atol=1e-4)


def test_a_run_whose_precision_is_slow_says_so_once(
    minilm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []

    def keep_messages(event: Event) -> None:
        if isinstance(event, Message):
            said.append(event.text)

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    write_student(minilm_dir, tmp_path / "student")
    values = {
        "name": "slow",
        "task": "sentiment",
        "data": {"source": {"kind": "synthetic", "train_rows": 16, "dev_rows": 8}, "max_length": 32},
        "student": {"model": str(tmp_path / "student")},
        "train": {"max_steps": 2, "batch_size": 8, "precision": "bfloat16"},
        "cluster": {"workers": 0, "storage": str(tmp_path / "runs")},
        "tracking": {"wandb": "off", "figures": "main"},
    }
    train(experiment_from(values), on_event=keep_messages)
    assert [text for text in said if "bfloat16" in text] == [
        "student: train.precision: bfloat16 is slower than float32 on this CPU, which has no instructions for it "
        "(AVX512-BF16, AMX; Arm's BF16)"
    ]
