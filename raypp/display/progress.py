"""The live progress display of a command, which receives events.

On a terminal each running phase is one line that is updated, and the trials of a sweep are a table below; the lines of
finished phases stay above. Elsewhere (in a log file or `ray job`) the display writes occasional plain lines without
control characters.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from raypp.display.durations import clock_time, duration
from raypp.display.trial_table import best_of_strata, plain_line, progress_table
from raypp.evaluation.metric_label import metric_label
from raypp.events import Event, Message, PhaseAdvanced, PhaseFinished, PhaseStarted, TrialAdvanced

BAR_COLUMNS = (8, 24)
FORMATS = dict(epoch="epoch {:.1f}", loss="loss {:.3f}", density="density {:.3f}", rows_per_second="{:,.0f} rows/s")
# On a narrow terminal, the last of these are left out first.
PRIORITY = ("end", "progress", "left", "loss", "density", "metric", "epoch", "rows_per_second")
PLAIN_SECONDS = 30.0  # a phase writes a plain line after a tenth of its work, or after this time


@dataclass(frozen=True)
class _Phase:
    """The state of a running phase. Times are those of the display's clock, in seconds."""

    latest: PhaseAdvanced
    first: tuple[float, int] | None = None
    """Time of the first advance, and the amount done by then (above 0 in a resumed run)."""
    last_time: float = 0.0
    """Time of the latest advance."""
    printed: tuple[float, int] = (0.0, 0)
    """Time of the last plain line, and the amount done by then."""

    def advanced(self, event: PhaseAdvanced, now: float) -> _Phase:
        news = {name: value for name, value in vars(event).items() if value is not None}
        return replace(self, latest=replace(self.latest, **news), first=self.first or (now, event.done), last_time=now)

    @property
    def fraction(self) -> float:
        return min(1.0, self.latest.done / self.latest.total) if self.latest.total else 0.0

    def is_due(self, now: float) -> bool:
        """Whether to write a plain line: the phase has advanced by a tenth, or PLAIN_SECONDS have passed."""
        time_printed, done_printed = self.printed
        tenth = self.latest.total is not None and self.latest.done - done_printed >= self.latest.total / 10
        return tenth or now - time_printed >= PLAIN_SECONDS

    def seconds_left(self, now: float) -> float | None:
        """The expected time left, by the pace since the first advance; None before the second advance."""
        if self.first is None or self.latest.total is None or self.latest.done <= self.first[1]:
            return None
        pace = (self.last_time - self.first[0]) / (self.latest.done - self.first[1])
        return max(0.0, self.last_time + pace * (self.latest.total - self.latest.done) - now)

    def parts(self, now: float | None = None) -> dict[str, str]:
        """The parts of the phase's line by name, in the order shown; the time left only if `now` is given."""
        latest, parts = self.latest, {}
        if latest.done or latest.total:
            parts["progress"] = f"{latest.done}/{latest.total}" if latest.total else str(latest.done)
        for name, form in FORMATS.items():
            if (value := getattr(latest, name)) is not None:
                parts[name] = form.format(value)
        if latest.metric is not None:
            parts["metric"] = f"{metric_label(latest.metric[0])} {latest.metric[1]:.3f}"
        left = None if now is None else self.seconds_left(now)
        if left is not None:
            parts["left"] = f"{clock_time(left)} left"
        return parts


