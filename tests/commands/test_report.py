"""Reports: self-contained, escaped and complete; what is not a run or sweep is refused."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from raypp.cli import main
from raypp.commands.report import FinishedFolder, report, write_report
from raypp.commands.report_tables import front_table, trials_table
from raypp.display.summary import print_front
from raypp.errors import ConfigError
from raypp.load_config import load_experiment
from raypp.runs import write_experiment
from raypp.storage import Location
from raypp.sweeps.front import Front
from raypp.sweeps.result import deliver_sweep
from raypp.sweeps.trial_outcome import TrialOutcome

VERSIONS = {"raypp": "0.1.0", "torch": "2.13.0+cpu"}


class Page(HTMLParser):
    """The cells of a page's tables, its other text, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data


def write_sweep(
    folder: Location, name: str = "ladder", task: str = "sentiment", student: str = "some/encoder", **axes: Any
) -> Location:
    """A sweep's folder as a sweep of four trials leaves it.

    Args:
        axes: values of other axes than the density; a field's path with __ for its dots.
    """
    file = Path(folder.path).parent / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "name": name,
        "task": task,
        "student": {"model": student},
        "teacher": {"model": "some/teacher"},
        "pruning": {"method": "topk"},
        "tracking": {"wandb": "off"},
        "sweep": {
            "space": {
                "pruning.final_density": {"choice": [0.5, 0.2]},
                **{axis.replace("__", "."): {"choice": values} for axis, values in axes.items()},
            }
        },
    }
    file.write_text(yaml.safe_dump(values))
    experiment = load_experiment(file)
    states: list[Any] = ["finished", "finished", "stopped", "failed"]
    reasons = [None, None, "0.9 was needed", "RunFailed: <b>no</b> & never"]
    outcomes = [
        TrialOutcome(
            *(f"topk-{number}", f"/runs/topk-{number}", number, 42, {"pruning.final_density": 0.5 / (number + 1)}),
            *(
                "density 0.5",
                state,
                0.5 / (number + 1),
                0.9 - number / 10,
                1.0,
                60.0 if reason is None else None,
                reason,
            ),
        )
        for number, (state, reason) in enumerate(zip(states, reasons, strict=True))
    ]
    results = {
        each.run: {
            "task": task,
            "headline": "eval/accuracy",
            "metrics": {"eval/accuracy": each.metric},
            "teacher_metrics": {"eval/accuracy": 0.95},
            "density": {"linear": each.density},
            "device": "CPU",
            "device_hours": 0.25,
            "paths": {"run": each.path},
        }
        for each in outcomes[:2]
    }
    folder.make_folder()
    write_experiment(folder, experiment, folder.name, VERSIONS)
    deliver_sweep(folder, experiment, outcomes, results, {"seconds": 130.0}, lambda event: None)
    return folder


def test_the_report_of_a_sweep_has_every_trial_and_needs_nothing_else(tmp_path: Path) -> None:
    folder = write_sweep(Location.of(tmp_path / "ladder" / "sweep-1"))
    assert str(report([str(folder)])) == f"{folder}/report.html"
    text = (tmp_path / "ladder" / "sweep-1" / "report.html").read_text()
    page = Page(text)
    head = page.rows.index(next(row for row in page.rows if "seed" in row))
    assert page.rows[head] == ["run", "settings", "seed", "state", "density", "accuracy", "seconds"]
    trials = page.rows[head + 1 : head + 5]
    assert trials[0] == ["topk-0", "pruning.final_density 0.5", "42", "finished", "50.00%", "0.9000", "60"]
    assert trials[2][3:] == ["stopped", "16.67%", "0.7000", ""]
    assert ["topk-2", "stopped", "0.9 was needed"] in page.rows
    assert ["topk-3", "failed", "RunFailed: <b>no</b> & never"] in page.rows
    assert "b" not in page.tags, "what a trial said is text, not markup"
    assert ["CPU-hours of the finished trials", "0.50"] in page.rows
    assert ["torch", "2.13.0+cpu"] in page.rows
    assert "final_density" in text[text.index("<pre>") :]
    assert page.loads
    assert all(load.startswith("data:image/") for load in page.loads)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "@import" not in text
    assert not re.search(r"url\(", text)


