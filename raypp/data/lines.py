"""The numbered lines of a text file on any filesystem, or its rows of cells, streamed."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from raypp.errors import ConfigError
from raypp.storage import Location

Row = TypeVar("Row", bound=Sized)

BYTE_ORDER_MARK = "\ufeff"

csv.field_size_limit(1 << 24)  # more than the default 128 KiB, but a quote that is never closed must not fill memory


def numbered_lines(file: Location) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their ends, and their numbers from 1. A byte-order mark is dropped.

    Only a newline ends a line: sentences contain U+2028, U+0085 and other characters at which `str.splitlines` splits.

    Raises:
        ConfigError: the file cannot be opened or read, or a line is not UTF-8.
    """
    for number, line in enumerate(_byte_lines(file), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{file}, line {number}: byte {line[error.start]:#04x} at position {error.start + 1} is not UTF-8; "
                f"allowed: UTF-8 text"
            ) from error
        yield number, text.removeprefix(BYTE_ORDER_MARK) if number == 1 else text


def delimited_rows(file: Location, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, with quotes as in RFC 4180, and the number of the line in which the row ends.

    Raises:
        ConfigError: see `numbered_lines`; or quotes are not in pairs.
    """
    rows = csv.reader((line for _, line in numbered_lines(file)), delimiter=delimiter, strict=True)
    ended = 0
    try:
        for row in rows:
            ended = rows.line_num
            yield ended, row
    except csv.Error as error:
        # A quote that is never closed may be found only at the end of the file.
        place = f"line {ended + 1}" + (f" (read to line {rows.line_num})" if rows.line_num > ended + 1 else "")
        allowed = f"fields separated by {delimiter!r}, in double quotes if they contain it"
        raise ConfigError(f"{file}, {place}: {error}; allowed: {allowed}") from error


def split_rows(file: Location, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line, and its number. Quotes are ordinary characters, and an empty line has no cells.

    Raises:
        ConfigError: see `numbered_lines`.
    """
    for number, line in numbered_lines(file):
        cells = without_end(line)
        yield number, cells.split(delimiter) if cells else []


def without_end(line: str) -> str:
    """The line without its newline (LF or CRLF). Spaces stay."""
    return line.removesuffix("\n").removesuffix("\r")


def without_empty_end(rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """Numbered rows without the empty rows at the end of the file."""
    empty = []
    for row in rows:
        if not row[1]:
            empty.append(row)
            continue
        yield from empty
        empty.clear()
        yield row


def _byte_lines(file: Location) -> Iterator[bytes]:
    left = b""
    chunks = file.chunks()
    while True:
        try:
            chunk = next(chunks, b"")
        except OSError as error:
            raise ConfigError(f"data.source: {file} cannot be read: {error}") from error
        if not chunk:
            break
        *whole, left = (left + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if left:
        yield left
