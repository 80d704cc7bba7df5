"""Plain text from every source: what is read, what is held out, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_copy import hub_copy

from raypp.config import GlueTextSource, HubTextSource, LanguageModelingTask, OfficialSource, TextSource
from raypp.data.sources import open_source
from raypp.errors import ConfigError
from raypp.kinds import TaskKind, kind_of
from raypp.storage import Location
from raypp.tasks import find_task, resolve_task


def kind_of_text(source: Any) -> TaskKind:
    return kind_of(resolve_task(LanguageModelingTask(name="corpus", kind="language_modeling"), source))


def texts(source: Any, split: str, rows: int | None = None) -> list[str]:
    raw = open_source(kind_of_text(source), source, max_train_rows=rows)
    table = pa.Table.from_batches(raw.read(split))
    assert table["row"].to_pylist() == list(range(table.num_rows))
    return list(table["text"].to_pylist())


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line {number}\n" for number in range(2000)), encoding="utf-8")
    return path


def test_a_part_of_the_texts_is_held_out_and_none_is_lost(lines: Path) -> None:
    source = TextSource(kind="text", files=(str(lines),), held_out_fraction=0.1)
    train, dev = texts(source, "train"), texts(source, "dev")
    assert sorted([*train, *dev]) == sorted(lines.read_text().splitlines())
    assert 0.08 < len(dev) / 2000 < 0.12
    assert texts(source, "train", rows=10) == train[:10]
    assert texts(source, "dev", rows=10) == dev, "the dev split does not depend on the training rows"


def test_files_of_all_formats_follow_one_another(lines: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["from a table", "and again"], "id": [1, 2]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"body": "from JSON"}\n')
    (tmp_path / "c.csv").write_text('id,body\n1,"from, CSV"\n')
    files = tuple(str(tmp_path / name) for name in ("a.parquet", "b.jsonl", "c.csv"))
    source = TextSource(kind="text", files=files, dev_files=(str(lines),), column="body")
    assert texts(source, "train") == ["from a table", "and again", "from JSON", "from, CSV"]
    assert texts(source, "dev") == lines.read_text().splitlines()


def test_glues_sentences_are_those_of_its_training_files(glue_dir: Path) -> None:
    source = GlueTextSource(kind="glue_text", directory=str(glue_dir), tasks=("mrpc", "cola"), held_out_fraction=0.02)
    train, dev = texts(source, "train"), texts(source, "dev")
    mrpc = open_source(kind_of(find_task("mrpc")), OfficialSource(kind="official", directory=str(glue_dir / "MRPC")))
    pairs = pa.Table.from_batches(mrpc.read("train"))
    assert {*pairs["sentence1"].to_pylist(), *pairs["sentence2"].to_pylist()} <= {*train, *dev}
    assert len(train) + len(dev) == 2 * pairs.num_rows + 8551


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": ("nowhere.txt",)}, "data.source.files: there is no file"),
        (
            {"files": ("a.txt",), "quotes": "plain"},
            "data.source.quotes: applies only to .csv, .tsv files, and there is none, got plain",
        ),
        ({"files": ("corpus.pdf",)}, "corpus.pdf' cannot be read; allowed: a name that ends in .txt, .csv"),
    ],
)
def test_missing_files_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        texts(TextSource.model_validate({"kind": "text", **changes}), "train")


def test_splits_of_the_hub_need_the_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {split: datasets.Dataset.from_dict({"text": ["a", "b"]}) for split in ("train", "validation")}
    copy = hub_copy(tmp_path, monkeypatch, {"default": splits})
    source = {"kind": "hub_text", "repository": str(copy)}
    assert texts(HubTextSource.model_validate({**source, "dev_split": "validation"}), "dev") == ["a", "b"]
    with pytest.raises(ConfigError, match=r"data\.source\.dev_split: .* has no split 'dev'; it has: train, validation"):
        texts(HubTextSource.model_validate({**source, "dev_split": "dev"}), "dev")
    with pytest.raises(ConfigError) as caught:
        texts(HubTextSource.model_validate({**source, "dev_split": "validation", "column": "body"}), "dev")
    assert [problem.split(": ")[1].split(" of ")[0] for problem in caught.value.problems] == ["train", "validation"]


def test_a_missing_column_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"body": "from JSON"}\n')
    with pytest.raises(ConfigError, match=r"b.jsonl, line 1: no column 'text' \(data.source.column\); there are: body"):
        texts(TextSource(kind="text", files=(str(tmp_path / "b.jsonl"),)), "train")


def test_tasks_without_sentences_to_train_on_are_refused_together(tmp_path: Path) -> None:
    for folder in ("AX", "SQuAD-v1.1", "MRPC", "sentiment"):
        (tmp_path / folder).mkdir()
    (tmp_path / "AX" / "diagnostic.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n")
    (tmp_path / "SQuAD-v1.1" / "train-v1.1.json").write_text('{"data": []}')
    source = GlueTextSource(kind="glue_text", directory=str(tmp_path), tasks=("ax", "mrpc", "squad", "sentiment"))
    said = "data.source.tasks: there are no sentences to train on in ax, squad, sentiment; allowed: cola, sst2, mrpc, "
    with pytest.raises(ConfigError, match=re.escape(said)):
        texts(source, "train")


def test_text_and_labelled_tasks_are_not_mixed_up(tmp_path: Path) -> None:
    source = TextSource(kind="text", files=("some.txt",))
    with pytest.raises(ConfigError, match="kind: text is plain text, which needs a task"):
        resolve_task("mrpc", source)
    task = LanguageModelingTask(name="corpus", kind="language_modeling")
    with pytest.raises(ConfigError, match="corpus needs kind: text, hub_text or glue_text, got null"):
        resolve_task(task, None)


def test_texts_that_are_held_out_are_hashed_with_the_others(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    sha256 = Location.sha256
    monkeypatch.setattr(Location, "sha256", lambda file: (hashed.append(file.name), sha256(file))[1])
    source = TextSource(kind="text", files=(str(lines),), held_out_fraction=0.1)
    raw = open_source(kind_of_text(source), source)
    assert raw.fingerprint("train") != raw.fingerprint("dev")
    assert hashed == ["lines.txt"]
