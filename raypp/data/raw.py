"""Raw examples from any source in one form: Arrow batches of rows with texts and a nullable label."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raypp.errors import ConfigError

if TYPE_CHECKING:
    from raypp.kinds import TaskKind

BATCH_ROWS, BATCH_CHARACTERS = 10_000, 1 << 24
"""Maximum number of rows in a batch, and the number of characters at which a batch ends. They limit memory."""

logger = logging.getLogger("raypp")

FORMAT_VERSION = 1
"""Part of every fingerprint. It must be raised when the same input would give other rows."""

Example = tuple[Any, ...]
"""The texts of `TaskKind.columns`, then the label, which is None if it is unknown."""


class RawData(ABC):
    """The splits of a task, from one source."""

    def __init__(self, kind: TaskKind, splits: tuple[str, ...], max_train_rows: int | None) -> None:
        self.kind = kind
        self.task = kind.task
        self.splits = splits
        """The splits that the source has."""
        self.max_train_rows = max_train_rows
        self.skipped_rows: dict[str, int] = {}
        """Number of skipped rows, by split, for the splits that this process has read to the end."""
        self._fingerprints: dict[str, str] = {}

    @abstractmethod
    def examples(self, split: str) -> Iterator[Example]:
        """All examples of an available split, in the source's order.

        Raises:
            ConfigError: a row cannot be read.
        """

    @abstractmethod
    def identity(self, split: str) -> dict[str, object]:
        """Everything but the task that determines the split's rows: content hashes, columns, seeds."""

    @abstractmethod
    def describe(self, split: str) -> str:
        """The origin of the split, for messages."""

    def read(self, split: str) -> Iterator[pa.RecordBatch]:
        """The split's rows in batches with the schema `TaskKind.schema`; train is cut to `max_train_rows`.

        Raises:
            ConfigError: the split is absent or empty, or a row cannot be read; names file, line, value and what is
                allowed.
        """
        self._require(split)
        return self._batches(split)

    def check_first_row(self, split: str) -> None:
        """Reads the first row.

        Raises:
            ConfigError: the split is absent or empty, or its first row cannot be read.
        """
        self._require(split)
        if next(self.examples(split), None) is None:
            raise self._empty(split)

    def fingerprint(self, split: str) -> str:
        """SHA-256 of everything that determines the split's rows. Reads the files, once."""
        self._require(split)
        if split not in self._fingerprints:
            task = self.task
            content = {"format": FORMAT_VERSION, "task": task.name, "kind": task.kind, "pair": task.pair}
            content |= {"labels": task.labels, "source": self.identity(split), "rows": self._limit(split)}
            self._fingerprints[split] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return self._fingerprints[split]

    def _require(self, split: str) -> None:
        if split not in self.splits:
            raise ConfigError(f"data.source: {self.task.name} has no split {split!r} here; it has: {list(self.splits)}")

    def _empty(self, split: str) -> ConfigError:
        return ConfigError(f"data.source: {self.describe(split)} holds no rows; at least one is needed")

    def _limit(self, split: str) -> int | None:
        return self.max_train_rows if split == self.task.train_split else None

    def _drops_untrainable(self, split: str) -> bool:
        """Whether examples of this split that cannot be trained on are skipped."""
        return split == self.task.train_split and not self.kind.all_are_trainable

    def _trainable(self, split: str) -> Iterator[Example]:
        """The examples that can be trained on; counts the others."""
        skipped = 0
        for example in self.examples(split):
            if self.kind.is_trainable(example):
                yield example
            else:
                skipped += 1
        known = self.skipped_rows.get(split, 0)
        if skipped:
            self.skipped_rows[split] = skipped
            if known != skipped:
                where = self.describe(split)
                logger.warning("%s: skipped %d rows whose labels do not fit their texts", where, skipped)

    def _batches(self, split: str) -> Iterator[pa.RecordBatch]:
        schema = self.kind.schema()
        row = 0
        for columns in self.columns_of(split, self._limit(split)):
            count = len(next(iter(columns.values())))
            columns["row"] = pa.array(range(row, row + count), schema.field("row").type)
            yield pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
            row += count
        if row == 0:
            raise self._empty(split)

    def columns_of(self, split: str, limit: int | None) -> Iterator[dict[str, pa.Array]]:
        """The first `limit` examples in batches: the columns of `TaskKind.schema` without the row numbers."""
        examples = self._trainable(split) if self._drops_untrainable(split) else self.examples(split)
        return in_columns(islice(examples, limit), self.kind)


def in_columns(examples: Iterator[Example], kind: TaskKind) -> Iterator[dict[str, pa.Array]]:
    """Examples in batches of at most BATCH_ROWS, as the columns of `TaskKind.schema` without the row numbers."""
    schema = kind.schema()
    while chunk := _chunk(examples):
        *texts, labels = zip(*chunk, strict=True)
        # Not strict: a missing second sentence (None) has no column.
        values = {"label": labels, **dict(zip(kind.columns, texts, strict=False))}
        yield {name: pa.array(values[name], schema.field(name).type) for name in schema.names if name != "row"}


def _chunk(examples: Iterator[Example]) -> list[Example]:
    """The examples of the next batch."""
    chunk: list[Example] = []
    characters = 0
    for example in examples:
        chunk.append(example)
        characters += sum(len(text) for text in example[:-1] if text is not None)
        if len(chunk) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            break
    return chunk
