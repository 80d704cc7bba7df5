"""The tables of a report: what a run's metrics are, who is on a front, what became of every trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raypp.figures.front import Front
from raypp.storage import name_of
from raypp.sweeps.space import distinguishing_settings


@dataclass(frozen=True)
class Column:
    """Its head, and whether its cells are set flush right."""

    name: str
    is_number: bool = True


@dataclass(frozen=True)
class Row:
    """Its cells, and what it is: '', 'front', 'stopped' or 'failed'."""

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table, ready to be set."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""


def metrics_table(result: Mapping[str, Any]) -> Table:
    """A run's metrics beside its teacher's, then its densities; `result` as in result.json."""
    teacher = result["teacher_metrics"] or {}
    headline, metrics = result["headline"], result["metrics"]
    rows = [
        Row((key.removeprefix("eval/"), _number(teacher.get(key)), _number(metrics[key])), "front" * (key == headline))
        for key in [headline, *(key for key in metrics if key != headline)]
    ]
    if result["requested_density"] is not None:
        rows.append(Row(("requested density", "", _percent(result["requested_density"]))))
    rows += [
        Row((f"density of {part}", _percent(1.0) if teacher else "", _percent(result["density"][key])))
        for key, part in (("linear", "the linear weights"), ("encoder", "the encoder"), ("model", "the model"))
    ]
    return Table("Result", [Column("", is_number=False), Column("dense teacher"), Column("student")], rows)


def front_table(front: Front, headline: str) -> Table:
    """The points that no other beats, by falling density, after the teacher."""
    settings = distinguishing_settings([point.changes for point in front.points])
    rows = [] if front.teacher is None else [Row(("dense", _number(front.teacher), "", "teacher"))]
    for point, short in zip(front.points, settings, strict=True):
        if point.on_front:
            metric = _number(point.metric) + (f" ± {point.spread:.4f}" if point.spread else "")
            cells = (_percent(point.density), metric, _settings(short), name_of(point.runs[0]))
            rows.append(Row(cells))
    return Table(
        "Front",
        [
            Column("density"),
            Column(headline.removeprefix("eval/")),
            Column("settings", is_number=False),
            Column("run", is_number=False),
        ],
        rows,
        note="What no other point beats: none is as sparse and better, or sparser and as good. "
        "± is the standard deviation over seeds.",
    )


def trials_table(result: Mapping[str, Any], front: Front) -> Table:
    """Every trial of a sweep (`result` as in its result.json), those on the front set off."""
    trials = result["trials"]
    settings = distinguishing_settings([trial["settings"] for trial in trials])
    best = {run for point in front.points if point.on_front for run in point.runs}
    rows = [
        Row(
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
        Column(result["headline"].removeprefix("eval/")),
        Column("seconds"),
    ]
    return Table(
        f"All {len(trials)} trials",
        columns,
        rows,
        note="Bold: on the front. A trial that did not finish has the density and metric of its last evaluation. "
        "Settings that are the same for all trials are left out.",
    )


def unfinished_table(result: Mapping[str, Any]) -> Table | None:
    """Why trials were stopped or failed; None where none was."""
    rows = [
        Row((trial["run"], trial["state"], trial["reason"]))
        for trial in result["trials"]
        if trial["reason"] is not None
    ]
    columns = [Column(name, is_number=False) for name in ("run", "state", "reason")]
    return Table("Trials that did not finish", columns, rows) if rows else None


def _settings(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{field} {_text(value)}" for field, value in changes.items())


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _percent(density: float | None) -> str:
    return "" if density is None else f"{100 * density:.2f}%"
