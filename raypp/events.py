"""Progress events of a command, for its display: small frozen dataclasses that can be pickled, so that another process
can send them through a queue. This module imports little, because the queue's process imports it, too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

TrialState = Literal["waiting", "running", "retrying", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class PhaseStarted:
    """A phase begins, possibly again after a failure: 'features train', 'teacher', 'teacher logits', 'student', …"""

    phase: str
    total: int | None = None
    """Number of items (rows, steps) of the phase; None while unknown."""


@dataclass(frozen=True)
class PhaseAdvanced:
    """A phase has done `done` items. A field that is None keeps the value that was shown last."""

    phase: str
    done: int
    total: int | None = None
    epoch: float | None = None
    loss: float | None = None
    density: float | None = None
    metric: tuple[str, float] | None = None
    """Name and value of the latest evaluation's headline metric."""
    rows_per_second: float | None = None


@dataclass(frozen=True)
class PhaseFinished:
    """A phase is done after `seconds`, or it needed no work; then `note` gives the reason ('from the store')."""

    phase: str
    seconds: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class TrialAdvanced:
    """The state of one trial of a sweep; sent for every trial at the start, and at every change."""

    trial: str
    """Name of its run."""
    stratum: str
    """Name of its stratum: it competes with the trials of the same stratum (`stopping.stratum_of`)."""
    state: TrialState
    fraction: float
    """Fraction of its steps that is done, from 0 to 1."""
    density: float | None = None
    """Density of the linear weights at the latest report."""
    metric: tuple[str, float] | None = None
    """Name and value of the latest evaluation's headline metric."""
    seconds_left: float | None = None
    """Estimated from its speed; None while unknown, and when the trial has ended."""


@dataclass(frozen=True)
class Message:
    """A line that the user should see, such as a warning."""

    text: str


@dataclass(frozen=True)
class WorkersPlaced:
    """The workers of a job have started in this placement group (its id, hex)."""

    placement_group: str


@dataclass(frozen=True)
class Reported:
    """A report of the first worker, on its way to the command. The display does not get it."""

    metrics: dict[str, Any]


Event = PhaseStarted | PhaseAdvanced | PhaseFinished | TrialAdvanced | Message
EventHandler = Callable[[Any], None]  # takes an Event, WorkersPlaced or Reported


def ignore(_: Any) -> None:
    """The event handler that does nothing."""


def say(on_event: EventHandler, text: str) -> None:
    """Shows the user a line when a command is about to end: by then the terminal may be closed."""
    with contextlib.suppress(OSError):
        on_event(Message(text))


def never() -> bool:
    """The interrupt check of a run that nobody interrupts."""
    return False
