"""The table of a running sweep, which fits the terminal: the running trials, and the best trial of each stratum.

Waiting and finished trials are only counted, because a long list of them would leave no lines for the running ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import get_args

from rich import box
from rich.table import Table
from rich.text import Text

from raypp.display.durations import clock_time
from raypp.evaluation.direction import merit
from raypp.evaluation.metric_label import metric_label
from raypp.events import TrialAdvanced, TrialState

ACTIVE = ("running", "retrying")
FRAME_LINES = 7  # title, head, four rules, and the line that counts what is not shown
NAME_COLUMNS = (24, 80)  # minimum and maximum width of trial and stratum together
FIXED_COLUMNS = 44  # width of all other columns and the gaps


def progress_table(trials: Mapping[str, TrialAdvanced], width: int, lines: int) -> Table:
    """The table, at most `width` columns wide and, if possible, at most `lines` lines high.

    Args:
        trials: the latest event of each trial, by name.
    """
    active = sorted((trial for trial in trials.values() if trial.state in ACTIVE), key=lambda trial: -trial.fraction)
    best = best_of_strata(trials.values())
    room = max(2, lines - FRAME_LINES)
    shown = active[: max(room - len(best), room // 2)]
    kept = list(best.values())[: room - len(shown)]
    table = Table(
        title=counted(trials.values()),
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 0),
        pad_edge=False,
    )
    names = max(NAME_COLUMNS[0], min(NAME_COLUMNS[1], width - FIXED_COLUMNS))
    trial_columns = names * 4 // 7
    heads = ("trial", "stratum", "density", _metric_name(trials.values()), "state", "left")
    for name, columns in zip(heads, (trial_columns, names - trial_columns, 7, 8, 10, 7), strict=True):
        is_text = name in ("trial", "stratum", "state")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True, max_width=columns)
    for trial in shown:
        state = f"{trial.fraction:.0%}" if trial.state == "running" else trial.state
        left = "" if trial.seconds_left is None else clock_time(trial.seconds_left)
        table.add_row(*_names(trial, trial_columns, names), *_numbers(trial), state, left)
    table.add_section()
    finished = Counter(trial.stratum for trial in trials.values() if trial.state == "finished")
    for trial in kept:
        state = f"best of {finished[trial.stratum]}"
        table.add_row(*_names(trial, trial_columns, names), *_numbers(trial), state, style="green")
    if hidden := [
        *([f"{len(active) - len(shown)} more running"] if len(active) > len(shown) else []),
        *([f"the best of {len(best) - len(kept)} more strata"] if len(best) > len(kept) else []),
    ]:
        table.caption, table.caption_justify = f"and {', '.join(hidden)}", "left"
    return table


def best_of_strata(trials: Iterable[TrialAdvanced]) -> dict[str, TrialAdvanced]:
    """The finished trial with the best metric of each stratum; strata in the order of their first finished trial."""
    best: dict[str, TrialAdvanced] = {}
    for trial in trials:
        if trial.state == "finished" and trial.metric is not None:
            rival = best.get(trial.stratum)
            if rival is None or rival.metric is None or merit(*trial.metric) > merit(*rival.metric):
                best[trial.stratum] = trial
    return best


def counted(trials: Iterable[TrialAdvanced]) -> str:
    """'30 trials: 12 finished, 2 stopped, 2 running, 14 waiting'."""
    states = Counter(trial.state for trial in trials)
    order: tuple[TrialState, ...] = get_args(TrialState)
    parts = [f"{states[state]} {state}" for state in order if states[state]]
    return f"{states.total()} trials: {', '.join(parts)}"


def plain_line(trial: TrialAdvanced, is_best: bool) -> str:
    """The line of a log file for a trial whose state has changed."""
    parts = [f"{trial.trial}: {trial.state}"]
    if trial.fraction:
        parts.append(f"{trial.fraction:.0%}")
    if trial.density is not None:
        parts.append(f"density {trial.density:.3f}")
    if trial.metric is not None:
        parts.append(f"{_short(trial.metric[0])} {trial.metric[1]:.3f}")
    if is_best:
        parts.append(f"best so far of {trial.stratum}")
    return "  ".join(parts)


def _names(trial: TrialAdvanced, trial_columns: int, columns: int) -> tuple[Text, Text]:
    """Trial and stratum, shortened to fit. A run's name loses its middle, because it starts with the method and ends
    with the hash; a stratum loses its beginning, because it ends with the number."""
    run, stratum, room = trial.trial, trial.stratum, columns - trial_columns
    if len(run) > trial_columns:
        run = f"{run[: trial_columns - 9]}~{run[-8:]}"
    if len(stratum) > room:
        stratum = f"~{stratum[1 - room :]}"
    return Text(run), Text(stratum)


def _numbers(trial: TrialAdvanced) -> tuple[str, str]:
    density = "" if trial.density is None else f"{trial.density:.3f}"
    return density, "" if trial.metric is None else f"{trial.metric[1]:.3f}"


def _metric_name(trials: Iterable[TrialAdvanced]) -> str:
    return next((_short(trial.metric[0]) for trial in trials if trial.metric is not None), "metric")


def _short(key: str) -> str:
    return metric_label(key).rsplit("/", 1)[-1]
