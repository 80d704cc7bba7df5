"""The progress display as it is rendered, on a terminal of 80 columns and in a log file; and the table of a result."""

from __future__ import annotations

import io
import pickle
import re
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console

from raypp.display.progress import Display
from raypp.display.summary import print_result, summary_table
from raypp.events import Event, Message, PhaseAdvanced, PhaseFinished, PhaseStarted, TrialAdvanced, TrialState

EVENTS: list[Event] = [
    PhaseStarted("student", 1150),
    PhaseAdvanced("student", 640, epoch=2.78, loss=0.4123, density=0.153, metric=("eval/accuracy", 0.783)),
    PhaseFinished("features train", note="from the store"),
    Message("12 rows lack fields"),
]


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def render_terminal(events: Iterable[Event], width: int = 80, clock: Clock | None = None, seconds: float = 10.0) -> str:
    """The last frame that a terminal of `width` columns shows while the phases still run."""
    clock = clock or Clock()
    console = Console(width=width, force_terminal=True, file=io.StringIO(), color_system=None, legacy_windows=False)
    display = Display(console, clock)
    for event in events:
        display.handle(event)
        clock.now += seconds
    with console.capture() as capture:
        console.print(display._render())
    return capture.get()


def render_plain(events: Iterable[Event], clock: Clock | None = None, seconds: float = 0.0) -> list[str]:
    """The lines that a log file gets."""
    clock, file = clock or Clock(), io.StringIO()
    with Display(Console(file=file, width=80), clock) as display:
        for event in events:
            display.handle(event)
            clock.now += seconds
    return file.getvalue().splitlines()


@pytest.mark.parametrize("event", EVENTS)
def test_events_pickle_and_are_frozen(event: Event) -> None:
    assert pickle.loads(pickle.dumps(event)) == event
    with pytest.raises(AttributeError):
        event.phase = "other"  # type: ignore[misc, union-attr]


# --- on a terminal ---------------------------------------------------------------------------------------------------


def test_everything_fits_on_one_line_of_80_columns() -> None:
    metric = ("eval/accuracy", 0.783)
    events = [
        PhaseStarted("student", 11500),
        PhaseAdvanced("student", 6400, epoch=2.7, loss=0.5, density=0.2, metric=metric),
        PhaseAdvanced("student", 6500, epoch=2.8, loss=0.4123, density=0.153),
    ]
    [line] = render_terminal(events, seconds=3.0).splitlines()
    assert line.rstrip().endswith(
        "student 6500/11500 epoch 2.8 loss 0.412 density 0.153 accuracy 0.783 2:27 left"  # 3 s per 100 steps
    )
    assert len(line) <= 80


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
def test_no_line_is_longer_than_the_terminal(width: int) -> None:
    advance = {"epoch": 10.25, "loss": 123.4, "density": 0.153, "rows_per_second": 12345.6}
    events = [
        PhaseStarted("teacher logits", 363846),
        PhaseAdvanced("teacher logits", 100, metric=("eval/accuracy", 0.783), **advance),  # type: ignore[arg-type]
        PhaseAdvanced("teacher logits", 120000),
        PhaseStarted("a sweep's trial of a long name", 7),
    ]
    lines = render_terminal(events, width).splitlines()
    assert len(lines) == 2
    assert all(len(line.rstrip()) <= width for line in lines)
    assert ("120000/363846" in lines[0]) == (width >= 40)
    assert ("12,346 rows/s" in lines[0]) == ("━" in lines[0]) == (width >= 200)


def test_time_left_follows_the_pace_of_this_session_only() -> None:
    clock = Clock()
    resumed = [PhaseStarted("student", 1000), PhaseAdvanced("student", 600), PhaseAdvanced("student", 700)]
    assert "0:20 left" in render_terminal(resumed, clock=clock)  # 100 in 10 s, and 10 s have passed since
    assert "left" not in render_terminal(resumed[:2])
    assert "1:06:20 left" in render_terminal([*resumed[:2], PhaseAdvanced("student", 601)])


def test_finished_phases_and_messages_stay_and_unfinished_ones_are_marked() -> None:
    file = io.StringIO()
    console = Console(width=80, force_terminal=True, file=file, color_system=None, legacy_windows=False)
    with Display(console, Clock()) as display:
        for event in EVENTS:
            display.handle(event)
        display.handle(PhaseAdvanced("teacher logits", 10, 20))
        display.handle(PhaseFinished("teacher logits", seconds=41.23))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    lasting = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert "✓ features train  from the store" in lasting
    assert "12 rows lack fields" in lasting
    assert "✓ teacher logits  10/20  done in 41.2 s" in lasting
    assert lasting[-1].startswith("✗ student 640/1150")
    assert lasting[-1].endswith("stopped")


