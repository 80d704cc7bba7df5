"""A sweep before anything of it runs: its trials, each checked as a single run would be, and its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from raypp.config import Experiment
from raypp.errors import ConfigError, Problems
from raypp.evaluation.evaluate import headline_key
from raypp.plan import Draft, Plan, Prepare, draft_plan
from raypp.storage import Location
from raypp.sweeps.points import trials_of
from raypp.sweeps.space import Changes, Space, Trial
from raypp.sweeps.stopping import stratum_of
from raypp.sweeps.suggest import as_many_as_wanted, first_points
from raypp.tasks import resolve_task
from raypp.training.steps import StepPlan

EXHAUSTED = "exhausted.json"


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that was checked and has a run folder."""

    trial: Trial
    plan: Plan

    @property
    def name(self) -> str:
        """Name of its run."""
        return self.plan.run.name

    @property
    def stratum(self) -> str:
        """Whom it competes with."""
        return stratum_of(self.plan.experiment)


@dataclass
class SweepPlan:
    """The trials of a sweep, as far as they are known; a search that learns adds more."""

    space: Space
    folder: Location
    trials: list[PlannedTrial] = field(default_factory=list)
    """Each run once, though several points may come to it."""
    points: list[Changes] = field(default_factory=list)
    """Of a search that learns: its points, as they were suggested."""
    runs: list[list[str]] = field(default_factory=list)
    """Names of the runs of each of these points."""
    recorded: list[Changes] = field(default_factory=list)
    """The points that were written down when this was planned."""
    exhausted: dict[str, int] | None = None
    """What is written down of a search that found no more points."""

    @property
    def is_current(self) -> bool:
        """Whether those are still what is written down."""
        return self.recorded == _recorded(self.space, self.folder)

    @property
    def is_complete(self) -> bool:
        """Whether no point is to be drawn any more."""
        return (
            self.space.settings.search != "optuna" or len(self.points) >= self.wanted or self.exhausted == self._extent
        )

    @property
    def wanted(self) -> int:
        """Points that a search that learns is to have, where its space has so many."""
        return (self.space.settings.trials or 0) * len(self.space.grid("grid"))

    @property
    def _extent(self) -> dict[str, int]:
        return {"wanted": self.wanted, "found": len(self.points)}

    def add(self, point: Changes, planned: list[PlannedTrial]) -> list[PlannedTrial]:
        """Adds a suggested point; returns its trials that are no other point's."""
        known = {each.name for each in self.trials}
        new = [each for each in planned if each.name not in known]
        self.points.append(point)
        self.runs.append([each.name for each in planned])
        self.trials += new
        return new

    def record_point(self, number: int) -> None:
        """Writes a suggested point down, before anything of it runs."""
        (self.folder / "points").make_folder()
        (self.folder / "points" / f"{number:05d}.json").write_json(self.points[number])

    def record_exhausted(self) -> None:
        """Writes down that there are no more points, so that nothing starts again to look for them."""
        self.folder.make_folder()
        self.exhausted = self._extent
        (self.folder / EXHAUSTED).write_json(self.exhausted)


def plan_sweep(experiment: Experiment, prepare: Prepare | None = None) -> SweepPlan:
    """Every trial that is known now, checked against its input. Two that come to the same run are one.

    Args:
        prepare: as in `Draft.to_plan`; called when all trials that are known have been checked.

    Raises:
        ConfigError: with every problem of every trial.
    """
    if experiment.cluster.autoscaling and (experiment.sweep is None or experiment.sweep.concurrent is None):
        raise ConfigError(
            "sweep.concurrent: the room that there will be with cluster.autoscaling is not known; give the number of "
            "trials at a time, such as the GPUs that the cluster may have, for trials of one GPU"
        )
    space, known = Space.of(experiment), trials_of(experiment)
    _check_comparable(known)
    if space.settings.search == "optuna":
        plan = _plan_search(space, prepare)
    else:
        trials = plan_trials(known, prepare)
        plan = SweepPlan(space, _folder(trials, _stopping(space)), trials)
    _check_stopping(plan)
    return plan


def _check_comparable(trials: Iterable[Trial]) -> None:
    """Refuses trials that have no metric in common."""
    problems, found = Problems(), set[str]()
    for trial in trials:
        with problems.collect():  # what is wrong with a task is said with all else of its trial
            task = resolve_task(trial.experiment.task, trial.experiment.data.source)
            found.add(f"{task.name} ({headline_key(task)})")
    if len(found) > 1:
        raise ConfigError(
            f"sweep.space: trials of different tasks or headline metrics have no front in common: "
            f"{', '.join(sorted(found))}; make a sweep of each"
        )


def _plan_search(space: Space, prepare: Prepare | None) -> SweepPlan:
    """The points that were drawn before, and those that a search begins with."""
    planned: dict[int, list[PlannedTrial]] = {}

    def check(number: int, point: Changes) -> None:
        planned[number] = plan_point(space, number, point, prepare)

    first = first_points(space, check)
    # How many points are wanted is left out: a longer search goes on with a shorter one.
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
    """The points of a search that are written down, as far as they are wanted."""
    if space.settings.search != "optuna":
        return []
    files = (folder / "points").children()
    return as_many_as_wanted(space, [file.read_json() for file in files if file.name.endswith(".json")])


def plan_point(space: Space, number: int, point: Changes, prepare: Prepare | None = None) -> list[PlannedTrial]:
    """The trials of a point.

    Raises:
        ConfigError: it does not fit.
    """
    return plan_trials(space.trials(number, point), prepare)


def plan_trials(trials: Iterable[Trial], prepare: Prepare | None = None) -> list[PlannedTrial]:
    """Trials, checked; those that come to the same run once.

    Raises:
        ConfigError: with every problem of every trial.
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
    """Refuses stopping early where no trial is evaluated between the first rung and its end."""
    stopping = plan.space.settings.stopping
    if stopping is None or any(_is_judged(each.plan.steps, stopping.grace_fraction) for each in plan.trials):
        return
    raise ConfigError(
        f"sweep.stopping.grace_fraction: no trial is evaluated between {stopping.grace_fraction:g} of its steps and "
        "its end, so none would ever be stopped; lower evaluation.every_epochs (or every_steps), or leave stopping out"
    )


def _is_judged(steps: StepPlan, grace_fraction: float) -> bool:
    return any(steps.evaluates_after(step) and step >= grace_fraction * steps.total for step in range(1, steps.total))


def _stopping(space: Space) -> str:
    """What others were stopped by is no reason under other settings."""
    return "" if space.settings.stopping is None else space.settings.stopping.model_dump_json()


def _folder(trials: Sequence[PlannedTrial], *settings: str) -> Location:
    digests = [each.plan.digest for each in trials]
    digest = hashlib.sha256("".join([*digests, *settings]).encode()).hexdigest()
    return trials[0].plan.run.parent / f"sweep-{digest[:8]}"
