"""The batches and the fingerprints of raw examples."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from raw_examples import official, rows, table, write

from raypp.config import Columns, FilesSource, OwnTask
from raypp.data.raw import BATCH_ROWS
from raypp.data.sources import open_source
from raypp.kinds import kind_of
from raypp.tasks import TASKS, resolve_task


def test_batches_are_bounded_and_train_is_cut(tmp_path: Path) -> None:
    text = "sentence\tlabel\n" + "".join(f"sentence {i}\t{i % 2}\n" for i in range(2 * BATCH_ROWS + 5))
    folder = write(tmp_path, train=text, dev=text)
    batches = list(official(folder, "sst2").read("train"))
    assert [batch.num_rows for batch in batches] == [BATCH_ROWS, BATCH_ROWS, 5]
    assert {batch.schema for batch in batches} == {kind_of(TASKS["sst2"]).schema()}
    assert batches[2].to_pylist()[0] == {"row": 2 * BATCH_ROWS, "sentence1": f"sentence {2 * BATCH_ROWS}", "label": 0}
    cut = official(folder, "sst2", max_train_rows=7)
    assert rows(cut, "train") == rows(official(folder, "sst2"), "train")[:7]
    assert len(rows(cut, "dev")) == 2 * BATCH_ROWS + 5


def test_fingerprint_follows_what_determines_the_rows(tmp_path: Path) -> None:
    text = table("sentence|label", "a|1", "b|0")
    here = official(write(tmp_path / "here", train=text, dev=text), "sst2")
    there = official(write(tmp_path / "there", train=text, dev=text + "c\t1\n"), "sst2")
    assert here.fingerprint("train") == there.fingerprint("train")
    assert here.fingerprint("train") == pickle.loads(pickle.dumps(here)).fingerprint("train")
    assert here.fingerprint("dev") != there.fingerprint("dev")
    cut = official(tmp_path / "here", "sst2", max_train_rows=1)
    assert cut.fingerprint("train") != here.fingerprint("train")
    assert cut.fingerprint("dev") == here.fingerprint("dev")
    own = {"train": str(tmp_path / "here" / "train.tsv"), "dev": str(tmp_path / "here" / "dev.tsv")}
    prints = set()
    for labels in (("bad", "good"), ("good", "bad")):
        for label in ("label", "sentence"):
            source = FilesSource(kind="files", **own, columns=Columns(sentence1="sentence", label=label))
            task = resolve_task(OwnTask(name="mine", labels=labels), source)
            prints.add(open_source(kind_of(task), source, required=()).fingerprint("train"))
    assert len(prints) == 4


def test_batches_of_long_texts_have_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypp.data.raw.BATCH_CHARACTERS", 100)
    lengths = [10, 95, 30, 30, 30, 30, 1]
    text = table("sentence|label", *("a" * length + "|1" for length in lengths))
    batches = list(official(write(tmp_path, train=text, dev=text), "sst2").read("train"))
    assert [batch.num_rows for batch in batches] == [2, 4, 1]
    assert [row for batch in batches for row in batch.column("row").to_pylist()] == list(range(7))
