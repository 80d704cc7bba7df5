"""metrics.jsonl: what a run reports, on disk line by line, whatever else records it."""

from __future__ import annotations

import io
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raypp.storage import Location, with_retries

logger = logging.getLogger("raypp")


class MetricsFile:
    """metrics.jsonl: one JSON object per report, `{"step": …, "train/loss": …, …}`, in the file before `log` returns,
    and on the disk after `sync`.

    It stays open, and `cut` puts a new file in its place: a worker whose node is taken for dead may live for some
    seconds more, and what it still writes goes into the old file, which nobody sees any more.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.FileIO | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line. Raises ValueError, naming the key, for a value that is not finite."""
        for key, value in metrics.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key}: {value} at step {step} is not a finite number")
        line = json.dumps({"step": step, **metrics}, allow_nan=False) + "\n"
        with_retries(self.path, lambda: self._append(line.encode()))

    def _append(self, line: bytes) -> None:
        """Appends the whole line or, where that fails, nothing of it: a full disk takes a part."""
        if self._file is None:
            self._file = io.FileIO(self.path, "ab")
        before = self._file.seek(0, io.SEEK_END)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with self._file as file:
                self._file = None  # a mount that comes back does not know the file that was open
                file.truncate(before)
            raise

    def sync(self) -> None:
        """Has all that was logged so far on the disk, so that it outlasts a loss of power; from any thread."""

        def flush() -> None:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

        with_retries(self.path, flush)

    def close(self) -> None:
        """Closes the file; the next line opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def records(self) -> list[dict[str, Any]]:
        """All reports, in order. A last line that a crash cut short is left out; any other bad line is a ValueError."""
        return read_records(Location.of(self.path))

    def cut(self, step: int) -> None:
        """Removes, atomically, what a resumed run writes again: lines of steps after `step`, a torn last line, and what
        `whole_records` leaves out."""
        self.close()
        file = Location.of(self.path)
        kept = [json.dumps(record) + "\n" for record in whole_records(file) if record["step"] <= step]
        file.write_text("".join(kept))
        self._file = io.FileIO(self.path, "ab")


def read_records(file: Location, damaged: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The reports in a metrics.jsonl anywhere, as `MetricsFile.records` gives them; none where there is no file.

    Args:
        damaged: told of a bad line, which is left out; None: that is a ValueError.
    """
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line end is nothing, or torn
        try:
            records.append(_record(line))
        except ValueError as error:
            problem = f"{file}, line {number}: not a JSON object: {error}"
            if damaged is None:
                raise ValueError(problem) from error
            damaged(problem)
    return records


def whole_records(file: Location) -> list[dict[str, Any]]:
    """The same for who goes on with a run: a line that a loss of power has spoilt is left out and said aloud, since the
    run is worth more than a report of it."""
    return read_records(file, damaged=lambda problem: logger.warning("%s; it is left out", problem))


def _record(line: bytes) -> dict[str, Any]:
    record = json.loads(line.decode())
    if not isinstance(record, dict) or "step" not in record:
        raise ValueError("it has no step")
    return record
