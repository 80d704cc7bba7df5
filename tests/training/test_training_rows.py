"""Steps that depend on features: planned before the first step, from features that Ray Data makes once, after all other
checks."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

from raypp.cli import main
from raypp.config import DataSettings, FilesSource, OwnTask
from raypp.data.features import Features
from raypp.data.raw import RawData
from raypp.data.sources import open_source
from raypp.kinds import kind_of
from raypp.load_config import load_experiment
from raypp.sweeps.plan import plan_sweep
from raypp.tasks import resolve_task
from raypp.training import training_rows
from raypp.training.training_rows import TrainingRows


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins like a process that has counted nothing."""
    monkeypatch.setattr(training_rows, "_lengths", {})
    monkeypatch.setattr(training_rows, "_row_counts", {})


TASK = {"name": "people", "kind": "question_answering", "unanswerable": True}
QUESTIONS = 24
SWEEP = {"space": {"train.learning_rate": {"choice": [1e-5, 2e-5, 3e-5]}}}


def questions(folder: Path) -> dict[str, str]:
    """Files of questions on contexts of several windows."""
    files = {}
    for split, count in (("train", QUESTIONS), ("dev", 8)):
        records = []
        for number in range(count):
            context = " ".join(f"Person {place} lives in house {place + number}." for place in range(6 + number % 5))
            text = f"house {number}."
            answers = {"text": [text], "answer_start": [context.index(text)]}
            records.append({"id": f"{split}-{number}", "question": "Where is person 0?", "context": context})
            records[-1]["answers"] = answers
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(record) + "\n" for record in records))
    return files


@pytest.fixture
def values(tmp_path: Path, minilm_dir: Path) -> dict[str, Any]:
    """A question answering experiment whose windows must be counted."""
    return {
        "name": "people",
        "run": "first",
        "task": TASK,
        "data": {"source": {"kind": "files", **questions(tmp_path)}, "max_length": 32, "stride": 8},
        "student": {"model": str(minilm_dir)},
        "train": {"epochs": 1, "batch_size": 16},
        "cluster": {"workers": 0, "storage": str(tmp_path / "runs")},
        "tracking": {"wandb": "off"},
    }


def write(folder: Path, values: dict[str, Any]) -> str:
    (folder / "people.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "people.yaml")


def lengths_of(values: dict[str, Any], minilm_dir: Path) -> np.ndarray:
    """Tokens of every window, counted with the tokenizer directly."""
    source = FilesSource.model_validate(values["data"]["source"])
    task = resolve_task(OwnTask.model_validate(TASK), source)
    kind = kind_of(task, DataSettings.model_validate(values["data"]))
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    tables = [kind.tokenize(batch, tokenizer) for batch in open_source(kind, source).read("train")]
    return np.concatenate([Features.from_table(table).lengths for table in tables])


@pytest.fixture
def never_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("tokenized in the driver")

    monkeypatch.setattr(TrainingRows, "_count", refuse)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session", "never_counts")
def test_a_run_counts_features_made_with_ray_data(
    values: dict[str, Any], tmp_path: Path, minilm_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    windows = len(lengths_of(values, minilm_dir))
    assert windows > 2 * QUESTIONS
    values["train"] |= {"epochs": 1.5}
    assert main(["train", write(tmp_path, values)]) == 0
    result = json.loads((tmp_path / "runs" / "people" / "first" / "result.json").read_text())
    an_epoch = -(-windows // 16)
    assert result["steps"] == 2 * an_epoch - an_epoch // 2
    shown = capsys.readouterr().err
    assert shown.index("features train") < shown.index("student")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session", "never_counts")
def test_trials_of_a_sweep_share_the_features_made_for_counting(values: dict[str, Any], tmp_path: Path) -> None:
    del values["run"]
    values |= {"sweep": SWEEP, "cluster": {"workers": 1, "storage": str(tmp_path / "runs")}}
    assert main(["sweep", write(tmp_path, values), "train.epochs=0.2"]) == 0
    (file,) = (tmp_path / "runs").glob("people/sweep-*/result.json")
    result = json.loads(file.read_text())
    assert result["counts"]["finished"] == 3
    assert result["built"]["features"] == 2, "of train and dev, once"


@pytest.mark.parametrize("by_tokens", [False, True])
def test_a_command_that_only_plans_counts_once_and_says_so(
    by_tokens: bool, values: dict[str, Any], tmp_path: Path, minilm_dir: Path, caplog: Any, capsys: Any
) -> None:
    lengths = lengths_of(values, minilm_dir)
    if by_tokens:
        values["train"] = {"epochs": 1, "batch_tokens": 96}
    with caplog.at_level(logging.WARNING):
        assert main(["show", write(tmp_path, values)]) == 0
        first = capsys.readouterr().out
        assert main(["show", write(tmp_path, values)]) == 0
    assert capsys.readouterr().out == first
    (said,) = [record.getMessage() for record in caplog.records if "tokenized in this process" in record.getMessage()]
    assert "train.jsonl" in said
    if not by_tokens:
        assert f"# {-(-len(lengths) // 16)} steps," in first
    else:
        steps = int(first.split(" steps,")[0].split("# ")[-1])
        assert lengths.sum() / 96 < steps < len(lengths)
    assert not (tmp_path / "runs" / "store").exists()


BAD = {
    "an answer in the dev file": lambda values: Path(values["data"]["source"]["dev"]).write_text('{"id": "x"}\n'),
    "a teacher": lambda values: values.update(teacher={"model": values["student"]["model"]}),
    "layers": lambda values: values["student"].update(layers=[0, 17]),
    "a trial": lambda values: values.update(sweep={"space": {"student.layers": {"choice": [[0], [17]]}}}),
}


@pytest.mark.parametrize("bad", BAD)
def test_problems_are_reported_before_any_feature_is_made(
    bad: str, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr("raypp.cluster.session.Session.start", refuse)
    BAD[bad](values)
    if bad == "a trial":
        del values["run"]
    assert main(["sweep" if bad == "a trial" else "train", write(tmp_path, values)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("*.parquet"))


def test_the_trials_of_a_sweep_read_their_input_once(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    read = RawData.read

    def counted(raw: RawData, split: str) -> Iterator[Any]:
        reads[split] += 1
        return read(raw, split)

    monkeypatch.setattr(RawData, "read", counted)
    rows = [{"sentence1": f"number {number} is fine.", "label": number % 2} for number in range(40)]
    for split, count in (("train", 40), ("dev", 20)):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    task = {"name": "numbers", "kind": "classification", "labels": ["odd", "even"]}
    source = {"kind": "files", **{split: str(tmp_path / f"{split}.jsonl") for split in ("train", "dev")}}
    values |= {"task": task, "data": {"source": source, "max_length": 32}, "run": None, "sweep": SWEEP}
    plan = plan_sweep(load_experiment(write(tmp_path, values)))
    assert len(plan.trials) == 3
    assert reads == {"train": 1, "dev": 1}