# --- the trials of a sweep -------------------------------------------------------------------------------------------


def sweep_events(running: int, finished: int, waiting: int, strata: int = 5) -> list[Event]:
    """The trials of a sweep, each in one of so many strata; the later ones have the higher metrics."""
    events: list[Event] = [PhaseStarted("trials", running + finished + waiting)]
    states: list[TrialState] = [*["finished"] * finished, *["running"] * running, *["waiting"] * waiting]  # type: ignore[list-item]
    for number, state in enumerate(states):
        name, stratum = f"sigmoid-threshold-0.1-{number:08x}", f"density 0.{number % strata + 1:02d}"
        known = {} if state == "waiting" else {"density": 0.25, "metric": ("eval/matthews", number / 100)}
        left = 75.0 if state == "running" else None
        events.append(TrialAdvanced(name, stratum, state, 0.5 * (state == "running"), seconds_left=left, **known))  # type: ignore[arg-type]
    return events


def test_running_trials_and_the_best_of_each_stratum_are_a_table() -> None:
    text = render_terminal(sweep_events(running=2, finished=12, waiting=18))
    assert "32 trials: 18 waiting, 2 running, 12 finished" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["trial", "stratum", "density", "matthews", "state", "left"] in lines
    running = [line for line in lines if line[-1:] == ["1:15"]]
    assert [line[0].rsplit("~")[-1] for line in running] == ["0000000c", "0000000d"]
    assert running[0][1:] == ["density", "0.03", "0.250", "0.120", "50%", "1:15"]
    best = {line[2]: line[4] for line in lines if "best" in line}
    assert best == {"0.01": "0.100", "0.02": "0.110", "0.03": "0.070", "0.04": "0.080", "0.05": "0.090"}


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 12), (120, 40)])
@pytest.mark.parametrize(("running", "strata"), [(2, 5), (30, 5), (2, 30), (30, 30)])
def test_the_table_fits_the_terminal(width: int, height: int, running: int, strata: int) -> None:
    file = io.StringIO()
    console = Console(width=width, height=height, force_terminal=True, file=file, color_system=None)
    display = Display(console, Clock())
    for event in [*sweep_events(running, 40, 10, strata), PhaseAdvanced("trials", 40)]:
        display.handle(event)
    with console.capture() as capture:
        console.print(display._render())
    lines = capture.get().splitlines()
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    assert sum("50%" in line for line in lines) >= 1, "some of what runs is always shown"
    assert sum("best of" in line and "strata" not in line for line in lines) >= 1, "and some of what is known"
    hidden = running - sum("50%" in line for line in lines)
    assert (f"{hidden} more running" in capture.get()) == (hidden > 0)


def test_a_log_gets_a_line_for_each_change_of_a_trials_state() -> None:
    def trial(name: str, state: TrialState, fraction: float, metric: float | None = None) -> TrialAdvanced:
        return TrialAdvanced(name, "density 0.1", state, fraction, 0.1, metric and ("eval/f1", metric))  # type: ignore[arg-type]

    events: list[Event] = [
        *(trial("a", "waiting", 0.0), trial("b", "waiting", 0.0)),
        *(trial("a", "running", 0.0), trial("a", "running", 0.5, 0.6), trial("a", "finished", 1.0, 0.7)),
        *(trial("b", "running", 0.0), trial("b", "stopped", 0.5, 0.5)),
    ]
    assert render_plain(events) == [
        "a: running  density 0.100",
        "a: finished  100%  density 0.100  f1 0.700  best so far of density 0.1",
        "b: running  density 0.100",
        "b: stopped  50%  density 0.100  f1 0.500",
    ]


# --- in a log file ---------------------------------------------------------------------------------------------------


def steps(count: int) -> list[Event]:
    return [PhaseStarted("student", count), *(PhaseAdvanced("student", done, loss=0.5) for done in range(1, count + 1))]


def test_a_log_gets_a_line_per_tenth() -> None:
    lines = render_plain([*steps(1000), PhaseFinished("student", seconds=245)])
    assert lines[0] == "student: started"
    assert [line.split()[1] for line in lines[1:-1]] == [f"{tenth}00/1000" for tenth in range(1, 11)]
    assert lines[-1] == "student:  1000/1000  loss 0.500  done in 4:05"


