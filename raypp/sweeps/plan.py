"""Plans a sweep: its trials, each checked like a single run, and its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from raypp.config import Experiment, SweepSettings
from raypp.errors import ConfigError, Problems
from raypp.evaluation.evaluate import headline_key
from raypp.plan import Draft, Plan, Prepare, draft_plan
from raypp.storage import Location
from raypp.sweeps.points import trials_of
from raypp.sweeps.space import Changes, Space, Trial, place_of_points
from raypp.sweeps.stopping import stratum_of
from raypp.sweeps.suggest import as_many_as_wanted, first_points
from raypp.tasks import resolve_task
from raypp.training.steps import StepPlan

EXHAUSTED = "exhausted.json"


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that is checked and has a run folder."""

    trial: Trial
    plan: Plan

    @property
    def name(self) -> str:
        """Name of its run."""
        return self.plan.run.name

    @property
    def stratum(self) -> str:
        """The stratum in which it competes."""
        return stratum_of(self.plan.experiment)


@dataclass
class SweepPlan:
    """The known trials of a sweep. An Optuna search adds more while it runs."""

    space: Space
    folder: Location
    trials: list[PlannedTrial] = field(default_factory=list)
    """Each run once, even if several points lead to it."""
    points: list[Changes] = field(default_factory=list)
    """Optuna: the points in the order in which they were suggested."""
    runs: list[list[str]] = field(default_factory=list)
    """Optuna: names of the runs of each of these points."""
    recorded: list[Changes] = field(default_factory=list)
    """Optuna: the points that the sweep's folder had when this was planned."""
    exhausted: dict[str, int] | None = None
    """Optuna: the content of exhausted.json, if an earlier search found no more points."""

    @property
    def is_current(self) -> bool:
        """Whether the sweep's folder still has the same recorded points."""
        return self.recorded == _recorded(self.space, self.folder)

    @property
    def is_complete(self) -> bool:
        """Whether all points have been drawn."""
        return (
            self.space.settings.search != "optuna" or len(self.points) >= self.wanted or self.exhausted == self._extent
        )

    @property
    def wanted(self) -> int:
        """Optuna: the number of points to draw, if the space has as many."""
        return (self.space.settings.trials or 0) * len(self.space.grid("grid"))

    @property
    def _extent(self) -> dict[str, int]:
        return {"wanted": self.wanted, "found": len(self.points)}

    def add(self, point: Changes, planned: list[PlannedTrial]) -> list[PlannedTrial]:
        """Adds a suggested point; returns those of its trials that no earlier point has."""
        known = {each.name for each in self.trials}
        new = [each for each in planned if each.name not in known]
        self.points.append(point)
        self.runs.append([each.name for each in planned])
        self.trials += new
        return new

    def record_point(self, number: int) -> None:
        """Records a suggested point in the sweep's folder, before any of its trials runs."""
        (self.folder / "points").make_folder()
        (self.folder / "points" / f"{number:05d}.json").write_json(self.points[number])

    def record_exhausted(self) -> None:
        """Records in the sweep's folder that no more points were found, so that no command searches for them again."""
        self.folder.make_folder()
        self.exhausted = self._extent
        (self.folder / EXHAUSTED).write_json(self.exhausted)


def plan_sweep(experiment: Experiment, prepare: Prepare | None = None) -> SweepPlan:
    """Plans and checks all trials that are known now. Trials that lead to the same run are one.

    Args:
        prepare: as in `Draft.to_plan`; called after all known trials have been checked.

    Raises:
        ConfigError: lists every problem of every trial.
    """
    if experiment.cluster.autoscaling and (experiment.sweep is None or experiment.sweep.concurrent is None):
        raise ConfigError(
            "sweep.concurrent: is required with cluster.autoscaling, because the cluster's final resources are not "
            "known; give the number of trials at a time, for example the maximum number of GPUs for trials of one GPU"
        )
    space, known = Space.of(experiment), trials_of(experiment)
    _check_comparable(known, space.settings)
    if space.settings.search == "optuna":
        plan = _plan_search(space, prepare)
    else:
        trials = plan_trials(known, prepare)
        plan = SweepPlan(space, _folder(trials, _stopping(space)), trials)
    _check_stopping(plan)
    return plan


