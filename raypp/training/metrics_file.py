"""metrics.jsonl: the reports of a run, on disk line by line, independent of other trackers."""

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
    """metrics.jsonl holds one JSON object per report: `{"step": …, "train/loss": …, …}`. A report is in the file when
    `log` returns, and on disk after `sync`.

    The file stays open, and `cut` replaces it by a new one. So if a worker whose node seems to be dead still writes for
    some seconds, it writes to the old file, which has no name any more.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.FileIO | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line.

        Raises:
            ValueError: naming the key; its value is not finite.
        """
        for key, value in metrics.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key}: {value} at step {step} is not a finite number")
        line = json.dumps({"step": step, **metrics}, allow_nan=False) + "\n"
        with_retries(self.path, lambda: self._append(line.encode()))

    def _append(self, line: bytes) -> None:
        """Appends the whole line, or nothing if writing fails: a full disk may accept a part of it."""
        if self._file is None:
            self._file = io.FileIO(self.path, "ab")
        before = self._file.seek(0, io.SEEK_END)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with self._file as file:
                self._file = None  # after a remount the open file is no longer valid
                file.truncate(before)
            raise

    def sync(self) -> None:
        """Syncs all that was logged so far to disk, so that it survives a power failure. May be called from any
        thread."""

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
        """All reports, in order. A last line that a crash cut short is left out.

        Raises:
            ValueError: any other line is damaged.
        """
        return read_records(Location.of(self.path))

    def cut(self, step: int) -> None:
        """Atomically removes the lines that a resumed run writes again, which are those of steps after `step`, and all
        damaged lines."""
        self.close()
        file = Location.of(self.path)
        kept = [json.dumps(record) + "\n" for record in whole_records(file) if record["step"] <= step]
        file.write_text("".join(kept))
        self._file = io.FileIO(self.path, "ab")


def read_records(file: Location, damaged: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The reports in a metrics.jsonl on any filesystem, as `MetricsFile.records` returns them; empty without a file.

    Args:
        damaged: called with a message for each damaged line, which is left out; None to raise a ValueError instead.
    """
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # after the last line end there is nothing, or a partial line
        try:
            records.append(_record(line))
        except ValueError as error:
            problem = f"{file}, line {number}: not a JSON object: {error}"
            if damaged is None:
                raise ValueError(problem) from error
            damaged(problem)
    return records


def whole_records(file: Location) -> list[dict[str, Any]]:
    """The reports in a metrics.jsonl for a run that resumes: a line that a power failure has damaged is left out with a
    warning, because the run matters more than one of its reports."""
    return read_records(file, damaged=lambda problem: logger.warning("%s; it is left out", problem))


def _record(line: bytes) -> dict[str, Any]:
    record = json.loads(line.decode())
    if not isinstance(record, dict) or "step" not in record:
        raise ValueError("it has no step")
    return record
