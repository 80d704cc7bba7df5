"""The tables of a report: the metrics of a run, the front of a sweep, and its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raypp.display.result_rows import (
    REQUESTED_LABEL,
    TEACHER_LABEL,
    density_rows,
    front_rows,
    metric_rows,
    student_label,
)
from raypp.evaluation.metric_label import metric_label
from raypp.sweeps.front import Front
from raypp.sweeps.space import distinguishing_settings


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers are aligned to the right."""

    name: str
    is_number: bool = True


@dataclass(frozen=True)
class TableRow:
    """A row of a table. Its kind is '', 'front' (bold), 'stopped' or 'failed'."""

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class ReportTable:
    """A table of the report, with formatted cells."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[TableRow]
    note: str = ""


def metrics_table(result: Mapping[str, Any]) -> ReportTable:
    """A run's metrics next to its teacher's, then its densities; `result` as in result.json."""
    rows = [
        TableRow((each.label, _number(each.teacher), _number(each.metric)), "front" if each.is_headline else "")
        for each in metric_rows(result)
    ]
    if result["requested_density"] is not None:
        rows.append(TableRow((REQUESTED_LABEL, "", _percent(result["requested_density"]))))
    rows += [TableRow((label, "", _percent(density))) for label, density in density_rows(result)]
    columns = [Column("", is_number=False), Column(TEACHER_LABEL), Column(student_label(result))]
    return ReportTable("Result", columns, rows)


def front_table(front: Front, headline: str) -> ReportTable:
    """The teacher and the points on the front, by falling density."""
    rows = [] if front.teacher is None else [TableRow(("dense", _number(front.teacher), "teacher", ""))]
    rows += [
        TableRow((_percent(each.density), each.metric, _settings(each.settings), each.run))
        for each in front_rows(front.points)
    ]
    return ReportTable(
        "Front",
        [
            Column("density"),
            Column(metric_label(headline)),
            Column("settings", is_number=False),
            Column("run", is_number=False),
        ],
        rows,
        note="The Pareto front: no other point is as sparse and better, or sparser and as good. "
        "± is the standard deviation over seeds.",
    )


def trials_table(result: Mapping[str, Any], front: Front) -> ReportTable:
    """All trials of a sweep (`result` as in its result.json); trials on the front are bold."""
    trials = result["trials"]
    settings = distinguishing_settings([trial["settings"] for trial in trials])
    best = {run for point in front.points if point.on_front for run in point.runs}
    rows = [
        TableRow(
            (
                trial["run"],
                _settings(short),
                str(trial["seed"]),
                trial["state"],
                _percent(trial["density"]),
                _number(trial["metric"]),
                "" if trial["seconds"] is None else f"{trial['seconds']:,.0f}",
            ),
            "front" if trial["path"] in best else "" if trial["state"] == "finished" else trial["state"],
        )
        for trial, short in zip(trials, settings, strict=True)
    ]
    columns = [
        Column("run", is_number=False),
        Column("settings", is_number=False),
        Column("seed"),
        Column("state", is_number=False),
        Column("density"),
        Column(metric_label(result["headline"])),
        Column("seconds"),
    ]
    return ReportTable(
        f"All {len(trials)} trials",
        columns,
        rows,
        note="Bold trials are on the front. A trial that did not finish has the density and metric of its last "
        "evaluation. Settings that are the same for all trials are left out.",
    )


def unfinished_table(result: Mapping[str, Any]) -> ReportTable | None:
    """The reasons of trials that were stopped or failed; None if all finished."""
    rows = [
        TableRow((trial["run"], trial["state"], trial["reason"]))
        for trial in result["trials"]
        if trial["reason"] is not None
    ]
    columns = [Column(name, is_number=False) for name in ("run", "state", "reason")]
    return ReportTable("Trials that did not finish", columns, rows) if rows else None


def _settings(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{field} {_text(value)}" for field, value in changes.items())


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _percent(density: float | None) -> str:
    return "" if density is None else f"{100 * density:.2f}%"
