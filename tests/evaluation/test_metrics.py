"""Metrics against scikit-learn, scipy and values worked out by hand; submission files as GLUE's samples write them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from raypp.config import FilesSource, OwnTask
from raypp.evaluation.metrics import class_metrics, exp_entropy, value_metrics
from raypp.kinds import kind_of
from raypp.tasks import TASKS, resolve_task

FILES = FilesSource(kind="files", train="train.csv", dev="dev.csv")


def logits_of(classes: list[int], num_classes: int = 2) -> np.ndarray:
    """Logits that predict these classes with certainty."""
    return np.eye(num_classes, dtype=np.float32)[classes] * 50


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "qqp", "mnli", "wnli", "ax"])
def test_classification_metrics_equal_scikit_learns(name: str) -> None:
    task = TASKS[name]
    random = np.random.default_rng(0)
    labels = random.integers(0, len(task.labels), 500)
    logits = random.normal(size=(500, len(task.labels))) + 0.8 * np.eye(len(task.labels))[labels]
    classes = logits.argmax(1)
    reference = {
        "accuracy": lambda: sklearn.metrics.accuracy_score(labels, classes),
        "f1": lambda: sklearn.metrics.f1_score(labels, classes),
        "matthews": lambda: sklearn.metrics.matthews_corrcoef(labels, classes),
    }
    metrics = class_metrics(task.metrics, logits.astype(np.float32), labels)
    assert list(metrics) == [*task.metrics, "exp_entropy"]
    for metric in task.metrics:
        assert metrics[metric] == pytest.approx(reference[metric](), abs=1e-12)


@pytest.mark.parametrize("name", ["stsb", "similarity"])
def test_regression_metrics_equal_scipys(name: str) -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 11, 300) / 2
    values = labels + random.normal(size=300)
    metrics = value_metrics(TASKS[name].metrics, values, labels)
    assert list(metrics) == ["pearson", "spearman"]
    assert metrics["pearson"] == pytest.approx(scipy.stats.pearsonr(values, labels).statistic, abs=1e-12)
    assert metrics["spearman"] == pytest.approx(scipy.stats.spearmanr(values, labels).statistic, abs=1e-12)


def test_values_worked_out_by_hand() -> None:
    # 3 true positives, 1 false positive, 1 false negative, 2 true negatives.
    labels, classes = np.array([1, 1, 1, 1, 0, 0, 0]), [1, 1, 1, 0, 1, 0, 0]
    metrics = class_metrics(TASKS["mrpc"].metrics, logits_of(classes), labels)
    assert metrics["accuracy"] == pytest.approx(5 / 7)
    assert metrics["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    cola = class_metrics(TASKS["cola"].metrics, logits_of(classes), labels)
    assert cola["matthews"] == pytest.approx((3 * 2 - 1 * 1) / math.sqrt(4 * 4 * 3 * 3))
    # Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * (1 + 1) / (4 * 15).
    stsb = value_metrics(TASKS["stsb"].metrics, np.array([0.1, 0.5, 2.0, 9.0]), np.array([1.0, 3.0, 2.0, 4.0]))
    assert stsb["spearman"] == pytest.approx(0.8)


def test_macro_f1_of_a_user_task_with_three_labels() -> None:
    task = resolve_task(OwnTask(name="mine", labels=("a", "b", "c")), FILES)
    labels, classes = np.array([0, 0, 1, 1, 2, 2]), [0, 0, 1, 2, 2, 1]
    metrics = class_metrics(task.metrics, logits_of(classes, 3), labels)
    assert metrics["macro_f1"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert metrics["accuracy"] == pytest.approx(4 / 6)


def test_entropy_is_exponentiated_after_the_mean() -> None:
    # One certain row (H = 0) and one even row (H = ln 2): exp(ln 2 / 2), and not (1 + 2) / 2.
    logits = np.array([[1000.0, -1000.0], [3.0, 3.0]])
    assert exp_entropy(logits) == pytest.approx(math.sqrt(2))
    assert exp_entropy(np.zeros((5, 3))) == pytest.approx(3)
    random = np.random.default_rng(2).normal(size=(50, 3))
    probabilities = np.exp(random) / np.exp(random).sum(1, keepdims=True)
    expected = math.exp(np.mean([scipy.stats.entropy(row) for row in probabilities]))
    assert exp_entropy(random) == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
def test_undefined_correlations_are_zero_and_everything_is_json() -> None:
    constant = value_metrics(TASKS["stsb"].metrics, np.full(4, 2.5), np.array([1.0, 2.0, 3.0, 4.0]))
    assert constant == {"pearson": 0.0, "spearman": 0.0}
    assert value_metrics(TASKS["stsb"].metrics, np.array([1.0]), np.array([1.0])) == {"pearson": 0.0, "spearman": 0.0}
    majority = class_metrics(TASKS["cola"].metrics, logits_of([1, 1, 1]), np.array([1, 0, 1]))
    assert majority["matthews"] == 0.0
    negative = class_metrics(TASKS["mrpc"].metrics, logits_of([0, 0]), np.array([0, 0]))
    assert negative["f1"] == 0.0
    json.dumps([constant, majority, negative], allow_nan=False)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_is_refused(bad: float) -> None:
    logits = logits_of([0, 1, 1])
    logits[1, 0] = bad
    with pytest.raises(FloatingPointError, match="row 1 is not finite"):
        class_metrics(TASKS["sst2"].metrics, logits, np.array([0, 1, 1]))
    with pytest.raises(FloatingPointError, match="row 2 is not finite"):
        kind_of(TASKS["stsb"]).submission(np.array([[1.0], [2.0], [bad]]))


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one labelled row"):
        class_metrics(TASKS["sst2"].metrics, np.zeros((0, 2)), np.zeros(0))


@pytest.mark.parametrize(
    ("name", "predictions", "expected"),
    [
        ("cola", logits_of([1, 0]), "index\tprediction\n0\t1\n1\t0\n"),
        ("wnli", logits_of([1, 0]), "index\tprediction\n0\t1\n1\t0\n"),
        ("rte", logits_of([1, 0]), "index\tprediction\n0\tnot_entailment\n1\tentailment\n"),
        ("mnli", logits_of([2, 0, 1], 3), "index\tprediction\n0\tcontradiction\n1\tentailment\n2\tneutral\n"),
        ("ax", logits_of([1], 3), "index\tprediction\n0\tneutral\n"),
        ("stsb", np.array([[2.34567], [5.2], [-0.1]]), "index\tprediction\n0\t2.346\n1\t5.000\n2\t0.000\n"),
    ],
)
def test_submission_is_as_the_samples_of_glue(name: str, predictions: np.ndarray, expected: str) -> None:
    assert kind_of(TASKS[name]).submission(predictions) == expected
