"""`raypp report`: what a run or a sweep came to, in one HTML file that needs nothing else, or as one figure."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from raypp.errors import ConfigError
from raypp.figures import FORMATS, save_to
from raypp.front_figure import Front, front_figure
from raypp.metrics_file import read_records
from raypp.published import METHOD_NAMES, published_curves
from raypp.report_tables import Table, front_table, metrics_table, trials_table, unfinished_table
from raypp.run_figures import FIGURES, overview_figure
from raypp.runs import recorded_settings
from raypp.storage import Location
from raypp.sweep_result import finished_points


@dataclass(frozen=True)
class Finished:
    """The folder of a run or sweep that has ended."""

    folder: Location
    settings: Mapping[str, Any]
    """The resolved experiment."""
    versions: Mapping[str, str]
    """It was started with."""
    result: Mapping[str, Any]
    """The content of its result.json."""

    @property
    def is_sweep(self) -> bool:
        return self.settings["sweep"] is not None

    @property
    def title(self) -> str:
        return f"{self.result['name']} / {self.folder.name}"

    @classmethod
    def of(cls, folder: Location) -> Finished:
        """Opens a folder; ConfigError if it holds no run and no sweep, or an unfinished one."""
        if not (folder / "experiment.yaml").is_file():
            sweeps = [str(child) for child in folder.children() if child.name.startswith("sweep-")]
            hint = f"; it holds {', '.join(sweeps)}" if sweeps else ""
            raise ConfigError(f"RUN_OR_SWEEP: {folder} is no run's or sweep's folder: it has no experiment.yaml{hint}")
        settings, provenance = recorded_settings(folder)
        if not (folder / "result.json").is_file():
            what, verb = ("run", "train") if settings["sweep"] is None else ("sweep", "sweep")
            raise ConfigError(f"RUN_OR_SWEEP: the {what} {folder} is not finished; `raypp {verb}` goes on with it")
        return cls(folder, settings, provenance["versions"], (folder / "result.json").read_json())

    def front(self, name: str | None = None) -> Front:
        """A sweep's front, with what is published for its task and encoder.

        Args:
            name: what it is called in the figure; None: the experiment's name.
        """
        result, settings = self.result, self.settings
        published = published_curves(result["task"], settings["student"]["model"], result["headline"])
        return Front(name or result["name"], finished_points(result), result["teacher"], published)


@dataclass(frozen=True)
class Image:
    """A figure inside the page."""

    name: str
    uri: str
    """Its content, as a data URI."""


@dataclass(frozen=True)
class Section:
    """What the report says of one run or sweep."""

    title: str
    facts: Sequence[tuple[str, str]]
    """Name and value, the most important first."""
    parts: Sequence[Image | Table]
    """In the order in which they are shown."""
    experiment: str
    """YAML."""
    versions: Mapping[str, str]


def report(references: Sequence[str], save: str | None = None) -> Location:
    """Writes a report of a run, a sweep, or several sweeps of one task side by side; returns its file.

    Args:
        references: folders, as paths or URIs.
        save: file to write; its ending says whether it is the report (.html) or only its figure (`FORMATS`). None:
            report.html in the one folder.

    Raises:
        ConfigError: a folder that is neither, is not finished or does not go with the others; an unknown ending.
    """
    suffix = ".html" if save is None else Path(save).suffix.lower()
    if suffix not in (".html", *FORMATS):
        raise ConfigError(f"--save: a report ends in .html, a figure in one of {', '.join(FORMATS)}, got {save!r}")
    if save is None and len(references) > 1:
        raise ConfigError("--save: the report of several sweeps belongs to none of their folders; name its file")
    found = [Finished.of(Location.of(reference, "RUN_OR_SWEEP")) for reference in references]
    _check_comparable(found)
    file = found[0].folder / "report.html" if save is None else Location.of(save, "--save")
    write_report(found, file)
    return file


def write_report(found: Sequence[Finished], file: Location) -> None:
    """Writes the report of what goes together to an .html file, or its figure to one of `FORMATS`."""
    file.parent.make_folder()
    if file.name.lower().endswith(".html"):
        file.write_text(_html(found))
    else:
        save_to(_figure(found), file)


def _check_comparable(found: Sequence[Finished]) -> None:
    if len(found) == 1:
        return
    problems = [
        f"RUN_OR_SWEEP: {each.folder} is a run; only sweeps are compared" for each in found if not each.is_sweep
    ]
    for part in ("task", "headline"):
        values = {each.result[part] for each in found}
        if len(values) > 1:
            problems.append(
                f"RUN_OR_SWEEP: sweeps of different {part}s have no axis in common: {', '.join(sorted(values))}"
            )
    if problems:
        raise ConfigError(problems)


def _figure(found: Sequence[Finished]) -> Figure:
    """The fronts of sweeps, or the schedule and evaluations of a run."""
    if found[0].is_sweep:
        names = [each.title if len(found) > 1 else None for each in found]
        fronts = [each.front(name) for each, name in zip(found, names, strict=True)]
        return front_figure(fronts, found[0].result["headline"])
    return overview_figure(read_records(found[0].folder / "metrics.jsonl"))


def _html(found: Sequence[Finished]) -> str:
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


def _run_section(run: Finished) -> Section:
    result = run.result
    files = {file.name: file for file in (run.folder / "figures").files()}
    return Section(
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
                Image(name.replace("_", " "), _data_uri("image/png", files[f"{name}.png"].read_bytes()))
                for name in FIGURES
                if f"{name}.png" in files
            ),
        ],
        experiment=_yaml(run.settings),
        versions=run.versions,
    )


def _sweep_section(sweep: Finished, with_figure: bool) -> Section:
    result, front = sweep.result, sweep.front()
    counts = [f"{count} {state}" for state, count in result["counts"].items() if count]
    return Section(
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


def _setting(found: Finished) -> list[tuple[str, str]]:
    """What was trained, on what."""
    pruning, teacher = found.settings["pruning"], found.settings["teacher"]
    space = found.settings["sweep"]["space"] if found.is_sweep else {}
    method = "none" if pruning is None else METHOD_NAMES[pruning["method"]]
    return [
        ("task", found.result["task"]),
        ("student", found.settings["student"]["model"]),
        (
            "teacher",
            "none" if teacher is None else teacher["model"] or "the student's encoder, fine-tuned without pruning",
        ),
        ("pruning", "several methods" if {"pruning", "pruning.method"} & space.keys() else method),
        ("headline metric", found.result["headline"]),
    ]


def _hours(by_device: Mapping[str, float], of: str = "") -> list[tuple[str, str]]:
    return [
        ("CPU-hours" + of, f"{hours:.2f}") if device == "CPU" else (f"GPU-hours{of} ({device})", f"{hours:.2f}")
        for device, hours in by_device.items()
    ]


def _yaml(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)


def _svg(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="svg")
    return _data_uri("image/svg+xml", content.getvalue())


def _data_uri(mime_type: str, content: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"
