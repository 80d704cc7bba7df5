"""What a sweep delivers: what became of each trial, the front of the finished ones, and the files that say so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raypp.config import Experiment
from raypp.events import Event, Message
from raypp.storage import Location
from raypp.sweeps.front import Point, best_runs, front_csv, points_of
from raypp.sweeps.plan import PlannedTrial, SweepPlan
from raypp.sweeps.published import published_curves, published_student
from raypp.sweeps.record import evaluations_of
from raypp.sweeps.stopping import Judgement
from raypp.sweeps.tracking import record_sweep, sync_command

EndState = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class TrialOutcome:
    """What became of one trial; an element of `trials` in a sweep's result.json."""

    run: str
    """Name of its run."""
    path: str
    """Its run folder."""
    point: int
    """Number of its point; trials of one point differ in their seed alone."""
    seed: int
    """Its training seed."""
    settings: Mapping[str, Any]
    """What its point sets, by field path."""
    stratum: str
    """Whom it competed with (`stopping.stratum_of`)."""
    state: EndState
    density: float | None
    """Achieved density of the linear weights; of a trial that did not finish, at its last evaluation."""
    metric: float | None
    """Headline metric; of a trial that did not finish, at its last evaluation."""
    fraction: float
    """Part of its steps that is done, 0 to 1."""
    seconds: float | None
    """Wall-clock time of its training loop, all sessions together; None where it did not finish."""
    reason: str | None = None
    """Why it was stopped, or what it failed with."""


def outcome_of(
    planned: PlannedTrial, result: Mapping[str, Any] | None, stopped: Judgement | None, failure: str | None
) -> TrialOutcome:
    """What became of a trial.

    Args:
        result: its result, if it is finished.
        stopped: why it was stopped early, if it was.
        failure: what it failed with, if it did.
    """
    trial = planned.trial
    seconds, reason = None, None
    if result is not None:
        state: EndState = "finished"
        fraction, metric, density = 1.0, result["metrics"][result["headline"]], result["density"]["linear"]
        seconds = result["seconds"]
    else:
        state, reason = ("failed", failure) if stopped is None else ("stopped", str(stopped))
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
    )


def read_delivered(plan: SweepPlan) -> dict[str, Any] | None:
    """The result of a sweep that has ended with these trials; None where there is none yet."""
    file = plan.folder / "result.json"
    if not file.is_file():
        return None
    result = dict(file.read_json())
    ended = [trial["run"] for trial in result["trials"] if trial["state"] != "failed"]
    return result if ended == [each.name for each in plan.trials] else None


def deliver_sweep(
    folder: Location,
    experiment: Experiment,
    outcomes: Sequence[TrialOutcome],
    results: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
    on_event: Callable[[Event], None],
) -> dict[str, Any]:
    """Writes front.csv, front.png, best.json and, last, result.json, which it returns.

    Args:
        results: of the finished trials (as in their result.json), by run name; at least one.
        facts: what the result says besides: seconds, what was built.
        on_event: takes what W&B has to say.
    """
    from raypp.figures.front import Front, front_figure

    folder.make_folder()
    finished = [(each.point, each.settings, results[each.run]) for each in outcomes if each.state == "finished"]
    points = points_of(finished)
    task, headline = finished[0][2]["task"], finished[0][2]["headline"]
    teachers = {(result["teacher_metrics"] or {}).get(headline) for *_, result in finished}
    teacher = teachers.pop() if len(teachers) == 1 else None  # trials of different teachers have no line in common
    (folder / "front.csv").write_text(front_csv(points, headline))
    published = published_curves(task, published_student(experiment.model_dump(mode="json")), headline)
    front_figure([Front(experiment.name, points, teacher, published)], headline).save(folder / "front.png")
    (folder / "best.json").write_json(best_runs(points))
    states = Counter(each.state for each in outcomes)
    result: dict[str, Any] = {
        "name": experiment.name,
        "task": task,
        "headline": headline,
        "teacher": teacher,
        "device_hours": _device_hours([result for *_, result in finished]),
        "counts": {state: states[state] for state in ("finished", "stopped", "failed")},
        **facts,
        "front": [
            {
                "density": p.density,
                "metric": p.metric,
                "spread": p.spread,
                "settings": dict(p.changes),
                "run": p.runs[0],
            }
            for p in points
            if p.on_front
        ],
        "trials": [asdict(each) for each in outcomes],
        "paths": {name: str(folder / name) for name in ("front.csv", "front.png", "best.json")},
    }
    record_sweep(folder, experiment, points, result, warn=lambda text: on_event(Message(text)))
    result["paths"]["wandb_sync"] = sync_command(folder, (each.run for each in outcomes))
    (folder / "result.json").write_json(result)
    return result


def finished_points(result: Mapping[str, Any]) -> list[Point]:
    """The points of a sweep that has ended, from its result.json."""
    headline = result["headline"]
    return points_of(
        [
            (
                trial["point"],
                trial["settings"],
                {
                    "headline": headline,
                    "metrics": {headline: trial["metric"]},
                    "density": {"linear": trial["density"]},
                    "paths": {"run": trial["path"]},
                },
            )
            for trial in result["trials"]
            if trial["state"] == "finished"
        ]
    )


def _device_hours(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Hours of the finished trials' training, by device."""
    hours: dict[str, float] = {}
    for result in results:
        hours[result["device"]] = hours.get(result["device"], 0.0) + result["device_hours"]
    return hours
