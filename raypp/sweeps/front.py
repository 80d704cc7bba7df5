"""What a sweep comes to: its points, the front of those that no other beats, and the files that say so."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raypp.evaluation.direction import lower_is_better, merit

# A density of a hundredth of a percent is told from another. Selection by matrix rounds down in each of them, selection
# over all of them once: at 3% they end at 0.029998 and 0.030000, and neither is the sparser one.
DENSITY_DIGITS = 4


@dataclass(frozen=True)
class Point:
    """The finished trials of one point, its seeds together."""

    number: int
    changes: Mapping[str, Any]
    """Its settings, by field path."""
    density: float
    """Achieved density of the linear weights, 0 to 1: the mean of its trials."""
    metric: float
    """Headline metric: the mean of its trials."""
    spread: float
    """Standard deviation of the metric over its trials; 0 for a single one."""
    runs: tuple[str, ...]
    """Its trials' run folders, the best first."""
    on_front: bool = False
    lower_is_better: bool = False
    """Of the metric."""

    @property
    def merit(self) -> float:
        """The metric, or its negative where less is better."""
        return -self.metric if self.lower_is_better else self.metric


def points_of(results: Sequence[tuple[int, Mapping[str, Any], Mapping[str, Any]]]) -> list[Point]:
    """The points of finished trials, by falling density, with the front marked.

    Args:
        results: number of the point, its changes, and the result (as in result.json) of each finished trial.
    """
    trials: dict[int, list[Mapping[str, Any]]] = {}
    changes: dict[int, Mapping[str, Any]] = {}
    for number, changed, result in results:
        trials.setdefault(number, []).append(result)
        changes[number] = changed
    points = []
    for number, of_point in trials.items():
        headline = of_point[0]["headline"]
        ranked = sorted(of_point, key=lambda result: -merit(headline, result["metrics"][headline]))
        metrics = [result["metrics"][headline] for result in ranked]
        points.append(
            Point(
                number,
                changes[number],
                density=statistics.fmean(result["density"]["linear"] for result in ranked),
                metric=statistics.fmean(metrics),
                spread=statistics.stdev(metrics) if len(metrics) > 1 else 0.0,
                runs=tuple(result["paths"]["run"] for result in ranked),
                lower_is_better=lower_is_better(headline),
            )
        )
    best = pareto([(round(point.density, DENSITY_DIGITS), point.merit) for point in points])
    marked = [Point(**{**vars(point), "on_front": is_best}) for point, is_best in zip(points, best, strict=True)]
    return sorted(marked, key=lambda point: (-point.density, point.number))


def pareto(values: Sequence[tuple[float, float]]) -> list[bool]:
    """Of (density, merit) pairs, which no other beats: none is as sparse and better, or sparser and as good."""
    return [
        not any(
            other[0] <= density and other[1] >= merit and (other[0] < density or other[1] > merit) for other in values
        )
        for density, merit in values
    ]


def front_csv(points: Sequence[Point], headline: str) -> str:
    """Every point as a line of comma-separated text: density, metric, spread, whether on the front, settings, runs."""
    columns, rows = front_rows(points, headline)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for density, metric, spread, *rest in rows:
        writer.writerow([f"{density:.6f}", f"{metric:.6f}", f"{spread:.6f}", *rest])
    return text.getvalue()


def front_rows(points: Sequence[Point], headline: str) -> tuple[list[str], list[list[Any]]]:
    """The columns of the table of all points, and a row for each."""
    fields = list(dict.fromkeys(name for point in points for name in point.changes))
    columns = ["density", headline, "spread", "trials", "on_front", *fields, "best_run"]
    rows = []
    for point in points:
        settings = [str(point.changes.get(field, "")) for field in fields]
        numbers = [point.density, point.metric, point.spread, len(point.runs)]
        rows.append([*numbers, "yes" if point.on_front else "no", *settings, point.runs[0]])
    return columns, rows


def best_runs(points: Sequence[Point]) -> dict[str, str]:
    """Run folder of the best trial of every point on the front, by achieved density."""
    best: dict[str, Point] = {}
    for point in points:
        key = f"{point.density:.{DENSITY_DIGITS}f}"
        if point.on_front and (key not in best or point.merit > best[key].merit):
            best[key] = point
    return {key: point.runs[0] for key, point in best.items()}
