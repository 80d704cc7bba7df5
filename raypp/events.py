"""What happens in a command, as the display is told: small frozen dataclasses that pickle, so that another process can
send them through a queue. Little is imported here, since the queue's process opens them, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

TrialState = Literal["waiting", "running", "retrying", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class PhaseStarted:
    """A phase begins, or begins again after a failure: 'features train', 'teacher', 'teacher logits', 'student', …"""

    phase: str
    total: int | None = None
    """How many things (rows, steps) there are to do; None while unknown."""


@dataclass(frozen=True)
class PhaseAdvanced:
    """A phase has done `done` things. What is None keeps the value that was shown last."""

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
    """A phase is done, after `seconds`, or needed no work, for which `note` gives the reason ('from the store')."""

    phase: str
    seconds: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class TrialAdvanced:
    """What is known of one trial of a sweep; one comes for every trial at the start, and at every change."""

    trial: str
    """Name of its run."""
    stratum: str
    """Whom it competes with (`stopping.stratum_of`)."""
    state: TrialState
    fraction: float
    """Part of its steps that is done, 0 to 1."""
    density: float | None = None
    """Density of the linear weights at the latest report."""
    metric: tuple[str, float] | None = None
    """Name and value of the latest evaluation's headline metric."""
    seconds_left: float | None = None
    """Expected from its pace; None while unknown, and when it has ended."""


@dataclass(frozen=True)
class Message:
    """A line that the user should see, such as a warning."""

    text: str


@dataclass(frozen=True)
class WorkersPlaced:
    """The workers of a job run, in this placement group (its id, hex)."""

    placement_group: str


@dataclass(frozen=True)
class Reported:
    """The first worker's report, on its way to who takes the reports: no event of the display's."""

    metrics: dict[str, Any]


Event = PhaseStarted | PhaseAdvanced | PhaseFinished | TrialAdvanced | Message
EventHandler = Callable[[Any], None]  # of these, and of what is only on its way to the command


def ignore(_: Any) -> None:
    """The event handler that does nothing."""


def never() -> bool:
    """The interrupt check of a run that nobody interrupts."""
    return False
