"""The values of one row: its text, its label. A wrong value is a `BadValueError`; the reader adds file and line."""

from __future__ import annotations

import math
from collections.abc import Mapping

from raypp.errors import ConfigError
from raypp.tasks import Task

FLOAT32_MAX = 3.4028234663852886e38
_BOOLEAN_NAMES = {True: ("true", "yes"), False: ("false", "no")}


class BadValueError(ValueError):
    """A row that cannot be read: the value given and what is allowed."""

    def at(self, place: str) -> ConfigError:
        """The same as the user's problem, with its place."""
        return ConfigError(f"{place}: {self}")


def text_of(value: object, column: object) -> str:
    """A text, as it is; it may be empty."""
    if not isinstance(value, str):
        raise BadValueError(f"{column} is {value!r}; allowed: text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can write one half of a character that UTF-16 has in two
            raise BadValueError(
                f"{column} has {value[error.start]!r} at position {error.start + 1}, half a character; allowed: whole "
                "ones"
            ) from None
    return value


def official_labels(task: Task) -> dict[str, int]:
    """How the official files write each label, to its number."""
    return {str(i) if task.digit_labels else label: i for i, label in enumerate(task.labels)}


def free_labels(task: Task) -> dict[str, int]:
    """How a user may write each label: by name, or by number where no name is a number itself."""
    names = {label: i for i, label in enumerate(task.labels)}
    numbers = {str(i): i for i in range(len(task.labels))}
    return names if any(_is_integer(label) for label in names) else numbers | names


def booleans_are_names(task: Task) -> bool:
    """Whether a boolean label is a name of the task's that says so, and another number than itself."""
    labels = free_labels(task) if task.labels else {}
    return any(class_of(value, "", labels) != int(value) for value in (False, True)) if len(labels) > 1 else False


def class_of(value: object, column: object, labels: Mapping[str, int]) -> int:
    """The number of a label, which the source writes as `labels` says."""
    key = str(value)
    if isinstance(value, bool):
        # Names that say so are meant by them, in whatever order they stand; else tables write true where they mean 1.
        said = [name for name in labels if name.lower() in _BOOLEAN_NAMES[value]]
        key = said[0] if len(said) == 1 else str(int(value))
    elif key not in labels and isinstance(value, float) and value.is_integer():
        key = str(int(value))  # … and 1.0
    if value is None or key not in labels:
        raise BadValueError(f"{column} is {value!r}; allowed: {', '.join(labels)}")
    return labels[key]


def number_of(value: object, column: object, value_range: tuple[float, float] | None) -> float:
    """The value of a regression task, finite and inside its range if it has one."""
    low, high = value_range or (-FLOAT32_MAX, FLOAT32_MAX)
    allowed = f"a number from {low:g} to {high:g}" if value_range else "a finite number"
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BadValueError(f"{column} is {value!r}; allowed: {allowed}") from None
    if not math.isfinite(number) or not low <= number <= high:
        raise BadValueError(f"{column} is {value!r}; allowed: {allowed}")
    return number


def _is_integer(label: str) -> bool:
    return label.lstrip("+-").isdecimal()
