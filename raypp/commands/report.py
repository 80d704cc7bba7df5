"""`raypp report`: the results of runs and sweeps in one self-contained HTML file, or as one figure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from raypp.commands.finished import FinishedFolder
from raypp.commands.report_tables import ReportTable, front_table, metrics_table, trials_table, unfinished_table
from raypp.config import METHOD_LABELS
from raypp.errors import ConfigError
from raypp.figures import FORMATS, Picture
from raypp.figures.run import FIGURES
from raypp.storage import Location
from raypp.sweeps.front_figure import front_figure
from raypp.yaml_text import dump_yaml


@dataclass(frozen=True)
class Image:
    """A figure of the page."""

    name: str
    uri: str
    """Its content, as a data URI."""


@dataclass(frozen=True)
class ReportSection:
    """The section of the report on one run or sweep."""

    title: str
    facts: Sequence[tuple[str, str]]
    """Names and values, the most important first."""
    parts: Sequence[Image | ReportTable]
    """Figures and tables, in this order."""
    experiment: str
    """The experiment as YAML."""
    versions: Mapping[str, str]


def report(references: Sequence[str], save: str | None = None, figure: str | None = None) -> Location:
    """Writes a report of a run, a sweep, or several sweeps of one task; returns its file.

    Args:
        references: folders, as paths or URIs.
        save: file to write. Its ending selects the report (.html) or a figure (`FORMATS`). None: report.html in the
            folder.
        figure: name of the figure to write (`FinishedFolder.figures`). None: the overview of a run, or the front of the
            sweeps.

    Raises:
        ConfigError: a folder is not a run or sweep, is not finished, or cannot be compared with the others; the ending
            or the figure is unknown.
    """
    file = None if save is None else Location.of(save, "--save")
    suffix = ".html" if file is None else Path(file.name).suffix.lower()
    if suffix not in (".html", *FORMATS):
        raise ConfigError(f"--save: a report ends in .html, a figure in one of {', '.join(FORMATS)}, got {save!r}")
    if save is None and len(references) > 1:
        raise ConfigError("--save: is required for a report of several sweeps; give its file")
    found = [FinishedFolder.of(Location.of(reference, "RUN_OR_SWEEP")) for reference in references]
    _check_comparable(found)
    if figure is not None and suffix == ".html":
        raise ConfigError(f"--figure: the report has all figures; to write only {figure}, add --save FILE{FORMATS[0]}")
    file = file or found[0].folder / "report.html"
    write_report(found, file, figure)
    return file


def write_report(found: Sequence[FinishedFolder], file: Location, figure: str | None = None) -> None:
    """Writes the report to an .html file, or one figure to a file of one of `FORMATS`."""
    file.parent.make_folder()
    if file.name.lower().endswith(".html"):
        file.write_text(_html(found))
    else:
        _figure(found, figure).save(file)


def _check_comparable(found: Sequence[FinishedFolder]) -> None:
    if len(found) == 1:
        return
    problems = [
        f"RUN_OR_SWEEP: {each.folder} is a run; only sweeps can be compared" for each in found if not each.is_sweep
    ]
    for part in ("task", "headline"):
        values = {each.result[part] for each in found}
        if len(values) > 1:
            problems.append(
                f"RUN_OR_SWEEP: sweeps with different {part}s cannot be compared: {', '.join(sorted(values))}"
            )
    if problems:
        raise ConfigError(problems)


def _figure(found: Sequence[FinishedFolder], name: str | None = None) -> Picture:
    """The fronts of several sweeps, or a figure of a single run or sweep: its first figure if no name is given."""
    if len(found) > 1:
        figures = {"front": front_figure([each.front(each.title) for each in found], found[0].result["headline"])}
    else:
        figures = found[0].figures()
    if name is not None and name not in figures:
        raise ConfigError(f"--figure: {found[0].title} has no figure {name!r}; allowed: {', '.join(figures)}")
    return figures[name or next(iter(figures))]


def _html(found: Sequence[FinishedFolder]) -> str:
    several = len(found) > 1
    title = f"{len(found)} sweeps of {found[0].result['task']}" if several else found[0].title
    environment = Environment(loader=PackageLoader("raypp"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html").render(
        title=title,
        front=Image("Metric against remaining weights, every sweep", _svg(_figure(found))) if several else None,
        sections=[
            _sweep_section(each, with_figure=not several) if each.is_sweep else _run_section(each) for each in found
        ],
        zip=zip,
    )


def _run_section(run: FinishedFolder) -> ReportSection:
    result = run.result
    figures = run.figures()
    return ReportSection(
        title=run.title,
        facts=[
            *_setting(run),
            ("optimizer steps", f"{result['steps']:,}"),
            ("seconds", f"{result['seconds']:,.0f}"),
            *_hours({result["device"]: result["device_hours"]}),
            ("folder", str(run.folder)),
        ],
        parts=[
            metrics_table(result),
            *(
                Image(name.replace("_", " "), _data_uri("image/png", figures[name].encoded(".png")))
                for name in FIGURES
                if name in figures
            ),
        ],
        experiment=_yaml(run.settings),
        versions=run.versions,
    )


def _sweep_section(sweep: FinishedFolder, with_figure: bool) -> ReportSection:
    result, front = sweep.result, sweep.front()
    counts = [f"{count} {state}" for state, count in result["counts"].items() if count]
    return ReportSection(
        title=sweep.title,
        facts=[
            *_setting(sweep),
            ("trials", ", ".join(counts)),
            ("seconds, all commands together", f"{result['seconds']:,.0f}"),
            *_hours(result["device_hours"], " of the finished trials"),
            ("folder", str(sweep.folder)),
        ],
        parts=[
            *(
                [Image("Metric against remaining weights", _svg(front_figure([front], result["headline"])))]
                if with_figure
                else []
            ),
            front_table(front, result["headline"]),
            trials_table(result, front),
            *([unfinished] if (unfinished := unfinished_table(result)) else []),
        ],
        experiment=_yaml(sweep.settings),
        versions=sweep.versions,
    )


def _setting(found: FinishedFolder) -> list[tuple[str, str]]:
    """The facts on task, student, teacher and pruning."""
    pruning, teacher, student = (found.settings[section] for section in ("pruning", "teacher", "student"))
    followed = "none" if teacher is None else teacher["model"] or "the student's encoder, fine-tuned without pruning"
    method = "none" if pruning is None else METHOD_LABELS[pruning["method"]]
    return [
        ("task", found.result["task"]),
        ("student", "several encoders" if found.varies("student.model") else student["model"]),
        ("teacher", "several teachers" if found.varies("teacher.model") else followed),
        ("pruning", "several methods" if found.varies("pruning.method") else method),
        ("headline metric", found.result["headline"]),
    ]


def _hours(by_device: Mapping[str, float], of: str = "") -> list[tuple[str, str]]:
    return [
        ("CPU-hours" + of, f"{hours:.2f}") if device == "CPU" else (f"GPU-hours{of} ({device})", f"{hours:.2f}")
        for device, hours in by_device.items()
    ]


def _yaml(settings: Mapping[str, Any]) -> str:
    return dump_yaml(dict(settings))


def _svg(figure: Picture) -> str:
    return _data_uri("image/svg+xml", figure.encoded(".svg"))


def _data_uri(mime_type: str, content: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"
