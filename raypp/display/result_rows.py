"""The rows that the terminal and the HTML report show of a result: metrics, densities, and the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raypp.evaluation.metric_label import metric_label
from raypp.storage import name_of
from raypp.sweeps.front import Point
from raypp.sweeps.space import distinguishing_settings

TEACHER_LABEL, REQUESTED_LABEL = "dense (teacher)", "requested density"
DENSITY_LABELS = {
    "linear": "density of the linear weights",
    "encoder": "density of the encoder",
    "model": "density of the model",
}


@dataclass(frozen=True)
class MetricRow:
    """One metric of a run."""

    label: str
    metric: float
    teacher: float | None
    """The teacher's metric; None if there is no teacher, or if the teacher does not have this metric."""
    is_headline: bool


@dataclass(frozen=True)
class FrontRow:
    """One point of a front."""

    density: float
    metric: str
    """Mean and, with several seeds, standard deviation."""
    settings: Mapping[str, Any]
    """The settings that distinguish the point from the others."""
    run: str
    """Name of its best run."""


def student_label(result: Mapping[str, Any]) -> str:
    """The heading of a run's own metrics, next to the teacher's."""
    density = result["density"]
    if density is not None and density["linear"] < 0.999:
        return "pruned"
    return "student" if result["teacher_metrics"] else "dense"


def metric_rows(result: Mapping[str, Any]) -> list[MetricRow]:
    """The metrics of a run (`result` as in its result.json), the headline metric first."""
    headline, metrics, teacher = result["headline"], result["metrics"], result["teacher_metrics"] or {}
    return [
        MetricRow(metric_label(key), metrics[key], teacher.get(key), key == headline)
        for key in [headline, *(key for key in metrics if key != headline)]
    ]


def density_rows(result: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Label and value of each achieved density of a run; none in a result without densities."""
    achieved = result["density"]
    return [] if achieved is None else [(label, achieved[key]) for key, label in DENSITY_LABELS.items()]


def front_rows(points: Sequence[Point]) -> list[FrontRow]:
    """The points of a sweep that are on its front."""
    settings = distinguishing_settings([point.changes for point in points])
    return [
        FrontRow(
            point.density,
            f"{point.metric:.4f}" + (f" ± {point.spread:.4f}" if point.spread else ""),
            short,
            name_of(point.runs[0]),
        )
        for point, short in zip(points, settings, strict=True)
        if point.on_front
    ]