def test_the_terminal_shows_the_same_front_as_the_report(tmp_path: Path) -> None:
    folder = write_sweep(Location.of(tmp_path / "ladder" / "sweep-1"))
    front = front_table(FinishedFolder.of(folder).front(), "eval/accuracy")
    file = io.StringIO()
    print_front((folder / "result.json").read_json(), Console(file=file, width=120))
    lines = [line for line in file.getvalue().splitlines() if re.match("[│┃]", line)]
    heads, *rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines]
    assert heads == [column.name for column in front.columns]
    assert rows == [
        ["dense", "0.9500", "teacher", ""],
        ["0.5000", "0.9000", "pruning.final_density=0.5", "topk-0"],
        ["0.2500", "0.8000", "pruning.final_density=0.25", "topk-1"],
    ]
    assert [row.cells for row in front.rows] == [
        ("dense", "0.9500", "teacher", ""),
        ("50.00%", "0.9000", "pruning.final_density 0.5", "topk-0"),
        ("25.00%", "0.8000", "pruning.final_density 0.25", "topk-1"),
    ]
    assert "failed: /runs/topk-3: RunFailed: <b>no</b> & never" in file.getvalue()


def test_what_is_an_axis_is_said_to_be_several_and_compared_with_no_published_encoder(tmp_path: Path) -> None:
    def facts(folder: Location) -> dict[str, str]:
        report([str(folder)])
        return {row[0]: row[1] for row in Page((folder / "report.html").read_text()).rows if len(row) == 2}

    bert: dict[str, Any] = {"task": "qqp", "student": "bert-base-uncased"}
    alone = write_sweep(Location.of(tmp_path / "alone" / "sweep-1"), **bert)
    several = write_sweep(
        Location.of(tmp_path / "several" / "sweep-1"), **bert, student__model=["a", "b"], teacher__model=["a", "b"]
    )
    sections = write_sweep(Location.of(tmp_path / "sections" / "sweep-1"), **bert, teacher=[None, {"model": "b"}])
    unknown = write_sweep(Location.of(tmp_path / "unknown" / "sweep-1"), task="qqp")
    assert (facts(alone)["student"], facts(alone)["teacher"]) == ("bert-base-uncased", "some/teacher")
    assert (facts(several)["student"], facts(several)["teacher"]) == ("several encoders", "several teachers")
    assert facts(sections)["teacher"] == "several teachers"
    fronts = [FinishedFolder.of(folder).front() for folder in (alone, several, unknown)]
    assert [len(front.published) for front in fronts] == [4, 0, 0]
    drawn = [(folder / "front.png").read_bytes() for folder in (alone, several, unknown)]
    assert drawn[0] != drawn[1] == drawn[2]


def test_a_dense_trial_and_the_single_method_have_settings() -> None:
    trial = {"seed": 42, "state": "finished", "density": 0.5, "metric": 0.9, "seconds": 60.0, "path": "/runs/one"}
    settings = [{"pruning": None}, {"pruning": {"method": "topk", "final_density": 0.1}}]
    trials = [{**trial, "run": f"run-{number}", "settings": each} for number, each in enumerate(settings)]
    table = trials_table({"trials": trials, "headline": "eval/accuracy"}, Front("one", [], None, []))
    assert [row.cells[1] for row in table.rows] == ["pruning None", "pruning.method topk, pruning.final_density 0.1"]


def test_several_sweeps_share_a_figure(tmp_path: Path) -> None:
    folders = [str(write_sweep(Location.of(tmp_path / name / "sweep-1"), name)) for name in ("one", "two")]
    with pytest.raises(ConfigError, match="--save"):
        report(folders)
    report(folders, str(tmp_path / "both.html"))
    page = Page((tmp_path / "both.html").read_text())
    assert len(page.loads) == 1
    assert page.tags.count("h2") == 2
    report(folders, str(tmp_path / "new" / "both.PNG"))
    with Image.open(tmp_path / "new" / "both.PNG") as image:
        assert image.size[0] > 900


def test_a_report_of_a_remote_sweep_is_written_there(bucket: Location, tmp_path: Path) -> None:
    write_sweep(Location.of(tmp_path / "bucket" / "sweep-1"))
    folder = bucket / "sweep-1"
    write_report([FinishedFolder.of(folder)], folder / "report.html")
    assert "All 4 trials" in (tmp_path / "bucket" / "sweep-1" / "report.html").read_text()


def test_bad_input_is_refused_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = write_sweep(Location.of(tmp_path / "ladder" / "sweep-1"))
    other = write_sweep(Location.of(tmp_path / "other" / "sweep-1"), task="paraphrase")
    unfinished = write_sweep(Location.of(tmp_path / "unfinished" / "sweep-1"))
    (unfinished / "result.json").delete()
    for arguments, message in (
        ([str(tmp_path / "nothing")], "is not the folder of a run or sweep"),
        ([str(tmp_path / "ladder")], f"it contains {sweep}"),
        ([str(unfinished)], "is not finished; `raypp sweep` resumes it"),
        ([str(sweep), "--save", "report.docx"], "a report ends in .html, a figure in one of .png"),
        ([str(sweep), str(other), "--save", "x.html"], "different tasks"),
    ):
        assert main(["report", *arguments]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert message in said[0]