class Display:
    """Shows the phases of a command on `console` (standard error by default), as a context manager."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(stderr=True)
        self._clock = clock
        self._lock = threading.Lock()
        # Replaced and never mutated, because the live display's thread reads it without our lock.
        self._running: dict[str, _Phase] = {}
        self._trials: dict[str, TrialAdvanced] = {}
        unicode = self.console.encoding.lower().startswith("utf")
        self._spinner, self._good, self._bad, self._bar = (
            ("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "✓", "✗", "━") if unicode else ("|/-\\", "*", "x", "#")
        )
        self._live: Live | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            for phase in self._running.values():
                self._end(phase, "stopped", self._bad, "red")
            self._running = {}
        if self._live is not None:
            self._live.stop()

    def handle(self, event: Event) -> None:
        """Shows an event. Any thread may call this."""
        with self._lock:
            match event:
                case Message():
                    self._say(event.text, "yellow")
                case PhaseStarted():
                    self._start(PhaseAdvanced(event.phase, 0, event.total))
                    if self._live is None:
                        self._say(f"{event.phase}: started")
                case PhaseAdvanced():
                    self._advance(event)
                case TrialAdvanced():
                    self._advance_trial(event)
                case PhaseFinished():
                    phase = self._running.get(event.phase, _Phase(PhaseAdvanced(event.phase, 0)))
                    self._running = {name: other for name, other in self._running.items() if name != event.phase}
                    seconds = None if event.seconds is None else f"done in {duration(event.seconds)}"
                    self._end(phase, event.note or seconds or "done", self._good, "green")

    def _start(self, first: PhaseAdvanced) -> None:
        self._running = {**self._running, first.phase: _Phase(first, printed=(self._clock(), first.done))}

    def _advance(self, event: PhaseAdvanced) -> None:
        if event.phase not in self._running:
            self._start(event)
        now = self._clock()
        phase = self._running[event.phase].advanced(event, now)
        if self._live is None and phase.is_due(now):
            phase = replace(phase, printed=(now, event.done))
            self._say("  ".join([f"{event.phase}:", *phase.parts(now).values()]))
        self._running = {**self._running, event.phase: phase}

    def _advance_trial(self, event: TrialAdvanced) -> None:
        before = self._trials.get(event.trial)
        self._trials = {**self._trials, event.trial: event}
        if self._live is None and event.state not in ("waiting", before.state if before else None):
            is_best = best_of_strata(self._trials.values()).get(event.stratum) is event
            self._say(plain_line(event, is_best))

    def _end(self, phase: _Phase, how: str, mark: str, style: str) -> None:
        parts = {**phase.parts(), "end": how}
        if self._live is None:
            self._say("  ".join([f"{phase.latest.phase}:", *parts.values()]))
        else:
            self.console.print(_line(Text(mark, style), phase.latest.phase, parts, self.console.width))

    def _say(self, text: str, style: str = "") -> None:
        encoding = self.console.encoding
        shown = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
        # soft_wrap: a long line stays one line, so that a command can be copied.
        self.console.print(Text(shown.encode(encoding, "replace").decode(encoding), style), soft_wrap=True)

    def _render(self) -> Group:
        now, phases = self._clock(), self._running
        width = self.console.width
        names = min(max(map(len, phases), default=0), width // 3)
        mark = Text(self._spinner[int(now * 8) % len(self._spinner)], "cyan")
        lines = [
            _line(mark, name[:names].ljust(names), phase.parts(now), width, self._bar, phase.fraction)
            for name, phase in phases.items()
        ]
        # One line less than the terminal has, because the cursor needs the last one.
        trials = [progress_table(self._trials, width, self.console.height - len(lines) - 1)] if self._trials else []
        return Group(*lines, *trials)


def _line(mark: Text, name: str, parts: dict[str, str], width: int, bar: str = "", fraction: float = 0.0) -> Text:
    """One line of at most `width` columns: as many parts as fit, by priority, then a bar."""
    room, chosen = width - len(name) - 2, set()
    for what in PRIORITY:
        if what in parts and len(parts[what]) < room:
            chosen.add(what)
            room -= len(parts[what]) + 1
    texts = [text for what, text in parts.items() if what in chosen]
    gap = "  " if len(texts) <= room else " "
    room -= len(texts) + 2
    line = Text.assemble(mark, " ", (name, "bold"), no_wrap=True, overflow="crop")
    if bar and room >= BAR_COLUMNS[0]:
        columns = min(room, BAR_COLUMNS[1])
        done = round(columns * fraction)
        line.append("  ").append(bar * done, "green").append(bar * (columns - done), "bright_black")
    for text in texts:
        line.append(gap + text)
    return line
