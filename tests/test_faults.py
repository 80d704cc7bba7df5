"""What a run in this process outlives: interrupts, broken files, another copy of the model, storage that fails, a clock
that is set back.

The same ground as cluster/test_faults.py, without a process to kill: real runs of a real encoder with its default
dropout, and the result is that of an undisturbed run, bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from whole_runs import (
    TEST_SECONDS,
    assert_same,
    assert_tidy,
    checkpoints,
    only_run,
    outcome,
    resumed_after,
    started,
    steps_of,
    wait_for,
)

from raypp import storage as storage_module
from raypp.cli import main
from raypp.cluster.launch import train
from raypp.errors import StorageFailed, WorkersLost
from raypp.events import Message, PhaseAdvanced, PhaseStarted
from raypp.load_config import load_experiment
from raypp.locks import locked
from raypp.storage import Location
from raypp.store import verified_builds

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(TEST_SECONDS)]

STEPS = 12
STRIKES_AFTER = 5


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    values = {
        "name": "faulty",
        "task": "sentiment",
        "data": {"source": {"kind": "synthetic", "train_rows": 64, "dev_rows": 16}, "max_length": 32},
        "student": {"model": str(minilm_dir)},
        "pruning": {"method": "topk", "final_density": 0.3, "initial_warmup": 1, "final_warmup": 1},
        "train": {"max_steps": STEPS, "batch_size": 8, "log_every_steps": 1},
        "evaluation": {"every_steps": 6},
        "cluster": {"workers": 0, "checkpoint_every_steps": 2, "store": str(folder / "store")},
        "tracking": {"wandb": "off"},
    }
    path = folder / "faulty.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Runs as small as these are faster so, and sums come out the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What the user was told since the last call, progress and warnings, in one line."""

    def take() -> str:
        text = f"{capsys.readouterr().err} {caplog.text}"
        caplog.clear()
        return " ".join(text.split())

    return take


def run(experiment: Path, storage: Path, *overrides: str) -> int:
    return main(["train", str(experiment), f"cluster.storage={storage}", *overrides])


@pytest.fixture(scope="module")
def expected(experiment: Path, ray_session: None) -> tuple[object, ...]:
    """The outcome of the undisturbed run."""
    storage = experiment.parent / "undisturbed"
    assert run(experiment, storage) == 0
    return outcome(only_run(storage))


@contextlib.contextmanager
def striking(storage: Path, strike: Callable[[], object], after: int = STRIKES_AFTER) -> Iterator[None]:
    """Something happens once a run has done so many steps."""

    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if steps_of(storage) >= after:
                strike()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:  # a run that failed must not be struck in another test
        over.set()
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_run_saves_the_step_it_is_at(
    number: signal.Signals,
    experiment: Path,
    expected: tuple[object, ...],
    tmp_path: Path,
    said: Callable[[], str],
) -> None:
    # A shell starts what runs in its background with SIGINT ignored, and so may have started the tests.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with striking(tmp_path, lambda: os.kill(os.getpid(), number)):
            assert run(experiment, tmp_path) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    shown = said()
    done = steps_of(tmp_path)
    assert STRIKES_AFTER <= done < STEPS
    assert "stopping: the current step is saved first" in shown
    assert f"raypp: interrupted after step {done}, which is saved" in shown
    assert "the same command resumes from the last checkpoint: raypp train" in shown
    assert_tidy(tmp_path, experiment.parent / "store")
    assert run(experiment, tmp_path) == 0
    assert resumed_after(said()) == done, "no step is done twice"
    assert_same(outcome(only_run(tmp_path)), expected)
    assert_tidy(tmp_path, experiment.parent / "store")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "trains"), [(0, True), (1, True), (1, False)], ids=["no workers", "a worker", "a worker that starts"]
)
def test_a_second_interrupt_does_not_wait(workers: int, trains: bool, experiment: Path, tmp_path: Path) -> None:
    words = (
        "train",
        experiment,
        f"cluster.storage={tmp_path}",
        f"cluster.workers={workers}",
        "cluster.cpus_per_worker=1",
    )
    with started(*words) as command:
        if trains:
            wait_for(lambda: steps_of(tmp_path) >= STRIKES_AFTER, "the middle of the run")
        else:
            command.one_of("TrainController")
        command.process.send_signal(signal.SIGTERM)
        assert command.process.stdout is not None
        assert any("stopping:" in line for line in iter(command.process.stdout.readline, ""))
        command.process.send_signal(signal.SIGTERM)
        status, output = command.end()
    assert status == 130, output
    assert "which is saved" not in output, "that is what the first one waits for"
    assert "raypp: interrupted" in output
    assert "from the last checkpoint: raypp train" in output
    assert run(experiment, tmp_path) == 0
    assert_tidy(tmp_path, experiment.parent / "store")


