"""Writes official files for tests, opens them, and reads the rows of any source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from raypp.config import OfficialSource
from raypp.data.raw import RawData
from raypp.data.sources import open_source
from raypp.kinds import kind_of
from raypp.tasks import TASKS


def official(directory: Path, name: str, **options: Any) -> RawData:
    return open_source(kind_of(TASKS[name]), OfficialSource(kind="official", directory=str(directory)), **options)


def rows(raw: RawData, split: str) -> list[dict[str, Any]]:
    """All rows of a split without their numbers, which are checked here."""
    table = pa.Table.from_batches(list(raw.read(split)), raw.kind.schema())
    assert table["row"].to_pylist() == list(range(table.num_rows))
    return table.drop_columns("row").to_pylist()


def write(folder: Path, **files: str) -> Path:
    """Writes files by stem; `train="…"` becomes train.tsv."""
    folder.mkdir(exist_ok=True)
    for stem, text in files.items():
        (folder / f"{stem}.tsv").write_bytes(text.encode())
    return folder


def table(*lines: str) -> str:
    """A tab-separated file, from lines with `|` between their fields."""
    return "".join(line.replace("|", "\t") + "\n" for line in lines)
