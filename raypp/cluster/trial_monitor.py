"""What the command knows of its trials while they run: from Ray Tune's callbacks to the display and the outcomes."""

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
from raypp.cluster.places import free_group, free_places, places_name
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
    """What it failed with."""
    started: float = 0.0
    """When its latest try began, on the monotonic clock."""
    first: tuple[float, float] | None = None
    """When the first report of steps in that try came, after those that it repeats, and what was done by then."""
    overhead_seconds: float | None = None
    """What it took beyond training and the final evaluation; None until it has finished here."""

    def seconds_left(self) -> float | None:
        """Expected from the pace since the first report."""
        if self.state != "running" or self.first is None or self.fraction <= self.first[1]:
            return None
        return (time.monotonic() - self.first[0]) / (self.fraction - self.first[1]) * (1 - self.fraction)


@dataclass
class TrialMonitor(tune.Callback):  # type: ignore[misc]
    """All trials that run in this command. Its methods are called in the thread in which Tune runs."""

    headline: str
    on_event: EventHandler
    quotas: SweepQuotas | None
    """Of the cluster, where trials have workers of their own."""
    rows: dict[str, Row] = field(default_factory=dict)
    stopped_groups: dict[str, float] = field(default_factory=dict)
    """Placement groups of trials that were stopped early, whose workers have yet to save and then give them back; and
    when, on the monotonic clock, they must have."""
    halted: threading.Event = field(default_factory=threading.Event)
    """Set when Tune is to end, as its trials stand: its thread must not be in Ray when that is shut down, or Ray ends
    the process."""

    def add(self, trials: Iterable[tuple[str, str]]) -> None:
        """Adds trials, by name and stratum, that wait to be started."""
        for name, stratum in trials:
            self.rows[name] = Row(name, stratum)
            self._show(self.rows[name])

    def add_ended(self, name: str, stratum: str, reached: tuple[float, float] | None) -> None:
        """Adds a trial that an earlier command has ended: metric and density where it finished, None if stopped."""
        if reached is None:
            self.rows[name] = Row(name, stratum, "stopped")
        else:
            metric, density = reached
            self.rows[name] = Row(name, stratum, "finished", 1.0, density, metric)
        self._show(self.rows[name])

    def stop(self, judgement: Judgement) -> None:
        """A trial is stopped early."""
        row = self.rows[judgement.trial]
        row.state, row.fraction, row.metric = "stopped", judgement.fraction, judgement.metric

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks, but what a sweep goes on from are its run folders."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if self.halted.is_set():
            raise SystemExit  # no error that Tune would clean up after
        self.free_stopped(time.monotonic())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        row = self._row(trial)
        row.state, row.started, row.first = "running", time.monotonic(), None
        self._show(row)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        row = self._row(trial)
        for text in result["messages"]:
            self.on_event(Message(f"{row.name}: {text}"))
        row.fraction, row.density = result["fraction"], result["density"]
        if result["metric"] is not None:
            row.metric = result["metric"]
        if row.fraction and (row.first is None or result["repeated"]):
            row.first = (time.monotonic(), row.fraction)
        if result["failed"] is not None:
            row.state, row.reason = "failed", result["failed"]
        if result["finished"]:
            row.state = "finished"
            if result["work_seconds"] is not None:
                row.overhead_seconds = time.monotonic() - row.started - result["work_seconds"]
        self._show(row)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        row = self._row(trial)
        if row.state == "failed":
            self.on_event(Message(f"{row.name} failed: {row.reason}"))
        self._end(trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        row = self._row(trial)
        row.state = "retrying"
        self.on_event(Message(f"{row.name} is tried again from its last checkpoint: {_said(trial)}"))
        self._show(row)
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        row = self._row(trial)
        row.state, row.reason = "failed", _said(trial)
        self.on_event(Message(f"{row.name} failed: {row.reason}"))
        self._show(row)
        self._end(trial)

    def free_stopped(self, before: float = math.inf) -> None:
        """Gives back what trials that were stopped should have given back by then, if they have not."""
        for group in [group for group, latest in self.stopped_groups.items() if latest < before]:
            del self.stopped_groups[group]
            free_group(group)

    def _end(self, trial: Any) -> None:
        if group := (trial.last_result or {}).get("placement_group"):
            if self._row(trial).state == "stopped":
                self.stopped_groups[group] = time.monotonic() + STOPPED_WORKERS_SECONDS
            else:
                free_group(group)
        if self.quotas is not None:  # only then it asks for places, and looking for them takes a question to Ray
            free_places(places_name(trial.config["task"].job.run))
            self.quotas.gone(self._row(trial).name)

    def _row(self, trial: Any) -> Row:
        return self.rows[trial.config["task"].job.run.name]

    def _show(self, row: Row) -> None:
        metric = None if row.metric is None else (self.headline, row.metric)
        self.on_event(
            TrialAdvanced(row.name, row.stratum, row.state, row.fraction, row.density, metric, row.seconds_left())
        )


def _said(trial: Any) -> str:
    """The last line of what a trial failed with."""
    lines = Path(trial.error_file).read_text().strip().splitlines() if trial.error_file else []
    return lines[-1].strip() if lines else "no reason was given"
