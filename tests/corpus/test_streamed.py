"""Blocks streamed from the store: each once per epoch, similar lengths together, the same from any first batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypp.config import LanguageModelingTask
from raypp.corpus.blocks import SCHEMA, Blocks
from raypp.corpus.streamed import GROUP_BLOCKS, StreamedBlocks
from raypp.corpus.targets import Masker
from raypp.load_config import experiment_from
from raypp.storage import Location
from raypp.store import Artifact, Store, write_part

BLOCKS = 3 * GROUP_BLOCKS + 700


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two parts with several row groups; a block's tokens are its number."""
    chance = np.random.default_rng(0)
    with Store(Location.of(tmp_path_factory.mktemp("store"))).build("features", "key", {}) as build:
        parts, files = [], []
        for rows in (range(2 * GROUP_BLOCKS + 100), range(2 * GROUP_BLOCKS + 100, BLOCKS)):
            ids = [[row] * int(chance.integers(12, 64)) for row in rows]
            table = pa.table({"row": [*rows], "piece": [0] * len(rows), "input_ids": ids}, schema=SCHEMA)
            files.append(write_part(build.location, table, row_group_size=GROUP_BLOCKS))
            parts.append([files[-1].name, len(rows)])
        return build.finish(BLOCKS, {"part_blocks": parts}, files)


def stream(artifact: Artifact, window_blocks: int = 600, masker: Masker | None = None) -> StreamedBlocks:
    experiment = experiment_from(
        {
            "name": "any",
            "task": {"name": "corpus", "kind": "language_modeling"},
            "data": {"window_blocks": window_blocks},
            "student": {"model": "any"},
            "train": {"batch_size": 32, "seed": 7},
        }
    )
    return StreamedBlocks(experiment, 2, artifact, masker)


def batches(data: StreamedBlocks, epoch: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"rows": examples.rows[batch.indices].tolist(), **examples.collate(batch.indices, 0)}
        for examples, batch in data.batches(epoch, first)
    ]


def test_every_block_comes_once_an_epoch_with_its_own_tokens(artifact: Artifact) -> None:
    data = stream(artifact)
    whole = batches(data, 0)
    assert len(whole) == data.batch_counter()(0) == -(-BLOCKS // 32)
    assert sorted(row for batch in whole for row in batch["rows"]) == list(range(BLOCKS))
    for batch in whole:
        assert (batch["input_ids"] * batch["attention_mask"] == batch["input_ids"]).all()
        assert batch["input_ids"][:, 0].tolist() == batch["rows"]


def test_a_batch_does_not_depend_on_the_first_batch_that_is_read(artifact: Artifact) -> None:
    masking = LanguageModelingTask(name="a", kind="language_modeling", masking={"smoothing": 0.5}).masking
    assert masking is not None
    masker = Masker.build(masking, 7, np.arange(BLOCKS), [0], 0)
    whole = batches(stream(artifact, masker=masker), 1)
    for first in (1, 18, 19, 50, len(whole) - 1):
        again = batches(stream(artifact, masker=masker), 1, first)
        assert len(again) == len(whole) - first
        for one, other in zip(again, whole[first:], strict=True):
            assert one["rows"] == other["rows"]
            assert all((one[name] == other[name]).all() for name in ("input_ids", "labels", "chosen"))


def test_epochs_differ_and_lengths_in_a_batch_are_similar(artifact: Artifact) -> None:
    data = stream(artifact)
    first, second = ([batch["rows"] for batch in batches(data, epoch)] for epoch in (0, 1))
    assert first != second
    padded = [batch["attention_mask"] for batch in batches(data, 0)]
    used = sum(int(mask.sum()) for mask in padded) / sum(mask.numel() for mask in padded)
    assert used > 0.85, "little is padding"


def test_no_more_than_a_window_and_the_next_is_in_memory(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = Blocks.from_table

    def noted(table: pa.Table) -> Blocks:
        sizes.append(table.num_rows)
        return original(table)

    monkeypatch.setattr(Blocks, "from_table", noted)
    data = stream(artifact, window_blocks=600)
    for number, (_, batch) in enumerate(data.batches(0, 0)):
        assert len(batch) == 32 or number == data.order.num_batches - 1
        assert len(sizes) <= number // data.order.window_batches + 2
    assert max(sizes) <= 600
    assert sum(sizes) == BLOCKS
