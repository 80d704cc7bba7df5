"""Follows the trials of a sweep by Ray Tune's callbacks: for the display, and for the sweep's result."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune

from raypp.cluster.deadlines import STOPPED_WORKERS_SECONDS
from raypp.cluster.placement_groups import free_group, free_slots, slots_name
from raypp.cluster.trial_report import TrialReport, last_report
from raypp.cluster.worker_quotas import SweepQuotas
from raypp.events import EventHandler, Message, TrialAdvanced, TrialState
from raypp.sweeps.stopping import Judgement


@dataclass
class Row:
    """One trial."""

    name: str
    stratum: str
    state: TrialState = "waiting"
    fraction: float = 0.0
    density: float | None = None
    metric: float | None = None
    reason: str | None = None
    """Why it failed."""
    fails_again: bool = False
    """Whether a later command would fail in the same way."""
    started: float = 0.0
    """When its latest attempt began, on the monotonic clock."""
    first: tuple[float, float] | None = None
    """Time and fraction of the attempt's first report of new steps (repeated ones do not count)."""
    overhead_seconds: float | None = None
    """Seconds beyond training and the final evaluation; None until it has finished in this command."""

    def seconds_left(self) -> float | None:
        """Estimated from the pace since the first report."""
        if self.state != "running" or self.first is None or self.fraction <= self.first[1]:
            return None
        return (time.monotonic() - self.first[0]) / (self.fraction - self.first[1]) * (1 - self.fraction)


@dataclass
class TrialMonitor(tune.Callback):  # type: ignore[misc]
    """All trials of the sweep. Tune calls the callbacks in its own thread."""

    headline: str
    on_event: EventHandler
    quotas: SweepQuotas | None
    """The shares of the cluster, if trials have their own workers."""
    rows: dict[str, Row] = field(default_factory=dict)
    stopped_groups: dict[str, float] = field(default_factory=dict)
    """Placement groups of trials that were stopped early and whose workers may still save. The value is the deadline
    (monotonic clock) after which the command removes the group."""
    halted: threading.Event = field(default_factory=threading.Event)
    """Set when Tune must end without finishing its trials. If its thread called Ray while Ray shuts down, Ray would end
    the process."""

    def add(self, trials: Iterable[tuple[str, str]]) -> None:
        """Adds trials (name and stratum) that wait to be started."""
        for name, stratum in trials:
            self.rows[name] = Row(name, stratum)
            self._show(self.rows[name])

    def add_ended(self, name: str, stratum: str, reached: tuple[float, float] | None) -> None:
        """Adds a trial that ended in an earlier command: metric and density if it finished, None if it was stopped."""
        if reached is None:
            self.rows[name] = Row(name, stratum, "stopped")
        else:
            metric, density = reached
            self.rows[name] = Row(name, stratum, "finished", 1.0, density, metric)
        self._show(self.rows[name])

    def stop(self, judgement: Judgement) -> None:
        """The trial is stopped early."""
        row = self.rows[judgement.trial]
        row.state, row.fraction, row.metric = "stopped", judgement.fraction, judgement.metric

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks, but a sweep resumes from its run folders."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if self.halted.is_set():
            raise SystemExit  # after another error Tune would clean up
        self.free_stopped(time.monotonic())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        row = self._row(trial)
        row.state, row.started, row.first = "running", time.monotonic(), None
        self._show(row)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        row, report = self._row(trial), TrialReport.of(result)
        for text in report.messages:
            self.on_event(Message(f"{row.name}: {text}"))
        row.fraction, row.density = report.fraction, report.density
        if report.metric is not None:
            row.metric = report.metric
        if row.fraction and (row.first is None or report.repeated):
            row.first = (time.monotonic(), row.fraction)
        if report.failed is not None:
            row.state, row.reason, row.fails_again = "failed", report.failed, report.fails_again
        if report.finished:
            row.state = "finished"
            if report.work_seconds is not None:
                row.overhead_seconds = time.monotonic() - row.started - report.work_seconds
        self._show(row)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        row = self._row(trial)
        if row.state == "failed":
            self.on_event(Message(f"{row.name} failed: {row.reason}"))
        self._end(trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        row = self._row(trial)
        row.state = "retrying"
        self.on_event(Message(f"{row.name} is tried again from its last checkpoint: {_error_of(trial)}"))
        self._show(row)
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        row = self._row(trial)
        row.state, row.reason = "failed", _error_of(trial)
        self.on_event(Message(f"{row.name} failed: {row.reason}"))
        self._show(row)
        self._end(trial)

    def free_stopped(self, before: float = math.inf) -> None:
        """Removes the placement groups of stopped trials whose deadline is past (`before`)."""
        for group in [group for group, latest in self.stopped_groups.items() if latest < before]:
            del self.stopped_groups[group]
            free_group(group)

    def _end(self, trial: Any) -> None:
        report = last_report(trial)
        if report is not None and (group := report.placement_group) is not None:
            if self._row(trial).state == "stopped":
                self.stopped_groups[group] = time.monotonic() + STOPPED_WORKERS_SECONDS
            else:
                free_group(group)
        if self.quotas is not None:  # only then it has slots; finding them takes a request to Ray
            free_slots(slots_name(trial.config["task"].job.run))
            self.quotas.gone(self._row(trial).name)

    def _row(self, trial: Any) -> Row:
        return self.rows[trial.config["task"].job.run.name]

    def _show(self, row: Row) -> None:
        metric = None if row.metric is None else (self.headline, row.metric)
        self.on_event(
            TrialAdvanced(row.name, row.stratum, row.state, row.fraction, row.density, metric, row.seconds_left())
        )


def _error_of(trial: Any) -> str:
    """The last line of the error of a failed trial."""
    lines = Path(trial.error_file).read_text().strip().splitlines() if trial.error_file else []
    return lines[-1].strip() if lines else "no reason was given"
