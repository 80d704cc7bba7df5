"""A copy of the hub's GLUE: its splits and labels, and what is refused."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from hub_copy import hub_copy
from raw_examples import rows

from raypp.config import HubSource
from raypp.data.raw import RawData
from raypp.data.sources import open_source
from raypp.errors import ConfigError
from raypp.kinds import kind_of
from raypp.tasks import TASKS, Task


@pytest.fixture
def glue_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's repository of GLUE, with four configurations."""
    text = {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string")}
    data = {"sentence1": ["a", "b"], "sentence2": ["c", "d"]}
    features = {
        "mrpc": datasets.ClassLabel(names=["not_equivalent", "equivalent"]),
        "stsb": datasets.Value("float32"),
        # The order of the names differs from the task's.
        "rte": datasets.ClassLabel(names=["not_entailment", "entailment"]),
        "wnli": datasets.ClassLabel(names=["no", "yes"]),
    }
    labels = {"train": [1, 0], "validation": [0, 1], "test": [-1, -1]}
    configurations = {
        name: {
            split: datasets.Dataset.from_dict(
                {**data, "label": values}, features=datasets.Features({**text, "label": feature})
            )
            for split, values in labels.items()
        }
        for name, feature in features.items()
    }
    return hub_copy(tmp_path, monkeypatch, configurations)


def from_hub(repository: Path | str, task: Task) -> RawData:
    return open_source(kind_of(task), HubSource(kind="hub", repository=str(repository)))


def test_hub_splits_and_labels(glue_copy: Path) -> None:
    raw = from_hub(glue_copy, TASKS["mrpc"])
    assert raw.splits == ("train", "dev", "test")
    assert rows(raw, "train") == [
        {"sentence1": "a", "sentence2": "c", "label": 1},
        {"sentence1": "b", "sentence2": "d", "label": 0},
    ]
    assert [row["label"] for row in rows(raw, "dev")] == [0, 1]
    assert [row["label"] for row in rows(raw, "test")] == [None, None]
    assert [row["label"] for row in rows(from_hub(glue_copy, TASKS["stsb"]), "train")] == [1.0, 0.0]
    assert [row["label"] for row in rows(from_hub(glue_copy, TASKS["rte"]), "train")] == [0, 1]
    assert raw.fingerprint("train") == from_hub(glue_copy, TASKS["mrpc"]).fingerprint("train")
    assert raw.fingerprint("train") != raw.fingerprint("dev")


def test_hub_refusals_say_why_and_what_to_do(glue_copy: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"the labels of wnli are \['not_entailment', 'entailment'\], got \['no', 'ye"
    ):
        from_hub(glue_copy, TASKS["wnli"])
    with pytest.raises(ConfigError, match=r"data\.source\.repository: .* \(cola\) cannot be loaded: .*cola"):
        from_hub(glue_copy, TASKS["cola"])
    with pytest.raises(ConfigError, match=r"nobody/nothing \(mrpc\) cannot be loaded: .*kind: official"):
        from_hub("nobody/nothing", TASKS["mrpc"])
