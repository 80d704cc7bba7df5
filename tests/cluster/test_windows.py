"""Windows of a pipeline's input: they grow up to their limits, and together they are the input, in its order."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from raypp.cluster import windows as windows_module
from raypp.cluster.windows import part_windows, row_windows


def test_windows_of_rows_end_by_rows_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(rows: int, width: int) -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, 10):
            numbers = list(range(start, min(start + 10, rows)))
            yield pa.RecordBatch.from_pydict({"row": numbers, "text": ["a" * width] * len(numbers)})

    def windows(rows: int, width: int) -> list[int]:
        found = list(row_windows(batches(rows, width)))
        assert [is_last for _, is_last in found] == [False] * (len(found) - 1) + [True]
        assert pa.concat_tables([table for table, _ in found])["row"].to_pylist() == list(range(rows))
        return [table.num_rows for table, _ in found]

    for name, value in (("FIRST_WINDOW_ROWS", 15), ("MAX_WINDOW_ROWS", 40), ("MAX_WINDOW_BYTES", 10_000)):
        monkeypatch.setattr(windows_module, name, value)
    assert windows(100, width=1) == [15, 40, 40, 5]
    assert windows(95, width=1) == [15, 40, 40]
    assert windows(45, width=1000) == [10, 10, 10, 10, 5]
    assert windows(40, width=1000) == [10, 10, 10, 10]
    assert windows(95, width=400) == [15, 25, 30, 25]


def test_windows_of_parts_grow_up_to_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "FIRST_WINDOW_PARTS", 2)
    monkeypatch.setattr(windows_module, "MAX_WINDOW_PARTS", 10)

    def windows(count: int) -> list[int]:
        found = list(part_windows(iter([pa.table({"row": [number]}) for number in range(count)])))
        assert [is_last for _, is_last in found] == [False] * (len(found) - 1) + [True]
        assert [part["row"][0].as_py() for parts, _ in found for part in parts] == list(range(count))
        return [len(parts) for parts, _ in found]

    assert windows(1) == [1]
    assert windows(2) == [2]
    assert windows(25) == [2, 8, 10, 5]
    assert list(part_windows(iter([]))) == []
