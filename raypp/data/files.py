"""The user's own files: Parquet, CSV, TSV or JSON lines. `data.source.columns` names their columns.

CSV and TSV files have a header. A label is a name in `task.labels` or its number.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from raypp.config import Columns, FilesSource, Quotes
from raypp.data.lines import delimited_rows, numbered_lines, split_rows, without_empty_end
from raypp.data.raw import BATCH_ROWS, Example, RawData, in_columns
from raypp.data.values import BadValueError, booleans_are_names, free_labels
from raypp.errors import ConfigError
from raypp.storage import Location

if TYPE_CHECKING:
    from raypp.kinds import TaskKind

logger = logging.getLogger("raypp")

DELIMITED = (".csv", ".tsv")
COLUMNS = "data.source.columns"

Records: TypeAlias = Iterator[tuple[str, dict[str, object]]]
"""(place for messages, values by column) of each record."""


class FilesData(RawData):
    """One file for train, one for dev, and optionally one for test, in which labels may be absent."""

    def __init__(
        self, kind: TaskKind, source: FilesSource, max_train_rows: int | None, required: tuple[str, ...]
    ) -> None:
        given = {"train": source.train, "dev": source.dev, "test": source.test}
        self.files = {
            split: Location.of(uri, f"data.source.{split}") for split, uri in given.items() if uri is not None
        }
        problems = [
            f"data.source.{split}: no file is given, but the {split} split is needed"
            for split in required
            if split not in self.files
        ]
        for split, file in self.files.items():
            problems += problems_of_file(split, file, READERS, needed=split in (*required, "test"))
        others = Columns.model_fields.keys() - {*kind.column_settings, kind.label_column}
        # A recorded experiment has all columns, so only a name other than the default is the user's.
        strange = sorted(name for name in others if getattr(source.columns, name) != getattr(Columns(), name))
        problems += [
            f"data.source.columns.{name}: {kind.task.name} has no such column; leave it out" for name in strange
        ]
        problems += problems_of_quotes(source.quotes, self.files.values())
        if problems:
            raise ConfigError(problems)
        super().__init__(kind, tuple(split for split, file in self.files.items() if file.is_file()), max_train_rows)
        self.columns = kind.file_columns(source.columns)
        self.label = str(getattr(source.columns, kind.label_column))
        self.quotes = source.quotes
        self._spellings = free_labels(kind.task)

    def examples(self, split: str) -> Iterator[Example]:
        records = read_records(self.files[split], self.quotes, {*self.columns, self.label})
        return self._examples(split, records)

    def _examples(self, split: str, records: Records) -> Iterator[Example]:
        """The examples of a split's records."""
        optional = split in self.task.test_splits
        for place, record in records:
            try:
                texts = self.kind.texts([value_in(record, column, COLUMNS) for column in self.columns], self.columns)
                value = record.get(self.label) if optional else value_in(record, self.label, COLUMNS)
                absent = optional and value in (None, "")
                yield *texts, None if absent else self.kind.label(value, self.label, self._spellings)
            except BadValueError as bad:
                raise bad.at(place) from None

    def columns_of(self, split: str, limit: int | None) -> Iterator[dict[str, pa.Array]]:
        """Parquet batches are converted as whole columns, which takes a tenth of the time, where the kind can; a batch
        with anything unusual in it is read row by row, which finds the row and says what is wrong."""
        file, wanted = self.files[split], {*self.columns, self.label}
        if ending(file) != ".parquet" or self._drops_untrainable(split):
            yield from super().columns_of(split, limit)
            return
        for first_row, batch in _parquet_batches(file, wanted):
            if limit is not None:
                batch = batch.slice(0, max(0, limit - first_row))
            if not len(batch):
                return
            if (columns := self._whole_columns(batch)) is not None:
                yield columns
                continue
            records = _parquet_records(file, first_row, batch)
            yield from in_columns(self._examples(split, records), self.kind)

    def _whole_columns(self, batch: pa.RecordBatch) -> dict[str, pa.Array] | None:
        """The columns of a batch, converted; None if a column is missing or the kind cannot convert them."""
        if not {*self.columns, self.label} <= set(batch.schema.names):
            return None
        texts = [batch.column(column) for column in self.columns]
        return self.kind.whole_columns(texts, batch.column(self.label), self.label, self._spellings)

    def identity(self, split: str) -> dict[str, object]:
        identity = {**file_identity(self.files[split], self.quotes), "columns": [*self.columns, self.label]}
        # Only where it matters, so that the fingerprints of all other tasks stay as they were.
        if booleans_are_names(self.task):
            identity["booleans"] = "by name"
        if not self.kind.all_are_trainable:
            identity |= {"teaches": self._drops_untrainable(split), "unanswerable": self.task.unanswerable}
        return identity

    def describe(self, split: str) -> str:
        return str(self.files[split])


