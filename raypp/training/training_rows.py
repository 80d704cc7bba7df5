"""The number of rows of the training split's features and, if batches are cut by tokens, the length of each row.

They determine the number of steps and thereby the schedule, so they must be known before the first step. If each
example makes one row, reading the examples is enough. The number of windows of long contexts, of blocks of plain text,
and of tokens of a row are only known once the features exist. The features are made with Ray Data and kept in the
store, as usual; a command that only plans (`raypp show`) counts in its own process instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raypp.data.features import Features
from raypp.data.raw import RawData
from raypp.errors import Problems
from raypp.kinds import TaskKind
from raypp.models.loading import load_tokenizer
from raypp.store import Artifact, Store

Lengths = npt.NDArray[np.int64]
"""Tokens of each row, [rows]; all 0 if batches are cut by rows, because the lengths are not needed then."""
TRAIN_SPLIT = "train"
logger = logging.getLogger("raypp")

# By content key, because the trials of a sweep share their input.
_lengths: dict[tuple[str, bool], Lengths] = {}
_row_counts: dict[str, int] = {}


@dataclass(frozen=True)
class TrainingRows:
    """The rows of an experiment's training split, under its student's tokenizer."""

    raw: RawData
    kind: TaskKind
    tokenizer_folder: Path
    tokenizer: str
    """Fingerprint of the tokenizer."""
    store: Store
    by_tokens: bool
    """Whether batches are cut by tokens."""

    def known(self) -> Lengths | None:
        """The lengths, if they are known without making features; None otherwise.

        Reads every split once, so that a bad row is found now. Splits whose features are in the store were read before,
        and plain text is read when it is cut.

        Raises:
            ConfigError: lists the problems of every split.
            StorageFailed: the store fails after all retries.
        """
        problems = Problems()
        rows = {}
        for split in self.kind.task.run_splits:
            with problems.collect():
                if not self.kind.cuts_texts and self._stored(split) is None:
                    rows[split] = self._read(split)
        problems.stop()
        if self.kind.cuts_texts and any(self._stored(split) is None for split in self.kind.task.run_splits):
            return None  # a split without a single block is found when it is cut
        if (artifact := self._stored(TRAIN_SPLIT)) is not None:
            return self._lengths_in(artifact)
        needs_features = self.by_tokens or not self.kind.rows_are_examples
        return None if needs_features else np.zeros(rows[TRAIN_SPLIT], np.int64)

    def make(self, prepare: Callable[[str], Artifact] | None) -> Lengths:
        """The lengths, if `known` returns None.

        Args:
            prepare: makes the features of a split; None to count in this process instead.

        Raises:
            ConfigError: a text cannot be read or tokenized, or a split has no rows.
            StorageFailed: the store fails after all retries.
        """
        problems = Problems()
        lengths = {}
        for split in self.kind.task.run_splits if self.kind.cuts_texts else (TRAIN_SPLIT,):
            with problems.collect():
                artifact = self._stored(split)
                if artifact is None and prepare is not None:
                    artifact = prepare(split)
                lengths[split] = self._count(split) if artifact is None else self._lengths_in(artifact)
                if not len(lengths[split]):
                    problems.found.append(f"data.source: {self.raw.describe(split)} leaves nothing to learn from")
        problems.stop()
        return lengths[TRAIN_SPLIT]

    def _read(self, split: str) -> int:
        key = self._key(split)
        if key not in _row_counts:
            _row_counts[key] = sum(batch.num_rows for batch in self.raw.read(split))
        return _row_counts[key]

    def _key(self, split: str) -> str:
        return self.kind.features_key(raw_fingerprint=self.raw.fingerprint(split), tokenizer_fingerprint=self.tokenizer)

    def _stored(self, split: str) -> Artifact | None:
        return self.store.find("features", self._key(split))

    def _lengths_in(self, artifact: Artifact) -> Lengths:
        if not self.by_tokens:
            return np.zeros(artifact.rows, np.int64)
        return Features.from_table(artifact.read_table()).lengths.astype(np.int64)

    def _count(self, split: str) -> Lengths:
        key = self._key(split), self.by_tokens
        if key not in _lengths:
            logger.warning(
                "%s is tokenized in this process, only to count the steps; `raypp prepare` makes this unnecessary",
                self.raw.describe(split),
            )
            tokenizer = load_tokenizer(self.tokenizer_folder, "student.model")
            tables = (self.kind.tokenize(batch, tokenizer) for batch in self.raw.read(split))
            lengths = [
                Features.from_table(table).lengths if self.by_tokens else np.zeros(table.num_rows, np.int64)
                for table in tables
            ]
            _lengths[key] = np.concatenate([np.zeros(0, np.int64), *lengths])
        return _lengths[key]
