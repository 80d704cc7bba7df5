"""The points of a sweep, their Pareto front, and the files that list them."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raypp.config import METHOD_LABELS
from raypp.evaluation.direction import lower_is_better, merit
from raypp.sweeps.published import PublishedCurve, published_curves, published_student
from raypp.sweeps.trial_outcome import TrialOutcome

# Densities are compared to a hundredth of a percent. Local selection rounds down in each matrix, global selection
# rounds once: at 3% they end at 0.029998 and 0.030000, and neither should count as the sparser one.
DENSITY_DIGITS = 4


@dataclass(frozen=True)
class Point:
    """A point of a sweep with the means over its finished trials, which differ in their seeds."""

    number: int
    changes: Mapping[str, Any]
    """Its settings, by field path."""
    density: float
    """Achieved density of the linear weights, 0 to 1: the mean over its trials."""
    metric: float
    """Headline metric: the mean over its trials."""
    spread: float
    """Standard deviation of the metric over its trials; 0 for a single trial."""
    runs: tuple[str, ...]
    """Run folders of its trials, the best first."""
    on_front: bool = False
    """Whether no other point beats it."""
    lower_is_better: bool = False
    """Whether a lower metric is better."""

    @property
    def merit(self) -> float:
        """The metric, or its negative if lower is better."""
        return -self.metric if self.lower_is_better else self.metric


@dataclass(frozen=True)
class Front:
    """A sweep's points with what they are compared to, for figures and reports."""

    name: str
    points: Sequence[Point]
    teacher: float | None = None
    """The dense teacher's metric; None if the trials have no teacher or different ones."""
    published: Sequence[PublishedCurve] = ()
    """Published results on the same task with the same encoder."""
    method: str = "trials"
    """Label of the experiment's own pruning method, which points have that do not change it."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], name: str, points: Sequence[Point], result: Mapping[str, Any]) -> Front:
        """The front of a sweep.

        Args:
            settings: of the sweep's experiment, as in JSON.
            result: `task`, `headline` and `teacher`, as in the sweep's result.json.
        """
        published = published_curves(result["task"], published_student(settings), result["headline"])
        pruning = settings["pruning"]
        method = "dense" if pruning is None else METHOD_LABELS[pruning["method"]]
        return cls(name, points, result["teacher"], published, method)


def points_of(outcomes: Iterable[TrialOutcome], headline: str) -> list[Point]:
    """The points of the finished trials, by falling density, with the front marked.

    Args:
        headline: key of the metric that the outcomes have.
    """
    trials: dict[int, list[TrialOutcome]] = {}
    for outcome in outcomes:
        if outcome.state == "finished":
            trials.setdefault(outcome.point, []).append(outcome)
    points = [_mean_of(of_point, headline) for of_point in trials.values()]
    best = pareto([(round(point.density, DENSITY_DIGITS), point.merit) for point in points])
    marked = [replace(point, on_front=is_best) for point, is_best in zip(points, best, strict=True)]
    return sorted(marked, key=lambda point: (-point.density, point.number))


def _mean_of(trials: Sequence[TrialOutcome], headline: str) -> Point:
    """The point of some finished trials that differ only in their seeds."""
    ranked = sorted(trials, key=lambda each: -merit(headline, each.final[0]))
    metrics, densities = zip(*(each.final for each in ranked), strict=True)
    return Point(
        trials[0].point,
        trials[0].settings,
        density=statistics.fmean(densities),
        metric=statistics.fmean(metrics),
        spread=statistics.stdev(metrics) if len(metrics) > 1 else 0.0,
        runs=tuple(each.path for each in ranked),
        lower_is_better=lower_is_better(headline),
    )


def pareto(values: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each (density, merit) pair is on the Pareto front: no other pair is as sparse and better, or sparser and
    as good."""
    return [
        not any(
            other[0] <= density and other[1] >= merit and (other[0] < density or other[1] > merit) for other in values
        )
        for density, merit in values
    ]


def front_csv(points: Sequence[Point], headline: str) -> str:
    """The table of all points (`front_rows`) as comma-separated text."""
    columns, rows = front_rows(points, headline)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for density, metric, spread, *rest in rows:
        writer.writerow([f"{density:.6f}", f"{metric:.6f}", f"{spread:.6f}", *rest])
    return text.getvalue()


def front_rows(points: Sequence[Point], headline: str) -> tuple[list[str], list[list[Any]]]:
    """The table of all points: its columns, and a row for each point."""
    fields = list(dict.fromkeys(name for point in points for name in point.changes))
    columns = ["density", headline, "spread", "trials", "on_front", *fields, "best_run"]
    rows = []
    for point in points:
        settings = [str(point.changes.get(field, "")) for field in fields]
        numbers = [point.density, point.metric, point.spread, len(point.runs)]
        rows.append([*numbers, "yes" if point.on_front else "no", *settings, point.runs[0]])
    return columns, rows


def best_runs(points: Sequence[Point]) -> dict[str, str]:
    """The run folder of the best trial of each point on the front, by achieved density."""
    best: dict[str, Point] = {}
    for point in points:
        key = f"{point.density:.{DENSITY_DIGITS}f}"
        if point.on_front and (key not in best or point.merit > best[key].merit):
            best[key] = point
    return {key: point.runs[0] for key, point in best.items()}
