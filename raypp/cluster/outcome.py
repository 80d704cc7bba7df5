"""What comes of a group of workers, as its first one returns it. Little is imported here, since Ray Train's controller
opens it, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finished:
    """The job is done."""

    result: dict[str, Any]


@dataclass(frozen=True)
class Left:
    """They were asked to leave, and have saved this step."""

    step: int


@dataclass(frozen=True)
class Failed:
    """It would fail alike if it was tried again."""

    reason: str


Outcome = Finished | Left | Failed
