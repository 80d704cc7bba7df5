"""Metrics of predicted classes and values: pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def accuracy(predicted: Array, labels: Array) -> float:
    """The fraction of rows whose label [rows] is predicted [rows]."""
    return float(np.mean(predicted == labels))


def f1(predicted: Array, labels: Array) -> float:
    """F1 of label 1 of two arrays [rows], as in GLUE's MRPC and QQP; 0.0 if label 1 occurs in neither of them."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, pos_label=1, zero_division=0.0))


def macro_f1(predicted: Array, labels: Array) -> float:
    """The mean of the F1 scores of all labels that occur in either of two arrays [rows]."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=0.0))


def matthews(predicted: Array, labels: Array) -> float:
    """Matthews' correlation of two or more classes [rows]; 0.0 if all predictions, or all labels, are the same."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def pearson(predicted: Array, labels: Array) -> float:
    """Pearson's correlation of two arrays [rows]; 0.0 if it is undefined, because predictions or labels are all the
    same."""
    from scipy.stats import pearsonr

    return _defined(pearsonr, predicted, labels)


def spearman(predicted: Array, labels: Array) -> float:
    """Spearman's rank correlation of two arrays [rows]; 0.0 if it is undefined, as `pearson`."""
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
"""Every metric of predicted classes or values and labels that the task table may name. Higher is better."""


def exp_entropy(logits: Array) -> float:
    """exp(mean over rows of H(softmax(logits))) of logits [rows, classes], with the entropy H in nats.

    It is from 1 (certain) to the number of classes (uniform); the movement-pruning scripts reported it.
    """
    from scipy.special import log_softmax

    log_probabilities = log_softmax(np.asarray(logits, dtype=np.float64), axis=1)
    entropy = -(np.exp(log_probabilities) * log_probabilities).sum(axis=1)
    return float(np.exp(entropy.mean()))


def class_metrics(names: Sequence[str], logits: Array, labels: Array) -> dict[str, float]:
    """Metrics of the classes with the highest logits, and `exp_entropy`. All of them are finite.

    Args:
        names: keys of METRICS, the headline first.
        logits: [rows, classes].
        labels: numbers of the classes, [rows].

    Raises:
        ValueError: there are no rows.
        FloatingPointError: a logit is not finite.
    """
    classes = require_finite(logits).argmax(axis=1)
    return _computed(names, classes, labels) | {"exp_entropy": exp_entropy(logits)}


def value_metrics(names: Sequence[str], values: Array, labels: Array) -> dict[str, float]:
    """Metrics of predicted values [rows] and true values [rows]. All of them are finite.

    Args:
        names: keys of METRICS, the headline first.

    Raises:
        ValueError: there are no rows.
        FloatingPointError: a value is not finite.
    """
    return _computed(names, require_finite(values), labels)


def require_finite(predictions: Array) -> Array:
    """Returns the predictions.

    Raises:
        FloatingPointError: one of them is not finite.
    """
    if not np.isfinite(predictions).all():
        row = int(np.argwhere(~np.isfinite(predictions))[0][0])
        raise FloatingPointError(f"the prediction of row {row} is not finite: {predictions[row]}")
    return predictions


def _computed(names: Sequence[str], predicted: Array, labels: Array) -> dict[str, float]:
    if len(labels) == 0:
        raise ValueError("metrics need at least one labelled row, got none")
    assert len(predicted) == len(labels), f"{len(predicted)} predictions for {len(labels)} labels"
    metrics = {name: METRICS[name](predicted, labels) for name in names}
    assert all(map(math.isfinite, metrics.values())), f"metrics are finite: {metrics}"
    return metrics


def _defined(correlation: Callable[[Array, Array], Any], predicted: Array, labels: Array) -> float:
    predicted, labels = np.asarray(predicted, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if np.ptp(predicted) == 0.0 or np.ptp(labels) == 0.0:
        return 0.0
    return float(correlation(predicted, labels)[0])
