"""Which output of a fine-tuned model belongs to which label of the task."""

from __future__ import annotations

import logging

import pytest
from transformers import BertConfig

from raypp.config import FilesSource, OwnTask
from raypp.errors import ConfigError
from raypp.kinds import kind_of
from raypp.kinds.classification import _warn_of_order
from raypp.tasks import TASKS, Task, resolve_task


def order(task: Task, *names: str) -> list[int]:
    config = BertConfig(id2label=dict(enumerate(names)))
    return kind_of(task).output_order(config, "teacher.model")


def test_labels_are_matched_by_name_in_any_case() -> None:
    assert order(TASKS["mnli"], "CONTRADICTION", "Entailment", "neutral") == [1, 2, 0]
    with pytest.raises(
        ConfigError, match=r"teacher.model: the model's labels \['a', 'b', 'c'\] are not the labels of mn"
    ):
        order(TASKS["mnli"], "a", "b", "c")


def test_labels_that_differ_only_in_case_are_matched_exactly() -> None:
    source = FilesSource(kind="files", train="train.csv", dev="dev.csv")
    task = resolve_task(OwnTask(name="words", labels=("us", "US")), source)
    assert order(task, "us", "US") == [0, 1]
    assert order(task, "US", "us") == [1, 0]
    with pytest.raises(ConfigError, match="are not the labels of words"):
        order(task, "us", "Us")


def test_labels_without_names_are_taken_in_order_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    _warn_of_order.cache_clear()
    with caplog.at_level(logging.WARNING, logger="raypp"):
        assert order(TASKS["sst2"], "LABEL_0", "LABEL_1") == [0, 1]
        assert not caplog.records
        for _ in range(2):
            assert order(TASKS["mnli"], "LABEL_0", "LABEL_1", "LABEL_2") == [0, 1, 2]
    assert [record.message for record in caplog.records] == [
        "teacher.model: the model's labels have no names; raypp takes them for entailment, neutral, contradiction, "
        "in this order"
    ]
