"""Plain text for language modeling: text files, tables, a data set of the hub, or the sentences of GLUE's tasks.

A text is a line of a text file or a row of a table. The dev split is the source's own, or else a part of the texts that
is chosen by their positions alone.
"""

from __future__ import annotations

import hashlib
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from raypp.config import GlueTextSource, HubTextSource, OfficialSource, TextSource
from raypp.data.files import (
    READERS,
    ending,
    file_identity,
    problems_of_file,
    problems_of_quotes,
    read_records,
    value_in,
)
from raypp.data.hub import load_dataset
from raypp.data.lines import numbered_lines, without_end
from raypp.data.official import OfficialData
from raypp.data.raw import Example, RawData
from raypp.data.values import BadValueError, text_of
from raypp.errors import ConfigError
from raypp.storage import Location
from raypp.tasks import TASKS, Task

if TYPE_CHECKING:
    from raypp.kinds import TaskKind

TRAIN, DEV = "train", "dev"


class TextData(RawData):
    """Texts without labels. A fraction of them is held out as the dev split if the source has none."""

    def __init__(self, kind: TaskKind, held_out_fraction: float | None, max_train_rows: int | None) -> None:
        super().__init__(kind, (TRAIN, DEV), max_train_rows)
        self.held_out_fraction = held_out_fraction
        """None if the source has its own dev split."""
        self._content: dict[str, object] | None = None

    @abstractmethod
    def texts(self, split: str) -> Iterator[str]:
        """The texts of one of the source's own splits, in the source's order."""

    @abstractmethod
    def content(self, split: str) -> dict[str, object]:
        """Everything that determines the texts of one of the source's own splits."""

    def examples(self, split: str) -> Iterator[Example]:
        if self.held_out_fraction is None:
            yield from ((text, None) for text in self.texts(split))
            return
        for number, text in enumerate(self.texts(TRAIN)):
            if _is_held_out(number, self.held_out_fraction) == (split == DEV):
                yield text, None

    def identity(self, split: str) -> dict[str, object]:
        if self.held_out_fraction is None:
            return self.content(split)
        if self._content is None:  # reads the whole source, so only once
            self._content = self.content(TRAIN)
        return {**self._content, "held_out": self.held_out_fraction, "split": split}


def _is_held_out(number: int, fraction: float) -> bool:
    return zlib.crc32(number.to_bytes(8, "little")) < fraction * 2**32


class TextFiles(TextData):
    """The user's own files: one text per line, or a column of Parquet, CSV, TSV or JSON lines."""

    def __init__(self, kind: TaskKind, source: TextSource, max_train_rows: int | None) -> None:
        self.column, self.quotes = source.column, source.quotes
        self.files = {
            split: [Location.of(uri, f"data.source.{field}") for uri in uris]
            for split, field, uris in ((TRAIN, "files", source.files), (DEV, "dev_files", source.dev_files))
        }
        problems = problems_of_quotes(self.quotes, [*self.files[TRAIN], *self.files[DEV]])
        for field, files in (("files", self.files[TRAIN]), ("dev_files", self.files[DEV])):
            for file in files:
                problems += problems_of_file(field, file, (".txt", *READERS))
        if problems:
            raise ConfigError(problems)
        super().__init__(kind, None if source.dev_files else source.held_out_fraction, max_train_rows)

    def texts(self, split: str) -> Iterator[str]:
        for file in self.files[split]:
            if ending(file) == ".txt":
                yield from (without_end(line) for _, line in numbered_lines(file))
                continue
            for place, record in read_records(file, self.quotes, {self.column}):
                try:
                    yield text_of(value_in(record, self.column, "data.source.column"), self.column)
                except BadValueError as bad:
                    raise bad.at(place) from None

    def content(self, split: str) -> dict[str, object]:
        files = [file_identity(file, self.quotes) for file in self.files[split]]
        return {"files": files, "column": self.column}

    def describe(self, split: str) -> str:
        files = self.files[split] or self.files[TRAIN]
        return ", ".join(map(str, files))


class HubTexts(TextData):
    """A column of a data set of the Hugging Face hub."""

    def __init__(self, kind: TaskKind, source: HubTextSource, max_train_rows: int | None) -> None:
        self.source = source
        self._data = load_dataset(source.repository, source.configuration, source.revision)
        self._splits = {TRAIN: source.split, DEV: source.dev_split or source.split}
        problems = []
        for field, split in (("split", source.split), ("dev_split", source.dev_split)):
            if split is None:
                continue
            if split not in self._data:
                there = ", ".join(self._data)
                problems.append(f"data.source.{field}: {source.repository} has no split {split!r}; it has: {there}")
            elif source.column not in (names := self._data[split].column_names):
                problems.append(
                    f"data.source.column: {split} of {source.repository} has no column {source.column!r}; it has: "
                    f"{', '.join(names)}"
                )
        if problems:
            raise ConfigError(problems)
        super().__init__(kind, None if source.dev_split else source.held_out_fraction, max_train_rows)

    def texts(self, split: str) -> Iterator[str]:
        column = self.source.column
        rows = self._data[self._splits[split]].select_columns([column]).with_format("arrow")
        row = 0
        for batch in rows.iter(batch_size=1000):
            for value in batch.column(column).to_pylist():
                row += 1
                try:
                    yield text_of(value, column)
                except BadValueError as bad:
                    raise bad.at(f"{self.describe(split)}, row {row}") from None

    def content(self, split: str) -> dict[str, object]:
        digest = hashlib.sha256()
        for text in self.texts(split):
            digest.update(repr(text).encode())
        return {"hub": digest.hexdigest()}

    def describe(self, split: str) -> str:
        return f"{self._splits[split]} of {self.source.repository}"


class GlueTexts(TextData):
    """All sentences in the training splits of some GLUE tasks, from their official files."""

    def __init__(
        self, kind: TaskKind, source: GlueTextSource, max_train_rows: int | None, read_kinds: Sequence[TaskKind]
    ) -> None:
        """
        Args:
            read_kinds: the kinds of `source.tasks`, whose files are read.
        """
        folder = Location.of(source.directory, "data.source.directory")
        if strange := [one.task.name for one in read_kinds if not _has_sentences(one.task)]:
            allowed = ", ".join(one.name for one in TASKS.values() if _has_sentences(one))
            raise ConfigError(
                f"data.source.tasks: there are no sentences to train on in {', '.join(strange)}; allowed: {allowed}"
            )
        self.sources = [
            OfficialData(one, OfficialSource(kind="official", directory=str(folder / one.task.title)), None, (TRAIN,))
            for one in read_kinds
        ]
        super().__init__(kind, source.held_out_fraction, max_train_rows)

    def texts(self, split: str) -> Iterator[str]:
        for data in self.sources:
            for *sentences, _ in data.examples(split):
                yield from (sentence for sentence in sentences if sentence is not None)

    def content(self, split: str) -> dict[str, object]:
        return {"glue": [data.fingerprint(split) for data in self.sources]}

    def describe(self, split: str) -> str:
        return ", ".join(data.describe(TRAIN) for data in self.sources)


def _has_sentences(task: Task) -> bool:
    """Whether the task has an official training file, and all of its texts are sentences."""
    return task.kind != "question_answering" and any(file.split == TRAIN for file in task.official)
