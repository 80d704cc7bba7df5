"""The ways a command can end before its time, apart from our own bugs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Value = TypeVar("Value")


class ConfigError(ValueError):
    """The user's input is wrong. Holds every problem found: place, value given, what is allowed. Exit status 2."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return ConfigError, (self.problems,)


class Problems:
    """Collects what is wrong, so that one message can say it all."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Keeps a ConfigError raised within, and goes on."""
        try:
            yield
        except ConfigError as error:
            self.found += error.problems

    def attempt(self, make: Callable[[], Value]) -> Value | None:
        """What is made, or None where that is a problem."""
        with self.collect():
            return make()
        return None

    def stop(self) -> None:
        """Raises a ConfigError with all that was found, each problem once, if there is any."""
        if self.found:
            raise ConfigError(dict.fromkeys(self.found))


class RunFailed(RuntimeError):
    """The run cannot go on (a loss that is not finite, a cluster that lost its last node). Exit status 1.

    Inside the training loop every worker raises it at the same step, so none is left waiting for the others.
    """


class StorageFailed(RunFailed):
    """The storage cannot be written or read, for all patience. Raised by one worker alone. Later it may be better."""


class WorkersLost(RunFailed):
    """A worker, or who watches over them, died or failed in a way that is not the run's. Trying again may help."""


class WorkersTaken(WorkersLost):
    """… because a node was taken away that had been warned of it: nobody's failure, however often."""


class PlacesTaken(WorkersLost):
    """… because others have taken the room that there was for the group before it could start: it waits for room."""


class NoRoom(RunFailed):
    """There was no room for the workers for too long. To try again at once would be to wait as long again."""


class Interrupted(Exception):
    """A run that was asked to leave has saved its last step and ended before its time. Not a failure.

    Every worker raises it after the same step; the run goes on from there, here or elsewhere.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(step)
