"""Whole runs by the command line, and what must not depend on what happened to them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors.numpy import load_file

from raypp.store import LAYOUT, MANIFEST

DEADLINE_SECONDS = 600  # of each wait
TEST_SECONDS = 3 * DEADLINE_SECONDS  # pytest's own limit, for tests that wait more than once
# Within which nothing of a command may be left, once it has ended: what is left longer than that, nothing ends. A
# command that ends by itself, interrupted or not, ends its Ray first, and what it started needs some seconds at most.
# Nothing ends the Ray of a command that was killed: its processes notice it one after another, the last after 90 s.
LEFT_SECONDS = 30
LEFT_OF_KILLED_SECONDS = 120


def wait_for(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer of one model for another one."""
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).write_bytes((source / name).read_bytes())


class Watch(threading.Thread):
    """Looks at something again and again, as long as its `with` lasts."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()

    def run(self) -> None:
        while not self.ended.wait(0.02):
            self.look()

    def look(self) -> None:
        raise NotImplementedError


def steps_of(storage: Path) -> int:
    """The last step that the only run of a storage has on record; 0 before the first."""
    return max(map(last_step, storage.glob("*/*/metrics.jsonl")), default=0)


def last_step(file: Path) -> int:
    """The last step of a run's metrics.jsonl, which may be written to meanwhile."""
    lines = file.read_text().splitlines()
    return max((int(found[1]) for line in lines if (found := re.match(r'\{"step": (\d+),', line))), default=0)


def only_run(storage: Path) -> Path:
    """The folder of the only run of a storage, or of the only trial of its sweep."""
    (run,) = (file.parent for file in storage.glob("*/*/experiment.yaml") if not file.parent.name.startswith("sweep-"))
    return run


def checkpoints(storage: Path) -> list[Path]:
    """The complete ones, ascending."""
    return sorted(file.parent for file in storage.glob("*/*/checkpoints/step-*/manifest.json"))


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["train/loss"] for record in records if "train/loss" in record]


def outcome(run: Path) -> tuple[dict[str, float], dict[str, np.ndarray], list[float]]:
    """Everything of a run that must not depend on what happened to it."""
    result = json.loads((run / "result.json").read_text())
    return result["metrics"], load_file(run / "model" / "model.safetensors"), losses(run)


def assert_same(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    assert first[0] == second[0], "metrics"
    assert first[2] == second[2], "losses, step by step"
    assert first[1].keys() == second[1].keys()
    for name, value in first[1].items():
        assert np.array_equal(value, second[1][name]), name


def assert_tidy(*folders: Path) -> None:
    """No lock, no temporary file, no half-written checkpoint or artifact and nothing of Ray Train's is left.

    Args:
        folders: storages and stores. A store in a storage is looked at with it.
    """
    left: list[Path] = []
    for folder in folders:
        assert folder.is_dir(), folder
        left += [path for path in folder.rglob("*") if path.name in (".lock", "ray") or path.suffix == ".tmp"]
        left += [path for path in folder.rglob("checkpoints/*") if not (path / MANIFEST).is_file()]
        left += [path for path in folder.rglob(f"{LAYOUT}/*/*/*") if not is_whole(path)]
    assert not left, left


def is_whole(build: Path) -> bool:
    """Whether a build in the store is finished, and has all files of its artifact and no other."""
    if not (build / MANIFEST).is_file():
        return False
    files = json.loads((build / MANIFEST).read_text())["files"]
    sizes = {file["name"]: file["num_bytes"] for file in files}
    return sizes == {path.name: path.stat().st_size for path in build.iterdir() if path.name != MANIFEST}


def recorded_until(run: Path, step: int) -> list[str]:
    """The lines of a run's metrics.jsonl up to a step, times and speeds included: a run that resumes after that step
    keeps them as they are, one that begins again measures anew."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    assert any('"perf/step_seconds"' in line for line in kept)
    return kept


def resumed_after(output: str) -> int:
    """The step that a run last said it resumes after; 0 if it started from the beginning."""
    return int(([0, *re.findall(r"resumes after step\s+(\d+)", output)])[-1])


def open_files(process: Path) -> Iterator[str]:
    """The paths of a process's open files.

    Args:
        process: its folder in /proc.
    """
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, by a process that lives
            yield os.readlink(descriptor)


@dataclass
class Command:
    """A `raypp` command that runs, with all the processes it starts."""

    process: subprocess.Popen[str]
    home: Path
    """What its Ray keeps: by it, its processes are known."""

    def processes(self, title: str = "") -> dict[int, str]:
        """Command lines of those that it started, itself among them, that hold `title`, by process id."""
        home = str(self.home)
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if title not in line:
                    continue
                is_mine = home.encode() in (folder / "environ").read_bytes()
                if is_mine or any(name.startswith(home) for name in open_files(folder)):
                    found[int(folder.name)] = line
            except OSError:  # it has ended
                continue
        return found

    def one_of(self, title: str) -> int:
        """The process with this title, as soon as there is one."""
        found: list[int] = []

        def is_there() -> bool:
            found.extend(self.processes(title))
            return bool(found)

        wait_for(is_there, f"a process {title}")
        return found[0]  # of the look that saw it: by the next one it may have ended

    def end(self) -> tuple[int, str]:
        """Exit status, and what was printed; soon after it has ended, no process is left."""
        printed: list[str] = []

        def read() -> None:
            assert self.process.stdout is not None
            printed.append(self.process.stdout.read())  # what outlives the command may print as well

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        status = self.process.wait(timeout=DEADLINE_SECONDS)
        ended = time.monotonic()
        seconds = LEFT_OF_KILLED_SECONDS if status < 0 else LEFT_SECONDS
        while left := self.processes():
            assert time.monotonic() < ended + seconds, f"left {seconds} s after the end, which was {status}: {left}"
            time.sleep(0.02)
        print(f"nothing is left {time.monotonic() - ended:.1f} s after the end of a command, which was {status}")
        reader.join()
        return status, printed[0]


@contextmanager
def started(*words: object, environment: Mapping[str, str] | None = None) -> Iterator[Command]:
    """A `raypp` command, with one thread for torch and a Ray of its own, if it starts one."""
    home = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: Ray's sockets lie in it
    process = subprocess.Popen(
        [sys.executable, "-m", "raypp.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(home), **(environment or {})},
        # A shell's background jobs, which these tests may be, hand down an ignored Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    command = Command(process, home)
    try:
        yield command
    finally:
        for pid in command.processes():
            os.kill(pid, signal.SIGKILL)
        process.wait(timeout=DEADLINE_SECONDS)
        shutil.rmtree(home, ignore_errors=True)


def run_command(*words: object, environment: Mapping[str, str] | None = None) -> str:
    """Runs a command to its end; returns what it printed."""
    with started(*words, environment=environment) as command:
        status, output = command.end()
    assert status == 0, output
    return output
