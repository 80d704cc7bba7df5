"""The two ways a command can end badly, apart from our own bugs."""

from __future__ import annotations

from collections.abc import Iterable


class ConfigError(ValueError):
    """The user's input is wrong. Holds every problem found: place, value given, what is allowed. Exit status 2."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return ConfigError, (self.problems,)


class RunFailed(RuntimeError):
    """The run cannot go on (a loss that is not finite, a cluster that lost its last node). Exit status 1.

    Inside the training loop every worker raises it at the same step, so none is left waiting for the others.
    """


class StorageFailed(RunFailed):
    """A checkpoint cannot be written or read. Raised by one worker alone; trying again may help."""
