"""The values of one row: texts and label. A wrong value raises `BadValueError`; the reader adds file and line."""

from __future__ import annotations

import math
from collections.abc import Mapping

from raypp.errors import ConfigError
from raypp.tasks import Task

FLOAT32_MAX = 3.4028234663852886e38
_BOOLEAN_NAMES = {True: ("true", "yes"), False: ("false", "no")}


class BadValueError(ValueError):
    """A row that cannot be read. The message has the value and what is allowed."""

    def at(self, place: str) -> ConfigError:
        """The error for the user, with the row's place."""
        return ConfigError(f"{place}: {self}")


def text_of(value: object, column: object) -> str:
    """Checks that a value is a text, which may be empty, and returns it.

    Raises:
        BadValueError: the value is not a text, or contains half a surrogate pair.
    """
    if not isinstance(value, str):
        raise BadValueError(f"{column} is {value!r}; allowed: text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can contain one half of a UTF-16 surrogate pair
            raise BadValueError(
                f"{column} has {value[error.start]!r} at position {error.start + 1}, half a character; allowed: whole "
                "characters"
            ) from None
    return value


def official_labels(task: Task) -> dict[str, int]:
    """The number of each label, by the text that official files write for it."""
    return {str(i) if task.digit_labels else label: i for i, label in enumerate(task.labels)}


def free_labels(task: Task) -> dict[str, int]:
    """The number of each label, by the texts that a user may write: its name, or its number if no name is a number."""
    names = {label: i for i, label in enumerate(task.labels)}
    numbers = {str(i): i for i in range(len(task.labels))}
    return names if any(_is_integer(label) for label in names) else numbers | names


def booleans_are_names(task: Task) -> bool:
    """Whether a boolean label is read as a label's name (`class_of`) and has another number than as 0 or 1."""
    labels = free_labels(task) if task.labels else {}
    return any(class_of(value, "", labels) != int(value) for value in (False, True)) if len(labels) > 1 else False


def class_of(value: object, column: object, labels: Mapping[str, int]) -> int:
    """The number of a label.

    Args:
        value: the label as the source has it.
        column: its column, for the message.
        labels: the number of each label, by the text that the source writes for it.

    Raises:
        BadValueError: the value is not a label.
    """
    key = str(value)
    if isinstance(value, bool):
        # A label named true or yes (false or no) is meant, whatever its number; otherwise tables write true for 1.
        said = [name for name in labels if name.lower() in _BOOLEAN_NAMES[value]]
        key = said[0] if len(said) == 1 else str(int(value))
    elif key not in labels and isinstance(value, float) and value.is_integer():
        key = str(int(value))  # … and 1.0
    if value is None or key not in labels:
        raise BadValueError(f"{column} is {value!r}; allowed: {', '.join(labels)}")
    return labels[key]


def number_of(value: object, column: object, value_range: tuple[float, float] | None) -> float:
    """The value of a regression label.

    Raises:
        BadValueError: the value is not a finite number, or not in the range.
    """
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
