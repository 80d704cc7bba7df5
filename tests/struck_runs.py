"""Runs that are broken in their middle, and what they are to come to: the result of an undisturbed one, bit for bit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from whole_runs import (
    Command,
    assert_same,
    assert_tidy,
    checkpoints,
    only_run,
    outcome,
    resumed_after,
    run_command,
    started,
    steps_of,
    wait_for,
)

MIDDLE = 14  # steps that are done, or more, when a fault strikes


class Undisturbed:
    """The runs of an experiment that nothing happens to, each made once.

    By number of workers and overrides: other numbers of workers add up in another order.
    """

    def __init__(self, experiment: Path) -> None:
        self.experiment = experiment
        self._made: dict[tuple[int, tuple[str, ...]], Path] = {}

    def __call__(self, workers: int, *overrides: str) -> Path:
        """The run's folder."""
        workers = 0 if workers == 1 else workers  # the same numbers, without the start of a cluster
        if (workers, overrides) not in self._made:
            storage = self.experiment.parent / f"undisturbed-{len(self._made)}"
            how = (f"cluster.storage={storage}", f"cluster.workers={workers}")
            run_command("train", self.experiment, *overrides, *how)
            self._made[workers, overrides] = only_run(storage)
        return self._made[workers, overrides]


@dataclass(frozen=True)
class Fault:
    """What happens to a run, and what it is to come to."""

    strike: Callable[[Command, Path], None]
    """Breaks it: its command, its storage."""
    workers: int = 1
    overrides: tuple[str, ...] = ()
    """Changes to the experiment."""
    ends: int | None = None
    """Exit status; None: it recovers by itself. Negative: of a signal that nothing can catch."""
    says: tuple[str, ...] = ()
    saves: bool = False
    """Whether it leaves time to save: then no step is done twice."""
    before_resuming: Callable[[Path], None] = field(default=lambda storage: None)
    resuming_says: tuple[str, ...] = ()


def kill(title: str, count: int = 1) -> Callable[[Command, Path], None]:
    """kill -9 of so many processes with this title, at once."""

    def strike(command: Command, storage: Path) -> None:
        victims = command.processes(title)
        assert len(victims) == count, f"{title}: {victims}"
        for victim in victims:
            os.kill(victim, signal.SIGKILL)

    return strike


def to_driver(number: signal.Signals) -> Callable[[Command, Path], None]:
    return lambda command, storage: command.process.send_signal(number)


def is_in_the_middle(storage: Path, steps: int = MIDDLE) -> bool:
    """Whether a run has two checkpoints, and has gone on."""
    return steps_of(storage) >= steps and len(checkpoints(storage)) == 2


@dataclass
class Recovery:
    """What a fault has cost."""

    seconds: float
    twice: int

    def tell(self, record_property: Callable[[str, object], None]) -> None:
        record_property("recovery_seconds", round(self.seconds, 1))
        record_property("steps_done_twice", self.twice)
        print(f"recovered in {self.seconds:.1f} s; {self.twice} steps done twice")


class Pause(threading.Thread):
    """Watches a run for the longest time without a step that is new."""

    def __init__(self, storage: Path) -> None:
        super().__init__(daemon=True)
        self.storage, self.seconds, self.ended = storage, 0.0, threading.Event()
        self.start()

    def run(self) -> None:
        highest, since = steps_of(self.storage), time.monotonic()
        while not self.ended.wait(0.05):
            if (now := steps_of(self.storage)) > highest:
                highest, self.seconds, since = now, max(self.seconds, time.monotonic() - since), time.monotonic()

    def end(self) -> float:
        self.ended.set()
        self.join()
        return self.seconds


def wait_for_new_step(storage: Path, done: int) -> float:
    """Seconds until a run has done more than `done` steps."""
    before = time.monotonic()
    wait_for(lambda: steps_of(storage) > done, f"a step after {done}")
    return time.monotonic() - before


def assert_recovers(fault: Fault, experiment: Path, undisturbed: Path, storage: Path, middle: int = MIDDLE) -> Recovery:
    """A run that a fault strikes comes to the result of the undisturbed one, by itself or by the same command.

    Args:
        experiment: its store lies next to it.
    """
    words = ("train", experiment, *fault.overrides)
    words += (f"cluster.storage={storage}", f"cluster.workers={fault.workers}")
    with started(*words) as command:
        wait_for(lambda: is_in_the_middle(storage, middle), "the middle of the run")
        fault.strike(command, storage)
        done = steps_of(storage)
        pause = Pause(storage)
        status, output = command.end()
        seconds = pause.end()
    assert "Traceback" not in output
    shown = " ".join(output.split())  # a terminal's lines are broken where they are full
    assert all(text in shown for text in fault.says), output
    if fault.ends is None:
        assert status == 0, output
    else:
        assert status == fault.ends, output
        assert not list(storage.rglob("result.json"))
        done = steps_of(storage)
        fault.before_resuming(storage)
        with started(*words) as command:
            seconds = wait_for_new_step(storage, done)
            status, output = command.end()
        assert status == 0, output
        assert all(text in " ".join(output.split()) for text in fault.resuming_says), output
    recovery = Recovery(seconds, done - resumed_after(output))
    assert recovery.twice == 0 if fault.saves else recovery.twice < done, "it goes on from a checkpoint"
    assert_same(outcome(only_run(storage)), outcome(undisturbed))
    assert_tidy(storage, experiment.parent / "store")
    return recovery
