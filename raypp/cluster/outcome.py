"""The outcome of a group of workers, as its first worker returns it.

Ray Train's controller unpickles it, so this module imports little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raypp.errors import RunFailed


@dataclass(frozen=True)
class Finished:
    """The job is done."""

    result: dict[str, Any]


@dataclass(frozen=True)
class InterruptedAt:
    """The workers were asked to stop and have saved this step. The job can resume from it."""

    step: int


@dataclass(frozen=True)
class Failed:
    """Every worker failed in the same way, so the command does not try again."""

    error: RunFailed


Outcome = Finished | InterruptedAt | Failed
