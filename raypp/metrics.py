"""Metrics of a task's predictions, and the file in which GLUE takes predictions.

Everything here is a pure function of arrays: predictions are logits `[rows, classes]` in classification and values
`[rows]` in regression, in the order of `task.labels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from raypp.tasks import Task

Array = npt.NDArray[Any]


def accuracy(predicted: Array, labels: Array) -> float:
    """The part of the rows whose label was predicted."""
    return float(np.mean(predicted == labels))


def f1(predicted: Array, labels: Array) -> float:
    """F1 of the second label, as GLUE has it for MRPC and QQP; 0.0 where it is neither predicted nor there."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, pos_label=1, zero_division=0.0))


def macro_f1(predicted: Array, labels: Array) -> float:
    """The mean of the F1 of each label that is predicted or there."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=0.0))


def matthews(predicted: Array, labels: Array) -> float:
    """Matthews' correlation of two or more classes; 0.0 where all predictions, or all labels, are the same."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def pearson(predicted: Array, labels: Array) -> float:
    """Pearson's correlation; 0.0 where it is undefined, which is where predictions or labels are all the same."""
    from scipy.stats import pearsonr

    return _defined(pearsonr, predicted, labels)


def spearman(predicted: Array, labels: Array) -> float:
    """Spearman's rank correlation; 0.0 where it is undefined, as `pearson`."""
    from scipy.stats import spearmanr

    return _defined(spearmanr, predicted, labels)


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
"""Every metric that the task table may name: of predicted classes or values, and labels. Higher is better."""


def exp_entropy(logits: Array) -> float:
    """exp(mean over rows of H(softmax(logits))), H in nats: from 1 (certain) to the number of classes (clueless).

    The exponential of the mean entropy, as the movement-pruning scripts reported it.
    """
    from scipy.special import log_softmax

    log_probabilities = log_softmax(np.asarray(logits, dtype=np.float64), axis=1)
    entropy = -(np.exp(log_probabilities) * log_probabilities).sum(axis=1)
    return float(np.exp(entropy.mean()))


def compute_metrics(task: Task, predictions: Array, labels: Array) -> dict[str, float]:
    """The task's metrics, headline first, and in classification `exp_entropy`; all of them finite.

    Args:
        task: says which metrics.
        predictions: logits `[rows, classes]`, or values `[rows]` in regression.
        labels: label numbers or values, `[rows]`.

    Raises:
        ValueError: there are no rows.
        FloatingPointError: a prediction is not finite.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if len(labels) == 0:
        raise ValueError(f"metrics of {task.name} need at least one labelled row, got none")
    assert len(predictions) == len(labels), f"{len(predictions)} predictions for {len(labels)} labels"
    predicted = _predicted(task, predictions)
    metrics = {name: METRICS[name](predicted, labels) for name in task.metrics}
    if task.kind == "classification":
        metrics["exp_entropy"] = exp_entropy(predictions)
    assert all(map(math.isfinite, metrics.values())), f"metrics are finite: {metrics}"
    return metrics


def submission_rows(task: Task, predictions: Array) -> Iterator[str]:
    """The lines of a GLUE submission file (`task.submission_file(split)`), each with its newline.

    A class is written as GLUE's sample submissions do, by number or by name; a value of STS-B is clipped to 0 to 5 and
    has 3 decimals.

    Args:
        task: says how a label is written.
        predictions: as in `compute_metrics`, of all rows of a test split in the source's order.

    Raises:
        FloatingPointError: a prediction is not finite.
    """
    yield "index\tprediction\n"
    for index, value in enumerate(_predicted(task, np.asarray(predictions)).tolist()):
        yield f"{index}\t{_written(task, value)}\n"


def _predicted(task: Task, predictions: Array) -> Array:
    """Classes or values `[rows]`."""
    if not np.isfinite(predictions).all():
        row = int(np.argwhere(~np.isfinite(predictions))[0][0])
        raise FloatingPointError(f"the prediction of row {row} is not finite: {predictions[row]}")
    if task.kind == "regression":
        assert predictions.ndim == 1, f"a regression task predicts one value a row, got shape {predictions.shape}"
        return predictions
    expected = (len(predictions), task.num_outputs)
    assert predictions.shape == expected, f"logits of {task.name} have shape {expected}, got {predictions.shape}"
    return np.asarray(predictions.argmax(axis=1))


def _written(task: Task, value: float | int) -> str:
    if task.kind == "classification":
        return str(value) if task.digit_labels else task.labels[int(value)]
    if task.value_range is None:
        return f"{value:.6g}"
    low, high = task.value_range
    return f"{min(max(value, low), high) + 0.0:.3f}"  # + 0.0: no negative zero


def _defined(correlation: Callable[[Array, Array], Any], predicted: Array, labels: Array) -> float:
    predicted, labels = np.asarray(predicted, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if np.ptp(predicted) == 0.0 or np.ptp(labels) == 0.0:
        return 0.0
    return float(correlation(predicted, labels)[0])
