"""The result of a sweep: the outcome of each trial, the front of the finished trials, and their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raypp.config import Experiment
from raypp.events import Event, Message
from raypp.storage import Location
from raypp.sweeps.front import Front, Point, best_runs, front_csv, points_of
from raypp.sweeps.plan import SweepPlan
from raypp.sweeps.tracking import record_sweep, sync_command
from raypp.sweeps.trial_outcome import TrialOutcome


def read_delivered(plan: SweepPlan) -> dict[str, Any] | None:
    """The result of a sweep that has ended with exactly these trials; None if there is none yet."""
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
    """Writes front.csv, front.png, best.json and, last, result.json, whose content it returns.

    Args:
        results: the results (as in their result.json) of the finished trials, at least one, by run name.
        facts: further fields of the result, such as seconds and what was built.
        on_event: receives W&B's warnings as events.
    """
    from raypp.sweeps.front_figure import front_figure  # with matplotlib, which is slow to import

    folder.make_folder()
    finished = [results[each.run] for each in outcomes if each.state == "finished"]
    task, headline = finished[0]["task"], finished[0]["headline"]
    points = points_of(outcomes, headline)
    teachers = {(result["teacher_metrics"] or {}).get(headline) for result in finished}
    teacher = teachers.pop() if len(teachers) == 1 else None  # different teachers have different metrics
    (folder / "front.csv").write_text(front_csv(points, headline))
    (folder / "best.json").write_json(best_runs(points))
    states = Counter(each.state for each in outcomes)
    result: dict[str, Any] = {
        "name": experiment.name,
        "task": task,
        "headline": headline,
        "teacher": teacher,
        "device_hours": _device_hours(finished),
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
    front = Front.of(experiment.model_dump(mode="json"), experiment.name, points, result)
    front_figure([front], headline).save(folder / "front.png")
    record_sweep(folder, experiment, points, result, warn=lambda text: on_event(Message(text)))
    result["paths"]["wandb_sync"] = sync_command(folder, (each.run for each in outcomes))
    (folder / "result.json").write_json(result)
    return result


def finished_points(result: Mapping[str, Any]) -> list[Point]:
    """The points of a sweep that has ended, from its result.json."""
    return points_of([TrialOutcome(**trial) for trial in result["trials"]], result["headline"])


def _device_hours(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Training hours of the finished trials, by device."""
    hours: dict[str, float] = {}
    for result in results:
        hours[result["device"]] = hours.get(result["device"], 0.0) + result["device_hours"]
    return hours
