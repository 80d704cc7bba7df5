"""Where raw examples come from: official files, the hub, the user's own files, raypp's own grammar, or plain text."""

from __future__ import annotations

from raypp.config import (
    FilesSource,
    GlueTextSource,
    HubSource,
    HubTextSource,
    OfficialSource,
    Source,
    SyntheticSource,
    TextSource,
)
from raypp.data.files import FilesData
from raypp.data.hub import HubData
from raypp.data.official import OfficialData
from raypp.data.raw import BATCH_ROWS, Example, RawData
from raypp.data.synthetic import SyntheticData
from raypp.data.text import GlueTexts, HubTexts, TextFiles
from raypp.errors import ConfigError
from raypp.tasks import Task

__all__ = ["BATCH_ROWS", "Example", "RawData", "open_source"]


def open_source(
    task: Task, source: Source, *, max_train_rows: int | None = None, required: tuple[str, ...] | None = None
) -> RawData:
    """Opens a source and reads the first row of every required split, so that a wrong path or column shows at once.

    Args:
        task: as `resolve_task` gives it for this source.
        source: where the examples are.
        max_train_rows: cuts the training split; None for all rows.
        required: splits that must be there; None for the training and evaluation splits.

    Raises:
        ConfigError: a file, column or split is missing, or a first row cannot be read (all problems at once).
    """
    needed = tuple(split for split in task.splits if split not in task.test_splits) if required is None else required
    raw: RawData
    match source:
        case OfficialSource():
            raw = OfficialData(task, source, max_train_rows, needed)
        case HubSource():
            raw = HubData(task, source, max_train_rows, needed)
        case FilesSource():
            raw = FilesData(task, source, max_train_rows, needed)
        case SyntheticSource():
            raw = SyntheticData(task, source, max_train_rows)
        case TextSource():
            raw = TextFiles(task, source, max_train_rows)
        case HubTextSource():
            raw = HubTexts(task, source, max_train_rows)
        case GlueTextSource():
            raw = GlueTexts(task, source, max_train_rows)
    problems: list[str] = []
    for split in needed:
        try:
            raw.check_first_row(split)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return raw