def test_a_log_of_a_slow_phase_gets_a_line_per_half_minute() -> None:
    lines = render_plain(steps(1000)[:101], seconds=3.0)  # five minutes, a tenth of the phase
    assert [line.split()[1] for line in lines[1:-1]] == [f"{done}/1000" for done in range(10, 101, 10)]
    assert "45:00 left" in lines[-2]
    assert lines[-1] == "student:  100/1000  loss 0.500  stopped"


def test_a_log_has_no_control_characters_and_no_broken_lines() -> None:
    command = "wandb sync " + "/very/long/folder" * 10
    lines = render_plain([*EVENTS, Message(f"\x1b[31mlater: {command}\x07\rend")])
    assert all(character.isprintable() for line in lines for character in line)
    assert any(command in line for line in lines)
    assert "features train:  from the store" in lines


def test_an_ascii_terminal_is_served() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    with Display(Console(file=file, width=80, force_terminal=True, color_system=None)) as display:
        for event in [*EVENTS, Message("naïve"), PhaseFinished("student", seconds=1)]:
            display.handle(event)
        display._live.refresh()  # type: ignore[union-attr]
    assert b"na?ve" in raw.getvalue()
    assert b"* student" in raw.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_many_threads_may_report_at_once(terminal: bool) -> None:
    file = io.StringIO()
    with Display(Console(width=80, force_terminal=terminal, file=file, color_system=None)) as display:

        def work(name: str) -> None:
            display.handle(PhaseStarted(name, 100))
            for done in range(1, 101):
                display.handle(PhaseAdvanced(name, done))
            display.handle(PhaseFinished(name, note="all done"))

        threads = [threading.Thread(target=work, args=(f"phase {n}",), daemon=True) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
    assert file.getvalue().count("100/100  all done") == 8


# --- the result ------------------------------------------------------------------------------------------------------


def result(**changes: Any) -> dict[str, Any]:
    return {
        "name": "mrpc-topk",
        "run": "calm-fox",
        "task": "mrpc",
        "headline": "eval/f1",
        "metrics": {"eval/accuracy": 0.7402, "eval/f1": 0.8203, "eval/entropy": 1.31},
        "teacher_metrics": {"eval/accuracy": 0.7843, "eval/f1": 0.853},
        "requested_density": 0.15,
        "density": {"linear": 0.1501, "encoder": 0.1623, "model": 0.4711},
        "steps": 1690,
        "seconds": 183.44,
        "tokens_per_second": 15321.2,
        "paths": {
            "run": "r",
            "model": "r/model",
            "figures": "r/figures",
            "metrics": "r/metrics.jsonl",
            "wandb_sync": None,
        },
    } | changes


def rows(content: dict[str, Any]) -> list[list[str]]:
    file = io.StringIO()
    Console(file=file, width=80).print(summary_table(content))
    lines = file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if re.match("[│┃]", line)]


def test_the_table_sets_dense_against_pruned_with_the_headline_first() -> None:
    header, first, second, third, *rest = rows(result())
    assert header == ["", "dense (teacher)", "pruned"]
    assert first == ["f1", "0.8530", "0.8203"]
    assert second == ["accuracy", "0.7843", "0.7402"]
    assert third == ["entropy", "", "1.3100"]
    assert [row[-1] for row in rest] == ["0.15", "0.1501", "0.1623", "0.4711", "1,690", "183.4", "15,321"]


@pytest.mark.parametrize(
    ("changes", "header"),
    [
        ({"teacher_metrics": None}, ["", "pruned"]),
        ({"teacher_metrics": None, "requested_density": None, "density": None}, ["", "dense"]),
        ({"requested_density": None}, ["", "dense (teacher)", "pruned"]),  # a threshold method requests none
        ({"density": {"linear": 1.0, "encoder": 1.0, "model": 1.0}}, ["", "dense (teacher)", "student"]),
    ],
)
def test_the_table_leaves_out_what_there_is_not(changes: dict[str, Any], header: list[str]) -> None:
    content = rows(result(**changes))
    assert content[0] == header
    labels = [row[0] for row in content]
    assert ("requested density" in labels) == (result(**changes)["requested_density"] is not None)


def test_paths_are_printed_whole() -> None:
    sync = "wandb sync " + "/very/long/folder" * 10
    file = io.StringIO()
    paths = result()["paths"]
    print_result(result(paths=paths | {"wandb_sync": sync}), Console(file=file, width=80))
    assert file.getvalue().endswith(f"upload to W&B: {sync}\n")
    file = io.StringIO()
    print_result(result(), Console(file=file, width=80))
    assert "W&B" not in file.getvalue()
    assert "model:         r/model\n" in file.getvalue()