def test_an_interrupt_does_not_wait_for_the_check_of_the_input(
    experiment: Path, minilm_dir: Path, tmp_path: Path
) -> None:
    large = shutil.copytree(minilm_dir, tmp_path / "large")
    size = 1 << 40
    head = json.dumps({"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    (large / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    # No byte of its weights is on the disk; to hash them takes many minutes.
    os.truncate(large / "model.safetensors", 8 + len(head) + size)
    with started("train", experiment, f"student.model={large}", f"cluster.storage={tmp_path}") as command:
        reads = Path(f"/proc/{command.process.pid}/io")
        wait_for(lambda: int(reads.read_text().split()[1]) > 1 << 29, "reading the model")
        began = time.monotonic()
        command.process.send_signal(signal.SIGINT)
        status, output = command.end()
    assert status == 130, output
    assert "interrupted" in output
    assert time.monotonic() - began < 30, "a deadline, not a speed"


def test_a_checkpoint_that_was_cut_short_and_features_with_a_flipped_bit_are_said_and_replaced(
    experiment: Path,
    expected: tuple[object, ...],
    tmp_path: Path,
    said: Callable[[], str],
) -> None:
    with striking(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert run(experiment, tmp_path) == 130
    newest, before = checkpoints(tmp_path)[-1], checkpoints(tmp_path)[-2]
    os.truncate(newest / "model.safetensors", 1000)
    part = next((experiment.parent / "store").glob("v1/features/*/*/part-*.parquet"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(bytes(content))
    verified_builds.clear()  # like a new process, which has not verified it yet
    said()
    assert run(experiment, tmp_path) == 0
    shown = said()
    assert f"{newest} is damaged and not used" in shown
    assert f"{part} has another checksum than when it was written; this copy of the features is not used" in shown
    assert resumed_after(shown) == int(before.name.removeprefix("step-"))
    assert not part.exists()
    assert_same(outcome(only_run(tmp_path)), expected)
    assert_tidy(tmp_path, experiment.parent / "store")


@pytest.fixture
def copy(minilm_dir: Path, tmp_path: Path) -> Path:
    """A copy of the pretrained model, which is the same run's."""
    return Path(shutil.copytree(minilm_dir, tmp_path / "copy"))


def change_weights(model: Path) -> None:
    """Changes a byte of a model's weights; a second call changes it back."""
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def test_a_run_does_not_resume_with_another_copy_of_its_model_and_loses_nothing(
    experiment: Path, expected: tuple[object, ...], copy: Path, tmp_path: Path
) -> None:
    given = load_experiment(experiment, [f"student.model={copy}", f"cluster.storage={tmp_path / 'runs'}"])
    messages: list[str] = []

    def leave(event: Any) -> None:
        if isinstance(event, PhaseAdvanced) and event.phase == "student" and event.done >= STRIKES_AFTER:
            # An interrupt that is not deferred does not wait for a checkpoint that is being written.
            wait_for(lambda: checkpoints(tmp_path / "runs"), "a checkpoint")
            raise KeyboardInterrupt

    def change(event: Any) -> None:  # after the command has found the model, and before the run loads it
        if isinstance(event, PhaseStarted) and event.phase == "student":
            change_weights(copy)

    def listen(event: Any) -> None:
        if isinstance(event, Message):
            messages.append(event.text)

    with pytest.raises(KeyboardInterrupt):
        train(given, on_event=leave)
    saved = checkpoints(tmp_path / "runs")
    assert saved
    with pytest.raises(WorkersLost, match=rf"^student\.model: the copy of {copy} on node .* give every node the same"):
        train(given, on_event=change)
    assert checkpoints(tmp_path / "runs") == saved
    change_weights(copy)
    train(given, on_event=listen)
    assert resumed_after(" ".join(messages)) > 0
    assert_same(outcome(only_run(tmp_path / "runs")), expected)


@pytest.mark.slow
def test_a_worker_with_another_copy_of_the_model_is_replaced(
    experiment: Path, expected: tuple[object, ...], copy: Path, tmp_path: Path
) -> None:
    words = [f"student.model={copy}", f"cluster.storage={tmp_path / 'runs'}"]
    messages: list[str] = []

    def change(event: Any) -> None:
        match event:
            case PhaseStarted("student"):
                change_weights(copy)
            case Message(text):
                messages.append(text)
                if "differs from the command's" in text:
                    change_weights(copy)

    train(load_experiment(experiment, [*words, "cluster.workers=1", "cluster.cpus_per_worker=1"]), on_event=change)
    (lost,) = [text for text in messages if "a worker was lost" in text]
    assert f"student.model: the copy of {copy} on node" in lost
    assert_same(outcome(only_run(tmp_path / "runs")), expected)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for the checkpoints of a run, that can be filled, and taken away."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode != 0:
        pytest.skip(f"a disk of our own needs the right to mount one: {mount.stderr.strip()}")
    yield folder
    while folder.is_mount():
        take_off(folder)


def fill(disk: Path) -> bool:
    """Takes what room there is, piece by piece, since a run writes meanwhile; False if there was none."""
    with (disk / "filling").open("ab") as file:
        before = size = file.tell()
        for piece in (1 << 24, 1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), size, piece)
                    size += piece
    return size > before


def fill_for_good(disk: Path) -> None:
    """Takes what a deleted checkpoint leaves, too."""
    last = time.monotonic()
    while time.monotonic() - last < 2.0:
        if fill(disk):
            last = time.monotonic()
        time.sleep(0.002)


def write_protect(disk: Path) -> None:
    """Lays the same files over the disk, read-only: the disk itself cannot become so while one of them is written."""
    protected = disk.parent / "protected"
    protected.mkdir()
    for words in (["--bind", disk, protected], ["-o", "remount,bind,ro", protected], ["--bind", protected, disk]):
        subprocess.run(["mount", *words], check=True)
    subprocess.run(["umount", "-l", protected], check=True)


def take_off(disk: Path) -> None:
    subprocess.run(["umount", "-l", disk], check=True)


# What breaks the disk, what mends it, what is said of it, and whether it is tried again.
FAILURES: dict[str, tuple[Callable[[Path], object], Callable[[Path], object], str, bool]] = {
    "a full disk": (fill_for_good, lambda disk: (disk / "filling").unlink(), "No space left on device", True),
    "a disk that went read-only": (write_protect, take_off, "Read-only file system", False),
}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", FAILURES)
def test_storage_that_fails_for_good_ends_a_run_that_loses_nothing(
    name: str,
    workers: int,
    experiment: Path,
    expected: tuple[object, ...],
    disk: Path,
    said: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breaks, mends, says, tried_again = FAILURES[name]
    monkeypatch.setattr(storage_module, "PAUSES_SECONDS", (0.05, 0.1))  # those of a worker are as they are
    words = (f"cluster.workers={workers}", "cluster.cpus_per_worker=1")  # one thread, as this process has

    def strike() -> None:  # checkpoints are written in the background
        wait_for(lambda: bool(checkpoints(disk / "runs")), "a checkpoint")
        breaks(disk)

    with striking(disk / "runs", strike):
        assert run(experiment, disk / "runs", *words) == 1
    shown = said()
    assert "the run continues" not in shown, "it has ended at once"
    assert ("trying again" in shown) == tried_again
    assert says in shown
    assert "the same command resumes from the last checkpoint: raypp train" in shown
    assert "Traceback" not in shown
    mends(disk)
    assert run(experiment, disk / "runs") == 0
    assert resumed_after(said()) > 0
    assert_same(outcome(only_run(disk / "runs")), expected)
    assert_tidy(disk / "runs", experiment.parent / "store")


def test_storage_that_cannot_be_written_is_refused_before_anything_starts(
    experiment: Path, disk: Path, said: Callable[[], str]
) -> None:
    write_protect(disk)
    assert run(experiment, disk / "runs") == 2
    shown = said()
    assert f"raypp: cluster.storage: {disk}/runs cannot be written to: " in shown
    assert "Read-only file system" in shown
    assert "trying again" not in shown


def test_a_disk_that_is_full_already_is_named(
    experiment: Path, disk: Path, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "PAUSES_SECONDS", (0.05, 0.1))
    (disk / "runs").mkdir()
    fill(disk)
    assert run(experiment, disk / "runs") == 1
    shown = said()
    assert f"raypp: {disk}/runs cannot be written to: No space left on device" in shown
    assert "from the last checkpoint: raypp train" in shown
    with pytest.raises(StorageFailed, match=f"{disk}/runs/a/b cannot be written to: No space left on device"):  # noqa: SIM117
        with locked(Location.of(disk / "runs" / "a" / "b")):
            pytest.fail("locked, though the lock cannot name its holder")
    (disk / "filling").unlink()
    assert not list((disk / "runs").rglob("*")), "neither a lock nor a folder is left"


@pytest.mark.slow
def test_what_is_there_is_read_without_the_right_to_write(
    experiment: Path, disk: Path, tmp_path: Path, said: Callable[[], str]
) -> None:
    words = [f"cluster.store={disk / 'store'}", "teacher={train: {max_steps: 2, batch_size: 8}}"]
    assert run(experiment, disk / "runs", *words) == 0
    (only_run(disk / "runs") / "ray").mkdir()  # a killed command left it, and it cannot be removed
    write_protect(disk)
    said()
    assert run(experiment, tmp_path / "runs", *words) == 0
    shown = said()
    for phase in ("features train: from the store", "teacher: finished before", "teacher logits: from the store"):
        assert phase in shown
    first, second = outcome(only_run(disk / "runs")), outcome(only_run(tmp_path / "runs"))
    assert_same(first, second)
    assert run(experiment, disk / "runs", *words) == 0
    shown = said()
    assert "student: finished before" in shown
    assert "cannot be" not in shown, "a reader is not told of files that it may not remove"
    assert main(["show", str(experiment), f"cluster.storage={disk / 'runs'}", *words]) == 0

    assert run(experiment, tmp_path / "runs", *words, "teacher.train.max_steps=3") == 2
    shown = said()
    assert f"raypp: cluster.store: {disk}/store cannot be written to: " in shown
    assert run(experiment, tmp_path / "runs", *words, "data.max_length=24") == 2
    assert f"raypp: cluster.store: {disk}/store/v1/features/" in said()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_storage_that_fails_for_a_while_is_waited_for(
    workers: int, experiment: Path, expected: tuple[object, ...], disk: Path, said: Callable[[], str]
) -> None:
    def fail() -> None:
        fill(disk)
        time.sleep(2)
        (disk / "filling").unlink()

    with striking(disk / "runs", fail):
        assert run(experiment, disk / "runs", f"cluster.workers={workers}", "cluster.cpus_per_worker=1") == 0
    shown = said()
    assert "No space left on device" in shown
    assert "trying again for" in shown
    assert_same(outcome(only_run(disk / "runs")), expected)
    assert_tidy(disk / "runs", experiment.parent / "store")


def test_files_that_ray_train_left_of_a_killed_command_are_removed(
    experiment: Path, tmp_path: Path, said: Callable[[], str]
) -> None:
    """The command that was killed had workers; the one that continues has none, or finds that the run is finished."""
    folder = tmp_path / "faulty" / "named"
    left = folder / "ray" / "0123" / "left.json"
    for finds in (f"student: {STEPS}/{STEPS}", "student: finished before"):
        left.parent.mkdir(parents=True)
        left.write_text("{}")
        assert run(experiment, tmp_path, "run=named") == 0
        assert finds in said()
        assert_tidy(tmp_path)
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    with locked(Location.of(folder)):
        assert run(experiment, tmp_path, "run=named") == 0
    assert left.is_file(), "another process holds the run, and its workers may still write there"


def wait_for_beginning(storage: Path) -> None:
    wait_for(lambda: bool(list(storage.glob("*/*/experiment.yaml"))), "the run to begin")


def assert_clock_was_set_back(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["perf"]["perf/seconds_to_first_step"] == 0, "it was set back before the first step"
    assert result["seconds"] > 0
    assert min(result["perf"].values()) >= 0


def test_a_clock_that_is_set_back_changes_nothing(
    experiment: Path, expected: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = time.time

    def watch() -> None:
        wait_for_beginning(tmp_path)
        monkeypatch.setattr(time, "time", lambda: shown() - 3600)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    assert run(experiment, tmp_path) == 0
    thread.join()
    assert_clock_was_set_back(only_run(tmp_path))
    assert_same(outcome(only_run(tmp_path)), expected)


# Python imports a module of this name when it starts: here in the command, in its workers and in what else of Ray is
# written in Python.
CLOCK = """
import pathlib, time
shown, set_back = time.time, pathlib.Path({path!r})
time.time = lambda: shown() - 3600 * set_back.exists()
"""


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_nothing_for_a_worker(
    experiment: Path, expected: tuple[object, ...], tmp_path: Path
) -> None:
    modules, set_back, storage = tmp_path / "modules", tmp_path / "set back", tmp_path / "runs"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(CLOCK.format(path=str(set_back)))
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(modules), os.environ.get("PYTHONPATH")]))}
    words = ("train", experiment, f"cluster.storage={storage}", "cluster.workers=1", "cluster.cpus_per_worker=1")
    with started(*words, environment=environment) as command:
        wait_for_beginning(storage)
        set_back.touch()
        status, output = command.end()
    assert status == 0, output
    assert "was lost" not in output
    assert_clock_was_set_back(only_run(storage))
    assert_same(outcome(only_run(storage)), expected)
    assert_tidy(storage, experiment.parent / "store")
