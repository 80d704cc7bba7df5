"""Gives the trials of a sweep to Ray Tune one by one; a search draws new ones as results arrive."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ray.tune.search import Searcher

from raypp.cluster.trial import TrialTask
from raypp.cluster.trial_report import TrialReport
from raypp.evaluation.direction import merit
from raypp.evaluation.evaluate import headline_key
from raypp.sweeps.plan import PlannedTrial, SweepPlan, plan_point
from raypp.sweeps.suggest import Observation, suggest


class TrialSearcher(Searcher):  # type: ignore[misc]
    """Gives Tune the trials of a sweep that have not ended.

    Args:
        left: the known trials that are still to run.
        ended: metric and achieved density of the known trials that have ended; None for those that were stopped.
        task_of: makes the task of a trial's actor.
        on_draw: is called with the new trials of each point that is drawn.
        on_exhausted: is called if the search finds no more points, although more are wanted.
    """

    def __init__(
        self,
        plan: SweepPlan,
        left: Iterable[PlannedTrial],
        ended: Mapping[str, tuple[float, float] | None],
        task_of: Callable[[PlannedTrial], TrialTask],
        on_draw: Callable[[list[PlannedTrial]], None],
        on_exhausted: Callable[[], None],
    ) -> None:
        super().__init__()
        self.plan, self.task_of = plan, task_of
        self.on_draw, self.on_exhausted = on_draw, on_exhausted
        self.left = list(left)
        self.ended = dict(ended)
        self.running: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        while not self.left:
            if not self._draw():
                return str(Searcher.FINISHED)
        planned = self.left.pop(0)
        self.running[trial_id] = planned.name
        return {"task": self.task_of(planned)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        name = self.running.pop(trial_id)
        report = TrialReport.of(result) if result else None
        if report is None or not report.finished:
            self.ended[name] = None
            return
        assert report.metric is not None
        assert report.density is not None
        self.ended[name] = (report.metric, report.density)

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: a sweep resumes from its folders."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a sweep resumes from its folders")

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def _draw(self) -> bool:
        """Draws a point and records it. Returns whether there was one."""
        plan = self.plan
        trials: list[PlannedTrial] = []
        if plan.space.settings.search != "optuna":
            return False

        def check(number: int, point: dict[str, Any]) -> None:
            trials[:] = plan_point(plan.space, number, point)

        point = suggest(plan.space, self._observations(), check)
        if point is None:
            if not plan.is_complete:
                plan.record_exhausted()
                self.on_exhausted()
            return False
        new = plan.add(point, trials)
        plan.record_point(len(plan.points) - 1)
        self.on_draw(new)
        self.left += new
        return True

    def _observations(self) -> list[Observation]:
        """The state of each point; once all of its trials have ended, the mean of their results."""
        observations = []
        for point, runs in zip(self.plan.points, self.plan.runs, strict=True):
            if any(run not in self.ended for run in runs):
                observations.append(Observation(point, "running"))
                continue
            finished = [values for run in runs if (values := self.ended[run]) is not None]
            if not finished:
                observations.append(Observation(point, "lost"))
                continue
            metrics, densities = zip(*finished, strict=True)
            reached = merit(headline_key(self.plan.trials[0].plan.task), statistics.fmean(metrics))
            observations.append(Observation(point, "finished", reached, statistics.fmean(densities)))
        return observations
