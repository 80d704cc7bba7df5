"""The ways a command can end before its time, apart from our own bugs."""

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
    """The storage cannot be written or read, for all patience. Raised by one worker alone; trying again may help."""


class WorkersLost(RunFailed):
    """A worker, or who watches over them, died or failed in a way that is not the run's. Trying again may help."""


class Left(Exception):
    """A run that was asked to leave has saved its last step and ended before its time. Not a failure.

    Every worker raises it after the same step; the run goes on from there, here or elsewhere.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(step)
