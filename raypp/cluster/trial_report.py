"""What a trial reports to Ray Tune, which passes it on as a dictionary among fields of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TrialReport:
    """One report of a trial. Send `asdict` of it; `TrialReport.of` reads it back."""

    trial: str
    """Name of the trial's run."""
    stratum: str
    """The trials that it competes with (`stopping.stratum_of`)."""
    fraction: float
    """Part of its steps that is done, 0 to 1."""
    density: float | None = None
    """Current density of the linear weights; None while unknown."""
    metric: float | None = None
    """The headline metric; None if the report is not an evaluation."""
    repeated: bool = False
    """Whether an earlier session made this evaluation."""
    messages: tuple[str, ...] = ()
    """Lines for the user since the previous report."""
    placement_group: str | None = None
    """The placement group of the trial's own workers (its id, hex); None without any."""
    work_seconds: float | None = None
    """Seconds of training and the final evaluation in this session; None until the end, and if the run was finished
    before."""
    finished: bool = False
    """Whether the run is finished."""
    failed: str | None = None
    """Why the run failed, if trying again at once would not help."""
    fails_again: bool = False
    """Whether a later command would fail in the same way."""

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> TrialReport:
        """The report in a result of Ray Tune."""
        return cls(**{field.name: result[field.name] for field in fields(cls)})


def last_report(trial: Any) -> TrialReport | None:
    """The last report of a trial of Ray Tune; None before its first one, when the result has only Tune's fields."""
    result = trial.last_result or {}
    return TrialReport.of(result) if "trial" in result else None
