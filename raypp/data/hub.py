"""A data set of the Hugging Face hub, read with the `datasets` package and its cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raypp.config import HubSource
from raypp.data.raw import Example, RawData
from raypp.data.values import BadValueError, free_labels
from raypp.errors import ConfigError
from raypp.tasks import Task

if TYPE_CHECKING:
    from raypp.kinds import TaskKind

FIELD = "data.source.repository"
NO_LABEL = -1
"""The hub's GLUE has this in place of an unknown label."""


class HubData(RawData):
    """The task's splits, from the repository where it is published or from a copy with the same columns."""

    def __init__(
        self, kind: TaskKind, source: HubSource, max_train_rows: int | None, required: tuple[str, ...]
    ) -> None:
        task = kind.task
        self.repository = source.repository or task.hub_repository
        self._data = load_dataset(self.repository, task.hub_config, source.revision)
        self._labels = _labels(task, self._data)
        if missing := [split for split in required if _hub_split(split) not in self._data]:
            names = ", ".join(map(_hub_split, missing))
            raise ConfigError(
                f"{FIELD}: {self.repository} lacks {names} of {task.name}; it has: {', '.join(self._data)}"
            )
        super().__init__(kind, tuple(s for s in task.splits if _hub_split(s) in self._data), max_train_rows)

    def examples(self, split: str) -> Iterator[Example]:
        data = self._data[_hub_split(split)]
        columns, answer = self.task.hub_columns, self.kind.label_column
        if absent := [column for column in (*columns, answer) if column not in data.column_names]:
            names = ", ".join(data.column_names)
            raise ConfigError(f"{FIELD}: {self.describe(split)} has no column {', '.join(absent)}; it has: {names}")
        row = 0
        for batch in data.select_columns([*columns, answer]).with_format("arrow").iter(batch_size=1000):
            for record in batch.to_pylist():
                row += 1
                try:
                    texts = self.kind.texts([record[column] for column in columns], columns)
                    yield *texts, self._label(record[answer], split)
                except BadValueError as bad:
                    raise bad.at(f"{self.describe(split)}, row {row}") from None

    def identity(self, split: str) -> dict[str, object]:
        """A hash of the rows, so that it does not depend on cache, revision name or `datasets` version."""
        digest = hashlib.sha256()
        for example in self.examples(split):
            digest.update(repr(example).encode())
        return {"hub": digest.hexdigest()}

    def describe(self, split: str) -> str:
        return f"{_hub_split(split)} of {self.repository} ({self.task.hub_config})"

    def _label(self, value: object, split: str) -> Any:
        if split in self.task.test_splits and value in (NO_LABEL, None):
            return None
        return self.kind.label(value, self.kind.label_column, self._labels)


def _hub_split(split: str) -> str:
    return split.replace("dev", "validation")


def load_dataset(repository: str, configuration: str | None, revision: str | None) -> Any:
    """All splits of a data set, a `datasets.DatasetDict`.

    Raises:
        ConfigError: the data set cannot be loaded.
    """
    import datasets

    try:
        return datasets.load_dataset(repository, configuration, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        asked = f"{repository} ({configuration}){f' at revision {revision}' if revision else ''}"
        raise ConfigError(
            f"{FIELD}: {asked} cannot be loaded: {str(error).rstrip('.')}. Check the name, or connect to the hub "
            f"once so that it is cached, or give files (data.source.kind: official, files or text)"
        ) from error


def _labels(task: Task, data: Any) -> dict[str, int]:
    """The task's number of each label, by the hub's number as text.

    Raises:
        ConfigError: the hub's labels are not those of the task.
    """
    feature = next(iter(data.values())).features.get("label")
    names = getattr(feature, "names", None)
    if names is None:
        return free_labels(task)
    if sorted(names) != sorted(task.labels):
        raise ConfigError(f"{FIELD}: the labels of {task.name} are {list(task.labels)}, got {names}")
    return {str(i): task.labels.index(name) for i, name in enumerate(names)}
