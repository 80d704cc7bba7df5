"""The trials of a running sweep in one table that fits the terminal: those that run, and the best of each stratum.

Waiting and finished trials are counted, not listed: thirty of them would push out what moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import get_args

from rich import box
from rich.table import Table
from rich.text import Text

from raypp.events import TrialAdvanced, TrialState
from raypp.timing import clock_time

ACTIVE = ("running", "retrying")
FRAME_LINES = 6  # title, head, three rules and the line of what is left out
NAME_COLUMNS = (12, 40)
FIXED_COLUMNS = 44  # what the columns but those of names need, with what is between


def trials_table(trials: Mapping[str, TrialAdvanced], width: int, lines: int) -> Table:
    """The table, at most `width` columns wide and, if at all possible, `lines` lines high.

    Args:
        trials: the latest of every trial, by name.
    """
    active = sorted((trial for trial in trials.values() if trial.state in ACTIVE), key=lambda trial: -trial.fraction)
    best = best_of_strata(trials.values())
    room = max(2, lines - FRAME_LINES)
    shown = active[: max(room - len(best), room // 2)]
    kept = list(best.values())[: room - len(shown)]
    table = Table(
        title=counted(trials.values()), title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False
    )
    names = max(2 * NAME_COLUMNS[0], min(2 * NAME_COLUMNS[1], width - FIXED_COLUMNS))
    trial_columns = names * 4 // 7
    for name, columns in (("trial", trial_columns), ("stratum", names - trial_columns)):
        table.add_column(name, no_wrap=True, max_width=columns)
    table.add_column("density", justify="right", no_wrap=True)
    table.add_column(_metric_name(trials.values()), justify="right", no_wrap=True, max_width=9)
    table.add_column("state", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True)
    for trial in shown:
        state = f"{trial.fraction:.0%}" if trial.state == "running" else trial.state
        _add(table, trial, trial_columns, state, "" if trial.seconds_left is None else clock_time(trial.seconds_left))
    table.add_section()
    finished = Counter(trial.stratum for trial in trials.values() if trial.state == "finished")
    for trial in kept:
        _add(table, trial, trial_columns, f"best of {finished[trial.stratum]}", "", "green")
    if hidden := [
        *([f"{len(active) - len(shown)} more running"] if len(active) > len(shown) else []),
        *([f"the best of {len(best) - len(kept)} more strata"] if len(best) > len(kept) else []),
    ]:
        table.caption, table.caption_justify = f"and {', '.join(hidden)}", "left"
    return table


def best_of_strata(trials: Iterable[TrialAdvanced]) -> dict[str, TrialAdvanced]:
    """The finished trial with the highest metric in each stratum, the strata in the order in which they came."""
    best: dict[str, TrialAdvanced] = {}
    for trial in trials:
        if trial.state == "finished" and trial.metric is not None:
            rival = best.get(trial.stratum)
            if rival is None or rival.metric is None or trial.metric[1] > rival.metric[1]:
                best[trial.stratum] = trial
    return best


def counted(trials: Iterable[TrialAdvanced]) -> str:
    """'30 trials: 12 finished, 2 stopped, 2 running, 14 waiting'."""
    states = Counter(trial.state for trial in trials)
    order: tuple[TrialState, ...] = get_args(TrialState)
    parts = [f"{states[state]} {state}" for state in order if states[state]]
    return f"{states.total()} trials: {', '.join(parts)}"


def plain_line(trial: TrialAdvanced, is_best: bool) -> str:
    """What a log file says of a trial whose state has changed."""
    parts = [f"{trial.trial}: {trial.state}"]
    if trial.state != "running" or trial.fraction:
        parts.append(f"{trial.fraction:.0%}")
    if trial.density is not None:
        parts.append(f"density {trial.density:.3f}")
    if trial.metric is not None:
        parts.append(f"{_short(trial.metric[0])} {trial.metric[1]:.3f}")
    if is_best:
        parts.append(f"best so far of {trial.stratum}")
    return "  ".join(parts)


def _add(table: Table, trial: TrialAdvanced, columns: int, state: str, left: str, style: str = "") -> None:
    density = "" if trial.density is None else f"{trial.density:.3f}"
    metric = "" if trial.metric is None else f"{trial.metric[1]:.3f}"
    table.add_row(Text(_cropped(trial.trial, columns)), Text(trial.stratum), density, metric, state, left, style=style)


def _cropped(name: str, columns: int) -> str:
    """A run's name with its middle left out: both the method at its beginning and the hash at its end tell it."""
    return name if len(name) <= columns else f"{name[: columns - 9]}~{name[-8:]}"


def _metric_name(trials: Iterable[TrialAdvanced]) -> str:
    return next((_short(trial.metric[0]) for trial in trials if trial.metric is not None), "metric")


def _short(key: str) -> str:
    return key.removeprefix("eval/").rsplit("/", 1)[-1]
