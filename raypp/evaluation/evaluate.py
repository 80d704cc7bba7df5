"""Predictions and exact metrics on whole splits, sharded over the workers.

Every worker predicts its part, the predictions are gathered, and the metrics are computed once over all of them,
because a mean of per-worker F1 scores is not an F1 score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from raypp.data.batches import Indices, plan_tokens
from raypp.data.examples import EvaluationExamples
from raypp.evaluation.predictions import Predictions, without_padding
from raypp.models.loading import max_positions
from raypp.training.worker import Worker

if TYPE_CHECKING:
    from raypp.kinds import TaskKind
    from raypp.tasks import Task

EVALUATION_BATCH_SIZE = 64
EVALUATION_TOKENS = 64 * 128  # limit of a batch's tokens, with padding: longer rows come in smaller batches


def split_key(split: str, splits: tuple[str, ...]) -> str:
    """Prefix of the keys of a split's metrics: `eval/` for a single split, `eval/matched/` if there are several."""
    return "eval/" if len(splits) == 1 else f"eval/{split.removeprefix('dev_')}/"


def headline_key(task: Task) -> str:
    """Key of the metric by which runs are compared, on the first evaluation split."""
    return f"{split_key(task.eval_splits[0], task.eval_splits)}{task.headline}"


def batched_outputs(
    model: nn.Module,
    features: EvaluationExamples,
    kind: TaskKind,
    pad_id: int,
    device: torch.device,
    plan: Iterable[Indices],
    max_padded: int | None,
) -> Iterator[tuple[Indices, Tensor, dict[str, Tensor]]]:
    """Runs a model over features batch by batch, in the caller's gradient mode.

    Args:
        plan: the examples of each batch.
        max_padded: as in `Features.collate`.

    Yields:
        The examples of a batch, the model's outputs for them, and the padded inputs.
    """
    for indices in plan:
        padded = features.collate(indices, pad_id, max_padded=max_padded)
        inputs = {name: value.to(device) for name, value in padded.items()}
        yield indices, kind.outputs(kind.run(model, inputs), inputs), inputs


@torch.inference_mode()
def predict(
    model: nn.Module,
    features: EvaluationExamples,
    kind: TaskKind,
    pad_id: int,
    worker: Worker,
    batch_size: int = EVALUATION_BATCH_SIZE,
) -> Predictions:
    """A model's outputs for all rows of a split: the same on every worker, and for any number of workers. Leaves the
    model in evaluation mode."""
    model.eval()
    indices, predicted = [], []
    plan = plan_tokens(features.lengths, EVALUATION_TOKENS, batch_size)[worker.rank :: worker.world_size]
    longest = max_positions(model.config)
    for batch, outputs, inputs in batched_outputs(model, features, kind, pad_id, worker.device, plan, longest):
        indices.append(features.output_indices(batch, kind.outputs_per_token))
        predicted.append(without_padding(kind.predicted(outputs, inputs), inputs, kind.outputs_per_token))
    mine = (np.concatenate(indices), np.concatenate(predicted)) if predicted else None
    parts = [part for part in worker.gather(mine) if part is not None]
    order = np.argsort(np.concatenate([part[0] for part in parts]))
    return Predictions(features, np.concatenate([part[1] for part in parts])[order])


def evaluate(
    model: nn.Module, splits: Mapping[str, EvaluationExamples], kind: TaskKind, pad_id: int, worker: Worker
) -> tuple[dict[str, float], dict[str, Predictions]]:
    """Metrics of all evaluation splits, by key, and the predictions of each split.

    Raises:
        FloatingPointError: a logit is not finite.
    """
    predictions = {split: predict(model, features, kind, pad_id, worker) for split, features in splits.items()}
    return metrics_of(kind, predictions), predictions


def metrics_of(kind: TaskKind, predictions: Mapping[str, Predictions]) -> dict[str, float]:
    """Metrics of all splits, by key.

    Raises:
        FloatingPointError: a prediction is not finite.
    """
    splits = tuple(predictions)
    return {
        split_key(split, splits) + name: value
        for split, predicted in predictions.items()
        for name, value in kind.metrics(predicted).items()
    }
