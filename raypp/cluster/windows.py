"""Growing windows of the input of a Ray Data pipeline: work begins soon, and only a few windows are in memory at once.

Both functions yield each window with whether it is the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import pyarrow as pa

WINDOW_GROWTH = 4  # each window is this much larger than the one before, up to a limit
FIRST_WINDOW_ROWS, MAX_WINDOW_ROWS = 32_768, 524_288
MAX_WINDOW_BYTES = 1 << 28  # so that long texts take no more memory than short ones
FIRST_WINDOW_PARTS, MAX_WINDOW_PARTS = 4, 256

T = TypeVar("T")


def mark_last(items: Iterator[T]) -> Iterator[tuple[T, bool]]:
    """Each item with whether it is the last one, for which it reads one item ahead."""
    item = next(items, None)
    while item is not None:
        upcoming = next(items, None)
        yield item, upcoming is None
        item = upcoming


def row_windows(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[pa.Table, bool]]:
    """The rows of the batches in growing tables of at most MAX_WINDOW_ROWS rows and about MAX_WINDOW_BYTES."""
    held: list[pa.Table] = []
    size = FIRST_WINDOW_ROWS
    for batch, is_last in mark_last(batches):
        held.append(pa.Table.from_batches([batch]))
        while _are_full(held, size):
            table = pa.concat_tables(held)
            yield table.slice(0, size), is_last and table.num_rows <= size
            held = [table.slice(size)] if table.num_rows > size else []
            size = min(size * WINDOW_GROWTH, MAX_WINDOW_ROWS)
    if held:
        yield pa.concat_tables(held), True


def part_windows(parts: Iterator[pa.Table]) -> Iterator[tuple[list[pa.Table], bool]]:
    """The parts in growing lists of at most MAX_WINDOW_PARTS."""
    held: list[pa.Table] = []
    size = FIRST_WINDOW_PARTS
    for part, is_last in mark_last(parts):
        held.append(part)
        if len(held) == size or is_last:
            yield held, is_last
            held, size = [], min(size * WINDOW_GROWTH, MAX_WINDOW_PARTS)


def _are_full(held: Sequence[pa.Table], rows: int) -> bool:
    size = sum(int(table.nbytes) for table in held)
    return size >= MAX_WINDOW_BYTES or sum(int(table.num_rows) for table in held) >= rows
