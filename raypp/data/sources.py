"""Opens the source of raw examples: official files, the hub, the user's files, raypp's grammars, or plain text."""

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
from raypp.data.raw import RawData
from raypp.data.synthetic import SyntheticData
from raypp.data.text import GlueTexts, HubTexts, TextFiles
from raypp.errors import ConfigError
from raypp.kinds import TaskKind, kind_of
from raypp.tasks import find_task


def open_source(
    kind: TaskKind, source: Source, *, max_train_rows: int | None = None, required: tuple[str, ...] | None = None
) -> RawData:
    """Opens a source and reads the first row of each required split, so that a wrong path or column is found at once.

    Args:
        kind: the kind of the task that `resolve_task` gives for this source.
        source: the settings of the source.
        max_train_rows: number of training rows to use; None for all.
        required: the splits that the source must have; None for the training and evaluation splits.

    Raises:
        ConfigError: a file, column or split is missing, or a first row cannot be read; has all problems.
    """
    task = kind.task
    needed = tuple(split for split in task.splits if split not in task.test_splits) if required is None else required
    raw: RawData
    match source:
        case OfficialSource():
            raw = OfficialData(kind, source, max_train_rows, needed)
        case HubSource():
            raw = HubData(kind, source, max_train_rows, needed)
        case FilesSource():
            raw = FilesData(kind, source, max_train_rows, needed)
        case SyntheticSource():
            raw = SyntheticData(kind, source, max_train_rows)
        case TextSource():
            raw = TextFiles(kind, source, max_train_rows)
        case HubTextSource():
            raw = HubTexts(kind, source, max_train_rows)
        case GlueTextSource():
            raw = GlueTexts(kind, source, max_train_rows, [kind_of(find_task(name)) for name in source.tasks])
    problems: list[str] = []
    for split in needed:
        try:
            raw.check_first_row(split)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return raw
