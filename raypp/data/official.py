"""The files of a task as they are published.

GLUE's files are tab-separated, and quotes in them are ordinary characters; SWAG's are CSV; squad.py reads SQuAD's JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from raypp.config import OfficialSource
from raypp.data.lines import delimited_rows, numbered_lines, without_empty_end, without_end
from raypp.data.raw import Example, RawData
from raypp.data.squad import squad_examples
from raypp.data.values import BadValueError, official_labels
from raypp.errors import ConfigError
from raypp.storage import Location
from raypp.tasks import OfficialFile

if TYPE_CHECKING:
    from raypp.kinds import TaskKind

FIELD = "data.source.directory"

logger = logging.getLogger("raypp")


class TruncatedRowError(BadValueError):
    """A row with too few fields, or without its label."""


class OfficialData(RawData):
    """A folder of official files (`train.tsv`, `dev.tsv`, …), with the columns that the task table gives."""

    def __init__(
        self, kind: TaskKind, source: OfficialSource, max_train_rows: int | None, required: tuple[str, ...]
    ) -> None:
        task = kind.task
        self.folder = Location.of(source.directory, FIELD)
        try:
            if not self.folder.is_folder():
                raise ConfigError(
                    f"{FIELD}: {source.directory!r} is not a folder; allowed: the folder with {task.title}'s files"
                )
            there = tuple(split for split in task.splits if self._file(task.official_file(split)).is_file())
            if missing := [_names(task.official_file(split)) for split in required if split not in there]:
                names = ", ".join(file.name for file in self.folder.children()) or "nothing"
                raise ConfigError(
                    f"{FIELD}: {self.folder} lacks {', '.join(missing)} of {task.title}; it holds: {names}"
                )
        except OSError as error:
            raise ConfigError(f"{FIELD}: {source.directory!r} cannot be opened: {error}") from error
        super().__init__(kind, there, max_train_rows)

    def examples(self, split: str) -> Iterator[Example]:
        spec = self.task.official_file(split)
        file = self._file(spec)
        if file.name.endswith(".json"):
            yield from squad_examples(file, self.kind)
            return
        rows = _rows(file)
        width, sentences, label = _positions(spec, file, next(rows, (1, [""]))[1]) if spec.has_header else _fixed(spec)
        needed = max(*sentences, label or 0) + 1
        names, between = self.kind.columns, "commas" if _is_csv(file) else "tabs"
        labels = official_labels(self.task)
        skipped = long = 0
        for number, cells in rows:
            try:
                if len(cells) < needed:
                    raise TruncatedRowError(
                        f"{len(cells)} fields, got {_start(cells)}; allowed: {width} separated by {between}"
                    )
                if label is not None and cells[label] == "":
                    raise TruncatedRowError(
                        f"the label is empty, got {_start(cells)}; allowed: {', '.join(labels) or 'a number'}"
                    )
                texts = self.kind.texts([cells[i] for i in sentences], names)
                value = None if label is None else self.kind.label(cells[label], "label", labels)
            except BadValueError as bad:
                # A test row is never skipped, because the submission would be one line short.
                if isinstance(bad, TruncatedRowError) and self.task.skips_cut_rows and label is not None:
                    skipped += 1
                    continue
                raise bad.at(f"{file}, line {number}") from None
            long += len(cells) > width
            yield *texts, value
        self._tell(split, file, skipped, long)

    def identity(self, split: str) -> dict[str, object]:
        spec = self.task.official_file(split)
        columns = {"sentences": spec.sentences, "label": spec.label}
        return {"official": self._file(spec).sha256(), "columns": columns, "skips": self.task.skips_cut_rows}

    def describe(self, split: str) -> str:
        return str(self._file(self.task.official_file(split)))

    def _file(self, spec: OfficialFile) -> Location:
        file = self.folder / spec.name
        if spec.other_name is None or file.is_file():
            return file
        other = self.folder / spec.other_name
        return other if other.is_file() else file

    def _tell(self, split: str, file: Location, skipped: int, long: int) -> None:
        """Records the number of skipped rows, and logs warnings once per file."""
        known = split in self.skipped_rows
        self.skipped_rows[split] = skipped
        if skipped and not known:
            logger.warning("%s: skipped %d rows with too few fields, as GLUE's own readers do", file, skipped)
        if long and not known:
            logger.warning("%s: %d rows have more fields than the header; their last fields are not used", file, long)


def _names(spec: OfficialFile) -> str:
    return spec.name if spec.other_name is None else f"{spec.name} (or {spec.other_name})"


def _rows(file: Location) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line, and its number."""
    if _is_csv(file):
        yield from without_empty_end(delimited_rows(file, ","))
        return
    lines = ((number, without_end(line)) for number, line in numbered_lines(file))
    for number, line in without_empty_end(lines):
        yield number, line.split("\t")


def _is_csv(file: Location) -> bool:
    return file.name.endswith(".csv")


def _start(cells: list[str]) -> str:
    """The beginning of a row, for a message."""
    return repr("\t".join(cells)[:100])


def _fixed(spec: OfficialFile) -> tuple[int, list[int], int | None]:
    """The number of columns, and the positions of the sentences and of the label, in a file without header."""
    positions = [int(column) for column in spec.sentences]
    label = None if spec.label is None else int(spec.label)
    return max(*positions, label or 0) + 1, positions, label


def _positions(spec: OfficialFile, file: Location, names: list[str]) -> tuple[int, list[int], int | None]:
    """The same in a file with a header, found by name because the positions differ between splits."""
    wanted = [*spec.sentences, *([] if spec.label is None else [spec.label])]
    if absent := [column for column in wanted if column not in names]:
        raise ConfigError(f"{file}, line 1: no column {', '.join(map(repr, absent))}; the header has: {names}")
    label = None if spec.label is None else names.index(str(spec.label))
    return len(names), [names.index(str(column)) for column in spec.sentences], label