def _check_comparable(trials: Iterable[Trial], settings: SweepSettings) -> None:
    """Refuses trials whose metrics cannot be compared."""
    problems, found = Problems(), set[str]()
    for trial in trials:
        with problems.collect():  # problems of a task are reported later, with all other problems of its trial
            task = resolve_task(trial.experiment.task, trial.experiment.data.source)
            found.add(f"{task.name} ({headline_key(task)})")
    if len(found) > 1:
        raise ConfigError(
            f"{place_of_points(settings)}: trials with different tasks or headline metrics cannot be compared: "
            f"{', '.join(sorted(found))}; make a sweep of each"
        )


def _plan_search(space: Space, prepare: Prepare | None) -> SweepPlan:
    """The plan of an Optuna search: the points that were recorded before, and its first points."""
    planned: dict[int, list[PlannedTrial]] = {}

    def check(number: int, point: Changes) -> None:
        planned[number] = plan_point(space, number, point, prepare)

    first = first_points(space, check)
    # The number of trials is left out, so that a longer search continues a shorter one.
    settings = space.settings.model_dump(mode="json", include={"space", "seed", "seeds"})
    folder = _folder(planned[0], json.dumps(settings, sort_keys=True), _stopping(space))
    file = folder / EXHAUSTED
    exhausted = file.read_json() if file.is_file() else None
    plan = SweepPlan(space, folder, recorded=_recorded(space, folder), exhausted=exhausted)
    for number, point in enumerate([*plan.recorded, *first[len(plan.recorded) :]]):
        is_planned = number < len(first) and first[number] == point
        plan.add(point, planned[number] if is_planned else plan_point(space, number, point, prepare))
    return plan


def _recorded(space: Space, folder: Location) -> list[Changes]:
    """The recorded points of an Optuna search, up to the number of points to draw."""
    if space.settings.search != "optuna":
        return []
    files = (folder / "points").children()
    return as_many_as_wanted(space, [file.read_json() for file in files if file.name.endswith(".json")])


def plan_point(space: Space, number: int, point: Changes, prepare: Prepare | None = None) -> list[PlannedTrial]:
    """The planned trials of a point.

    Raises:
        ConfigError: the point is not valid.
    """
    return plan_trials(space.trials(number, point), prepare)


def plan_trials(trials: Iterable[Trial], prepare: Prepare | None = None) -> list[PlannedTrial]:
    """Plans and checks trials. Trials that lead to the same run are one.

    Raises:
        ConfigError: lists every problem of every trial.
    """
    problems = Problems()
    drafts: list[tuple[Trial, Draft]] = []
    for trial in trials:
        with problems.collect():
            drafts.append((trial, draft_plan(trial.experiment)))
    problems.stop()
    planned: dict[str, PlannedTrial] = {}
    for trial, draft in drafts:
        with problems.collect():
            plan = draft.to_plan(prepare)
            planned.setdefault(plan.digest, PlannedTrial(trial, plan))
    problems.stop()
    return list(planned.values())


def _check_stopping(plan: SweepPlan) -> None:
    """Refuses early stopping if no trial is evaluated between the first rung and its end."""
    stopping = plan.space.settings.stopping
    if stopping is None or any(_is_judged(each.plan.steps, stopping.grace_fraction) for each in plan.trials):
        return
    raise ConfigError(
        f"sweep.stopping.grace_fraction: no trial is evaluated between {stopping.grace_fraction:g} of its steps and "
        "its end, so none could be stopped; lower evaluation.every_epochs (or every_steps), or leave stopping out"
    )


def _is_judged(steps: StepPlan, grace_fraction: float) -> bool:
    return any(steps.evaluates_after(step) and step >= grace_fraction * steps.total for step in range(1, steps.total))


def _stopping(space: Space) -> str:
    """Stopping settings are part of the folder hash, because judgements under other settings do not hold."""
    return "" if space.settings.stopping is None else space.settings.stopping.model_dump_json()


def _folder(trials: Sequence[PlannedTrial], *settings: str) -> Location:
    digests = [each.plan.digest for each in trials]
    digest = hashlib.sha256("".join([*digests, *settings]).encode()).hexdigest()
    return trials[0].plan.run.parent / f"sweep-{digest[:8]}"
