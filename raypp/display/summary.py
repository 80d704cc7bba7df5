"""What `raypp train` and `raypp sweep` print: the planned trials, and the result or the front at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raypp.display.result_rows import (
    REQUESTED_LABEL,
    TEACHER_LABEL,
    density_rows,
    front_rows,
    metric_rows,
    student_label,
)
from raypp.evaluation.metric_label import metric_label
from raypp.sweeps.plan import SweepPlan
from raypp.sweeps.record import read_results, read_stopped
from raypp.sweeps.result import finished_points
from raypp.sweeps.space import UNCHANGED, as_overrides

PATHS = {"model": "model", "figures": "figures", "metrics": "metrics", "run": "run", "wandb_sync": "upload to W&B"}


def summary_table(result: Mapping[str, Any]) -> Table:
    """The numbers of a result (the content of result.json): metrics next to the teacher's, densities, time.

    The headline metric comes first. Without a teacher, the table has no column for it.
    """
    has_teacher = bool(result["teacher_metrics"])
    table = Table(title=f"{result['name']} / {result['run']}", title_style="bold", title_justify="left")
    table.add_column("")
    if has_teacher:
        table.add_column(TEACHER_LABEL, justify="right")
    table.add_column(student_label(result), justify="right")

    def row(label: str, value: str, of_teacher: str = "", style: str = "") -> None:
        table.add_row(label, *([of_teacher] if has_teacher else []), value, style=style)

    for each in metric_rows(result):
        dense = "" if each.teacher is None else f"{each.teacher:.4f}"
        row(each.label, f"{each.metric:.4f}", dense, "bold" if each.is_headline else "")
    table.add_section()
    if result["requested_density"] is not None:
        row(REQUESTED_LABEL, f"{result['requested_density']:.4g}")
    for label, density in density_rows(result):
        row(label, f"{density:.4f}")
    table.add_section()
    row("steps", f"{result['steps']:,}")
    row("seconds", f"{result['seconds']:,.1f}")
    row("tokens per second", f"{result['tokens_per_second']:,.0f}")
    return table


def print_trials(plan: SweepPlan, console: Console | None = None) -> None:
    """Prints the trials of a sweep: point, seed, settings, run, and whether a trial has ended already."""
    console = console or Console()
    finished, stopped = read_results(plan.trials), read_stopped(plan.folder)
    left = sum(each.name not in finished and each.name not in stopped for each in plan.trials)
    title = f"{len(plan.trials)} trials" + (f", {left} left" if left < len(plan.trials) else "")
    table = Table(title=title, title_style="bold", title_justify="left")
    for name in ("point", "seed", "settings", "run", "state"):
        table.add_column(name)
    for each in plan.trials:
        state = "finished" if each.name in finished else "stopped early" if each.name in stopped else ""
        seed = str(each.trial.experiment.train.seed)
        table.add_row(
            str(each.trial.point), seed, Text(as_overrides(each.trial.changes) or UNCHANGED), each.name, state
        )
    console.print(table)
    if not plan.is_complete:
        console.print(f"up to {plan.wanted - len(plan.points)} more points will be drawn as results come in")


def print_front(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the front of a sweep, the trials that failed, and the paths of its files."""
    console = console or Console()
    counts, ended = result["counts"], len(result["trials"])
    stopped = f", {counts['stopped']} stopped early" if counts["stopped"] else ""
    finished = f"{counts['finished']} of {ended} trials{stopped}, in {result['seconds']:,.0f} s"
    table = Table(title=f"{result['name']}: front, {finished}", title_style="bold", title_justify="left")
    table.add_column("density", justify="right")
    table.add_column(metric_label(result["headline"]), justify="right")
    table.add_column("settings")
    table.add_column("run")
    if result["teacher"] is not None:
        table.add_row("dense", f"{result['teacher']:.4f}", "teacher", "")
    for each in front_rows(finished_points(result)):
        table.add_row(f"{each.density:.4f}", each.metric, Text(as_overrides(each.settings)), each.run)
    console.print(table)
    for trial in result["trials"]:
        if trial["state"] == "failed":
            console.print(Text(f"failed: {trial['path']}: {trial['reason']}", "red"), soft_wrap=True)
    for name, path in result["paths"].items():
        if path is not None:
            console.print(Text(f"{PATHS.get(name, name) + ':':<14} {path}"), soft_wrap=True)


def print_result(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the table and below it the paths of the model, the figures and the logs, each on a line of its own."""
    console = console or Console()
    console.print(summary_table(result))
    for key, label in PATHS.items():
        if result["paths"][key] is not None:
            # soft_wrap: rich does not break the line, so that the path can be copied.
            console.print(Text(f"{label + ':':<14} {result['paths'][key]}"), soft_wrap=True)
