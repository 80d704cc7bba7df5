"""What `raypp train` and `raypp sweep` print: the trials before they run, and the result or the front at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raypp.storage import name_of
from raypp.sweeps.plan import SweepPlan
from raypp.sweeps.record import read_results, read_stopped
from raypp.sweeps.space import as_overrides, distinguishing_settings

PATHS = {"model": "model", "figures": "figures", "metrics": "metrics", "run": "run", "wandb_sync": "upload to W&B"}


def summary_table(result: Mapping[str, Any]) -> Table:
    """The numbers of a result (the content of result.json): dense against pruned metrics, densities, time.

    The headline metric comes first; the teacher's column is there if there was a teacher.
    """
    density, teacher = result["density"], result["teacher_metrics"] or {}
    is_pruned = density is not None and density["linear"] < 0.999
    table = Table(title=f"{result['name']} / {result['run']}", title_style="bold", title_justify="left")
    table.add_column("")
    if teacher:
        table.add_column("dense (teacher)", justify="right")
    table.add_column("pruned" if is_pruned else "student" if teacher else "dense", justify="right")

    def row(label: str, value: str, of_teacher: str = "", style: str = "") -> None:
        table.add_row(label, *([of_teacher] if teacher else []), value, style=style)

    headline, metrics = result["headline"], result["metrics"]
    for key in [headline, *(key for key in metrics if key != headline)]:
        dense = f"{teacher[key]:.4f}" if key in teacher else ""
        row(key.removeprefix("eval/"), f"{metrics[key]:.4f}", dense, "bold" if key == headline else "")
    table.add_section()
    if result["requested_density"] is not None:
        row("requested density", f"{result['requested_density']:.4g}")
    if density is not None:
        row("density of the linear weights", f"{density['linear']:.4f}")
        row("density of the encoder", f"{density['encoder']:.4f}")
        row("density of the model", f"{density['model']:.4f}")
    table.add_section()
    row("steps", f"{result['steps']:,}")
    row("seconds", f"{result['seconds']:,.1f}")
    row("tokens per second", f"{result['tokens_per_second']:,.0f}")
    return table


def print_trials(plan: SweepPlan, console: Console | None = None) -> None:
    """Prints what a sweep would run: point, seed, settings, run folder, and what has ended already."""
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
        table.add_row(str(each.trial.point), seed, Text(as_overrides(each.trial.changes)), each.name, state)
    console.print(table)
    if not plan.is_complete:
        console.print(f"at most {plan.wanted - len(plan.points)} more points are drawn as results come in")


def print_front(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the front of a sweep, what failed, and where the files are."""
    console = console or Console()
    metric = result["headline"].removeprefix("eval/")
    counts, ended = result["counts"], len(result["trials"])
    stopped = f", {counts['stopped']} stopped early" if counts["stopped"] else ""
    finished = f"{counts['finished']} of {ended} trials{stopped}, in {result['seconds']:,.0f} s"
    table = Table(title=f"{result['name']}: front, {finished}", title_style="bold", title_justify="left")
    table.add_column("density", justify="right")
    table.add_column(metric, justify="right")
    table.add_column("settings")
    table.add_column("run")
    if result["teacher"] is not None:
        table.add_row("dense", f"{result['teacher']:.4f}", "teacher", "")
    tried = [trial["settings"] for trial in result["trials"]]
    short = distinguishing_settings(tried)
    for point in result["front"]:
        spread = f" ± {point['spread']:.4f}" if point["spread"] else ""
        table.add_row(
            f"{point['density']:.4f}",
            f"{point['metric']:.4f}{spread}",
            Text(as_overrides(short[tried.index(point["settings"])])),
            name_of(point["run"]),
        )
    console.print(table)
    for trial in result["trials"]:
        if trial["state"] == "failed":
            console.print(Text(f"failed: {trial['path']}: {trial['reason']}", "red"), soft_wrap=True)
    for name, path in result["paths"].items():
        if path is not None:
            console.print(Text(f"{PATHS.get(name, name) + ':':<14} {path}"), soft_wrap=True)


def print_result(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the table, and below it where the model, the figures and the logs are, each on a line to copy from."""
    console = console or Console()
    console.print(summary_table(result))
    for key, label in PATHS.items():
        if result["paths"][key] is not None:
            # soft_wrap: the terminal may break the line, but what is copied from it is whole.
            console.print(Text(f"{label + ':':<14} {result['paths'][key]}"), soft_wrap=True)