def value_in(record: dict[str, object], column: str, setting: str) -> object:
    """A record's value in a column.

    Args:
        setting: the setting that names the column, for the message.

    Raises:
        BadValueError: the record has no such column.
    """
    if column not in record:
        raise BadValueError(f"no column {column!r} ({setting}); there are: {', '.join(record)}")
    return record[column]


def ending(file: Location) -> str:
    """The ending of a file's name, which determines its format: `.csv`."""
    return "." + file.name.rsplit(".", 1)[-1].lower()


def problems_of_file(field: str, file: Location, endings: Collection[str], *, needed: bool = True) -> list[str]:
    """Why a file cannot be read, as messages, found without reading it.

    Args:
        field: the setting in data.source that names the file.
        needed: whether the file has to exist.
    """
    if ending(file) not in endings:
        return [f"data.source.{field}: {str(file)!r} cannot be read; allowed: a name that ends in {', '.join(endings)}"]
    try:
        there = file.is_file()
    except OSError as error:
        return [f"data.source.{field}: {str(file)!r} cannot be opened: {error}"]
    return [f"data.source.{field}: there is no file {str(file)!r}"] if needed and not there else []


def problems_of_quotes(quotes: Quotes, files: Iterable[Location]) -> list[str]:
    """Refuses `data.source.quotes` if it applies to none of the files."""
    if quotes == "csv" or any(ending(file) in DELIMITED for file in files):
        return []
    return [
        f"data.source.quotes: applies only to {', '.join(DELIMITED)} files, and there is none, got {quotes}; leave it "
        "out"
    ]


def file_identity(file: Location, quotes: Quotes) -> dict[str, object]:
    """Everything that determines the records of a file."""
    plain = {"quotes": quotes} if quotes == "plain" and ending(file) in DELIMITED else {}
    return {"file": file.sha256(), "format": ending(file), **plain}


def read_records(file: Location, quotes: Quotes, columns: Collection[str]) -> Records:
    """The records of a file whose name ends in one of `READERS`.

    Args:
        quotes: meaning of double quotes in CSV and TSV files.
        columns: the columns that are wanted. If the file has all of them, records may lack its other columns.

    Raises:
        ConfigError: a record cannot be read.
    """
    return READERS[ending(file)](file, quotes, columns)


def _delimited(file: Location, quotes: Quotes, columns: Collection[str], delimiter: str) -> Records:
    rows = delimited_rows(file, delimiter) if quotes == "csv" else split_rows(file, delimiter)
    _, names = next(rows, (1, []))
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{file}, line 1: the header repeats {', '.join(map(repr, repeated))}; names must differ")
    spread: list[int] = []
    for number, row in without_empty_end(rows):
        if len(row) != len(names):
            raise ConfigError(
                f"{file}, line {number}: {len(row)} fields, got {row}; allowed: {len(names)}, as in the header"
            )
        if delimiter == "\t" and any("\t" in cell or "\n" in cell for cell in row):
            spread.append(number)
        yield f"{file}, line {number}", dict(zip(names, row, strict=True))
    if spread:
        logger.warning(
            "%s: %d fields in double quotes hold tabs or line ends (the first ends in line %d); if quotes are "
            "ordinary characters in this file, set data.source.quotes: plain",
            *(file, len(spread), spread[0]),
        )


def _json_lines(file: Location, quotes: Quotes, columns: Collection[str]) -> Records:
    for number, line in without_empty_end((number, line.strip()) for number, line in numbered_lines(file)):
        place = f"{file}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{place}: {error.msg} at position {error.pos + 1}; allowed: one JSON object per line"
            ) from error
        if not isinstance(record, dict):
            raise ConfigError(f"{place}: {line[:100]}; allowed: one JSON object per line")
        yield place, record


def _parquet(file: Location, quotes: Quotes, columns: Collection[str]) -> Records:
    for first_row, batch in _parquet_batches(file, columns):
        yield from _parquet_records(file, first_row, batch)


def _parquet_records(file: Location, first_row: int, batch: pa.RecordBatch) -> Records:
    name = str(file)  # formatted once, not for every row
    for row, record in enumerate(batch.to_pylist(), first_row + 1):
        yield f"{name}, row {row}", record


def _parquet_batches(file: Location, columns: Collection[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of a Parquet file in batches, each with the number of rows before it."""
    try:
        with file.filesystem.open_input_file(file.path) as stream:
            row = 0
            parquet = pq.ParquetFile(stream)
            wanted = sorted(columns) if set(columns) <= set(parquet.schema_arrow.names) else None
            for group in range(parquet.num_row_groups):
                # One group at a time: pyarrow keeps what it reads ahead until the last of the requested groups is read.
                for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=wanted):
                    batch.validate(full=True)  # text that is not UTF-8
                    yield row, batch
                    row += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{file} cannot be read as Parquet: {error}") from error


READERS: dict[str, Callable[[Location, Quotes, Collection[str]], Records]] = {
    ".csv": partial(_delimited, delimiter=","),
    ".tsv": partial(_delimited, delimiter="\t"),
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
"""The reader of each format, by the ending of the file's name."""
