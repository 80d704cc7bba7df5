"""A corpus cut on Ray: the blocks and counts of one process, the same parts on any cluster, from the store the second
time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from raypp.cluster import prepare_corpus
from raypp.cluster.prepare_corpus import cut_corpus
from raypp.config import DataSettings, LanguageModelingTask, TextSource
from raypp.corpus.blocks import TOKEN_COUNTS, CutReport, count_tokens, cut_texts
from raypp.corpus.streamed import GROUP_BLOCKS
from raypp.data.sources import open_source
from raypp.errors import ConfigError
from raypp.kinds import kind_of
from raypp.storage import Location
from raypp.store import Store
from raypp.tasks import resolve_task

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SEEN: list[tuple[int, int | None]] = []


def corpus(path: Path, held_out: float = 0.1) -> tuple[Any, Any]:
    source = TextSource(kind="text", files=(str(path),), held_out_fraction=held_out)
    task = resolve_task(LanguageModelingTask(name="corpus", kind="language_modeling"), source)
    kind = kind_of(task, DataSettings(max_length=32))
    return open_source(kind, source), kind


@pytest.fixture
def text(tmp_path: Path) -> Path:
    chance = np.random.default_rng(0)
    words = ["river", "stone", "quickly", "the", "of", "seven", "mountains", "unbelievable", "🙂"]
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(" ".join(chance.choice(words, chance.integers(0, 60))) for _ in range(5000)))
    return path


def test_blocks_and_counts_are_those_of_one_process(
    text: Path, tmp_path: Path, minilm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_corpus, "PART_BYTES", 100_000)  # several parts and windows
    raw, kind = corpus(text)
    store = Store(Location.of(tmp_path / "store"))
    artifact = cut_corpus(raw, "train", kind, str(minilm_dir), store, lambda *done: SEEN.append(done))
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    expected, report = cut_texts(pa.Table.from_batches(raw.read("train")), tokenizer, 32)

    names = [name for name, _ in artifact.extra["part_blocks"]]
    assert len(names) > 6
    assert sorted(names) == sorted(artifact.parts)
    found = pa.concat_tables([artifact.read_part(name) for name in names])
    assert found.equals(expected), "in the source's order"
    assert CutReport(**artifact.extra["report"]) == report
    assert report.short_blocks > 0 < report.cut_texts
    counts = (artifact.location / TOKEN_COUNTS).read_json()
    assert counts == count_tokens(expected, len(tokenizer)).tolist()
    assert SEEN[-1] == (report.texts, report.texts)
    groups = artifact.read_groups(names[0], [1, 0])
    assert groups[1].num_rows == GROUP_BLOCKS
    assert groups[1].equals(artifact.read_part(names[0]).slice(0, GROUP_BLOCKS))

    assert store.find("features", artifact.key) == artifact
    dev = cut_corpus(raw, "dev", kind, str(minilm_dir), store, lambda *_: None)
    assert dev.key != artifact.key
    assert dev.extra["report"]["texts"] + report.texts == 5000


def test_text_that_leaves_nothing_is_refused(tmp_path: Path, minilm_dir: Path) -> None:
    (tmp_path / "short.txt").write_text("too short\n" * 50)
    raw, kind = corpus(tmp_path / "short.txt")
    store = Store(Location.of(tmp_path / "store"))
    with pytest.raises(
        ConfigError, match=r"short.txt leaves nothing to learn from: 4\d texts .* 4\d with fewer than 12"
    ):
        cut_corpus(raw, "train", kind, str(minilm_dir), store, lambda *_: None)
    assert not list(Path(tmp_path / "store").rglob("manifest.json"))


def test_a_text_that_cannot_be_read_is_told_with_its_place(tmp_path: Path, minilm_dir: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "fine"}\n{"text": 3}\n')
    source = TextSource(kind="text", files=(str(tmp_path / "a.jsonl"),), dev_files=(str(tmp_path / "a.jsonl"),))
    kind = kind_of(resolve_task(LanguageModelingTask(name="corpus", kind="language_modeling"), source))
    raw = open_source(kind, source)
    with pytest.raises(ConfigError, match=r"a.jsonl, line 3: text is 3; allowed: text"):
        cut_corpus(raw, "train", kind, str(minilm_dir), Store(Location.of(tmp_path)), lambda *_: None)
