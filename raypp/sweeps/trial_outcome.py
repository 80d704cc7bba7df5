"""The outcome of one trial of a sweep, as it is recorded in the sweep's result.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raypp.sweeps.plan import PlannedTrial
from raypp.sweeps.record import evaluations_of
from raypp.sweeps.stopping import Judgement

EndState = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Failure:
    """Why a trial failed."""

    reason: str
    fails_again: bool = False
    """Whether the same command would fail in the same way."""


@dataclass(frozen=True)
class TrialOutcome:
    """The outcome of one trial: an element of `trials` in a sweep's result.json."""

    run: str
    """Name of its run."""
    path: str
    """Its run folder."""
    point: int
    """Number of its point; the trials of a point differ only in their seed."""
    seed: int
    """Its training seed."""
    settings: Mapping[str, Any]
    """The settings of its point, by field path."""
    stratum: str
    """The stratum in which it competed (`stopping.stratum_of`)."""
    state: EndState
    density: float | None
    """Achieved density of the linear weights; if the trial did not finish, at its last evaluation."""
    metric: float | None
    """Headline metric; if the trial did not finish, at its last evaluation."""
    fraction: float
    """Fraction of its steps that were done, 0 to 1."""
    seconds: float | None
    """Wall-clock time of its training loop, all sessions together; None if it did not finish."""
    reason: str | None = None
    """Why it was stopped or failed."""
    fails_again: bool = False
    """Whether it failed in a way that the same command would repeat."""

    @property
    def final(self) -> tuple[float, float]:
        """Headline metric and achieved density of a finished trial."""
        assert self.state == "finished"
        assert self.metric is not None
        assert self.density is not None
        return self.metric, self.density


def outcome_of(
    planned: PlannedTrial, result: Mapping[str, Any] | None, stopped: Judgement | None, failure: Failure | None
) -> TrialOutcome:
    """The outcome of a planned trial.

    Args:
        result: its result (as in its result.json), if it finished.
        stopped: the judgement that stopped it early, if one did.
        failure: None if it did not fail, or failed for an unknown reason.
    """
    trial = planned.trial
    seconds, reason = None, None
    if result is not None:
        state: EndState = "finished"
        fraction, metric, density = 1.0, result["metrics"][result["headline"]], result["density"]["linear"]
        seconds = result["seconds"]
    else:
        state, reason = (
            ("failed", failure.reason if failure else None) if stopped is None else ("stopped", str(stopped))
        )
        evaluations = evaluations_of(planned)
        fraction, metric, density = evaluations[-1] if evaluations else (0.0, None, None)
    return TrialOutcome(
        run=planned.name,
        path=str(planned.plan.run),
        point=trial.point,
        seed=trial.experiment.train.seed,
        settings=dict(trial.changes),
        stratum=planned.stratum,
        state=state,
        density=density,
        metric=metric,
        fraction=fraction,
        seconds=seconds,
        reason=reason,
        fails_again=state == "failed" and failure is not None and failure.fails_again,
    )
