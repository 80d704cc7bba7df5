"""Predictions and metrics over whole splits, sharded over the workers and exact.

Every worker predicts its part, the predictions are gathered, and metrics are computed once over all of them: a mean of
per-worker F1 scores is not an F1 score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from raypp.data.batches import plan_evaluation
from raypp.data.features import Features
from raypp.metrics import compute_metrics
from raypp.models import max_positions, model_inputs
from raypp.worker import Worker

if TYPE_CHECKING:
    from raypp.tasks import Task

EVALUATION_BATCH_SIZE = 64


@dataclass(frozen=True)
class Predictions:
    """Logits of one split, in the order of its rows."""

    rows: np.ndarray
    """int64 [n]: position in the source."""
    logits: np.ndarray
    """float32 [n, outputs]."""
    labels: np.ndarray
    """int64 or float32 [n]; without meaning where `labelled` is False."""
    labelled: np.ndarray
    """bool [n]."""


def split_key(split: str, splits: tuple[str, ...]) -> str:
    """Prefix of a split's metrics: `eval/` where there is one, `eval/matched/` where there are several."""
    return "eval/" if len(splits) == 1 else f"eval/{split.removeprefix('dev_')}/"


def headline_key(task: Task) -> str:
    """The metric that runs are compared by, on the first evaluation split."""
    return f"{split_key(task.eval_splits[0], task.eval_splits)}{task.headline}"


@torch.inference_mode()
def predict(
    model: nn.Module, features: Features, pad_id: int, worker: Worker, batch_size: int = EVALUATION_BATCH_SIZE
) -> Predictions:
    """Logits of all rows, the same on every worker and for any number of workers. Leaves the model in evaluation
    mode."""
    model.eval()
    longest = max_positions(model.config)
    indices, outputs = [], []
    for number, batch in enumerate(plan_evaluation(features.lengths, batch_size)):
        if number % worker.world_size != worker.rank:
            continue
        inputs = model_inputs(model, features.collate(batch, pad_id, max_padded=longest))
        logits = model(**{name: value.to(worker.device) for name, value in inputs.items()}).logits
        indices.append(batch)
        outputs.append(logits.float().cpu().numpy())
    width = outputs[0].shape[1] if outputs else 0
    mine = (
        np.concatenate(indices) if indices else np.empty(0, np.int64),
        np.concatenate(outputs) if outputs else np.empty((0, width), np.float32),
    )
    parts = [part for part in worker.gather(mine) if len(part[0])]
    order = np.argsort(np.concatenate([part[0] for part in parts]))
    logits_in_order = np.concatenate([part[1] for part in parts])[order]
    return Predictions(features.rows, logits_in_order, features.labels, features.labelled)


def evaluate(
    model: nn.Module, splits: Mapping[str, Features], task: Task, pad_id: int, worker: Worker
) -> tuple[dict[str, float], dict[str, Predictions]]:
    """Metrics of every evaluation split, by key, and the predictions they come from.

    Raises:
        FloatingPointError: a logit is not finite.
    """
    metrics: dict[str, float] = {}
    predictions: dict[str, Predictions] = {}
    for split, features in splits.items():
        predictions[split] = predict(model, features, pad_id, worker)
        scores = score(task, predictions[split])
        metrics |= {split_key(split, tuple(splits)) + name: value for name, value in scores.items()}
    return metrics, predictions


def score(task: Task, predictions: Predictions) -> dict[str, float]:
    """A task's metrics over the labelled rows of one split."""
    kept = predictions.labelled
    logits = predictions.logits[kept]
    return compute_metrics(task, logits[:, 0] if task.kind == "regression" else logits, predictions.labels[kept])


def teacher_predictions(features: Features) -> Predictions:
    """The predictions that a teacher's stored logits are."""
    assert features.teacher_logits is not None, "there is a teacher"
    return Predictions(features.rows, features.teacher_logits, features.labels, features.labelled)


def predictions_table(task: Task, predictions: Mapping[str, Predictions]) -> str:
    """Tab-separated text: split, row, label, prediction and logits of every row."""
    width = max(part.logits.shape[1] for part in predictions.values())
    lines = ["\t".join(["split", "row", "label", "prediction", *(f"logit_{index}" for index in range(width))])]
    for split, part in predictions.items():
        chosen = part.logits.argmax(axis=1)
        for index, row in enumerate(part.rows):
            logits = [f"{value:.6g}" for value in part.logits[index]]
            if task.kind == "regression":
                label, prediction = f"{part.labels[index]:.6g}", logits[0]
            else:
                label, prediction = task.labels[int(part.labels[index])], task.labels[int(chosen[index])]
            lines.append("\t".join([split, str(row), label if part.labelled[index] else "", prediction, *logits]))
    return "\n".join(lines) + "\n"
