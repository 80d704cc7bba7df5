"""The lines of a text file on any filesystem, or its rows of cells, streamed, each with its number."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from raypp.errors import ConfigError
from raypp.storage import Location

Row = TypeVar("Row", bound=Sized)

BYTE_ORDER_MARK = "\ufeff"

csv.field_size_limit(1 << 24)  # a text may be longer than 128 KiB, but what no quote closes is not to fill memory


def numbered_lines(file: Location) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines with their ends, of a UTF-8 file (a byte-order mark is dropped).

    Only a newline ends a line: sentences do hold U+2028, U+0085 and other characters that `str.splitlines` splits at.

    Raises:
        ConfigError: the file cannot be opened or read, or a line is not UTF-8.
    """
    for number, line in enumerate(_byte_lines(file), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{file}, line {number}: byte {line[error.start]:#04x} at position {error.start + 1} is no UTF-8; "
                f"allowed: UTF-8 text"
            ) from error
        yield number, text.removeprefix(BYTE_ORDER_MARK) if number == 1 else text


def delimited_rows(file: Location, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, quoted as RFC 4180 says, and the number of the line it ends at.

    Raises:
        ConfigError: as `numbered_lines`, or quotes that are not in pairs.
    """
    rows = csv.reader((line for _, line in numbered_lines(file)), delimiter=delimiter, strict=True)
    ended = 0
    try:
        for row in rows:
            ended = rows.line_num
            yield ended, row
    except csv.Error as error:
        # A quote that nothing closes may be found at the file's end only.
        place = f"line {ended + 1}" + (f" (read to line {rows.line_num})" if rows.line_num > ended + 1 else "")
        allowed = f"fields apart by {delimiter!r}, in double quotes where they hold one"
        raise ConfigError(f"{file}, {place}: {error}; allowed: {allowed}") from error


def split_rows(file: Location, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line, quotes being characters like others, and its number; an empty line has none.

    Raises:
        ConfigError: as `numbered_lines`.
    """
    for number, line in numbered_lines(file):
        cells = without_end(line)
        yield number, cells.split(delimiter) if cells else []


def without_end(line: str) -> str:
    """The line without the newline that ends it, in either form; all else stays, spaces too."""
    return line.removesuffix("\n").removesuffix("\r")


def without_empty_end(rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """Numbered rows without the empty ones at the end of the file, where an empty line means nothing."""
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
