"""The ways in which a command can end early, apart from bugs of raypp."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Value = TypeVar("Value")


class ConfigError(ValueError):
    """The user's input is wrong. Exit status 2.

    `problems` holds every problem that was found: each names its place, the value given and the allowed values.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return ConfigError, (self.problems,)


class Problems:
    """Collects problems, so that one message can list them all."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Catches a ConfigError that is raised in the context, and keeps its problems."""
        try:
            yield
        except ConfigError as error:
            self.found += error.problems

    def attempt(self, make: Callable[[], Value]) -> Value | None:
        """Returns what `make` returns, or None if it raises a ConfigError, whose problems are kept."""
        with self.collect():
            return make()
        return None

    def stop(self) -> None:
        """Raises a ConfigError with all problems that were found, each of them once, if there are any."""
        if self.found:
            raise ConfigError(dict.fromkeys(self.found))


class RunFailed(RuntimeError):
    """The run cannot continue, for example because a loss is not finite or the last node is lost. Exit status 1.

    Inside the training loop every worker raises it at the same step, so that no worker waits for the others.
    """


class FailsAgain(RunFailed):
    """The run failed in a way that the same command would repeat: only other settings or another input can help."""


class StorageFailed(RunFailed):
    """Storage failed after all retries. A later attempt may succeed. Raised on one worker only."""


class WorkersLost(RunFailed):
    """A worker or the controller died for an external reason, or a node lacks the folder or the model that the
    command found; retrying may help."""


class WorkersPreempted(WorkersLost):
    """A node was preempted with notice; not counted as a failure."""


class PlacementLost(WorkersLost):
    """The resources were taken before the group started."""


class NoCapacity(RunFailed):
    """Timed out waiting for resources; retrying at once would not help."""


class Interrupted(Exception):
    """A run that was asked to stop has saved its current step and stopped. This is not a failure.

    Every worker raises it after the same step. The run resumes from that step, on this machine or another one.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(step)
