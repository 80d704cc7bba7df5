"""A run in storage without file locks: owned by one command at a time, and by the next one if its owner is killed.

The folder is a local one behind a filesystem that has no locks; test_s3.py has commands with a bucket. The seconds are
those of raypp, shortened.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler
from whole_runs import wait_for

from raypp import leases, storage
from raypp.errors import ConfigError, Interrupted, StorageFailed
from raypp.locks import delete_lock_of, locked
from raypp.storage import Location

OWNER = """
import sys, time
import pyarrow.fs as pafs
from raypp import leases
from raypp.locks import locked
from raypp.storage import Location

leases.BEAT_SECONDS, leases.DEAD_SECONDS = 0.2, 2.0
folder = pafs.SubTreeFileSystem(sys.argv[1], pafs.LocalFileSystem())
with locked(Location(folder, "bucket/run")):
    print("owns it", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(leases, "DEAD_SECONDS", 2.0)


@contextmanager
def owner(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that owns the run `bucket/run` in a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "owns it\n"
        yield process
    finally:
        process.kill()
        process.wait(60)


def test_a_run_has_one_owner_at_a_time(bucket: Location) -> None:
    run = bucket / "run"
    with locked(run):
        with pytest.raises(ConfigError, match=r'another process \(\{"pid".*\}\) works on .*bucket/run'), locked(run):
            pass
        with locked(run.parent / "another"):
            pass
        assert (run / ".lock").is_file()
    assert not (run / ".lock").is_file()
    with locked(run):
        pass


def test_who_waits_gets_the_run_when_it_is_given_up(bucket: Location) -> None:
    held: list[bool] = []

    def wait() -> None:
        with locked(bucket / "run", wait=True):
            held.append(True)

    with locked(bucket / "run"):
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        time.sleep(1.5 * leases.DEAD_SECONDS)
        assert not held
    waiting.join(timeout=60)
    assert held == [True]


def test_of_many_that_begin_at_once_one_gets_the_run(bucket: Location) -> None:
    begin, over = threading.Barrier(8), threading.Barrier(8)
    got: list[str] = []

    def attempt() -> None:
        begin.wait()
        try:
            with locked(bucket / "run"):
                got.append("owner")
                over.wait()
        except ConfigError:
            got.append("refused")
            over.wait()

    threads = [threading.Thread(target=attempt, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(got) == ["owner"] + ["refused"] * 7


def test_who_waits_can_be_interrupted_and_says_for_whom_it_waits(
    bucket: Location, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for run in (bucket / "run", Location.of(tmp_path / "local" / "run")):
        interrupted = partial(next, iter([False, True]))
        with (
            caplog.at_level(logging.WARNING, logger="raypp"),
            locked(run),
            pytest.raises(Interrupted),
            locked(run, wait=True, is_interrupted=interrupted),
        ):
            pass
        assert f'another process ({{"pid": {os.getpid()}, ' in caplog.text
        assert f"works on {run}; waiting for it" in caplog.text


def test_the_lock_of_a_process_of_one_command_is_deleted_by_that_command_alone(bucket: Location) -> None:
    run = bucket / "run"
    with pytest.raises(StorageFailed), locked(run, command="one"):
        raise StorageFailed("of the test")  # which leaves the file
    delete_lock_of("another", run)
    assert (run / ".lock").is_file()
    delete_lock_of("one", run)
    assert not (run / ".lock").is_file()
    delete_lock_of("one", run)


def test_a_filesystem_without_file_locks_has_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = Location.of(tmp_path / "runs" / "run")
    for _ in range(2):
        with locked(run):
            assert '"lease"' in (run / ".lock").read_text()
            with pytest.raises(ConfigError, match="another process"), locked(run):
                pass
        assert run.files() == []


def test_file_locks_and_leases_respect_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes may mount one filesystem differently, and a server of locks may fail for a while."""

    def refuse(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    run, flock = Location.of(tmp_path / "run"), fcntl.flock
    with locked(run):
        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(StorageFailed, match="No locks available"), locked(run):
            pass
        assert (run / ".lock").is_file()
    with locked(run):
        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(ConfigError, match="another process"), locked(run):
            pass
        assert '"lease"' in (run / ".lock").read_text()


def test_who_is_interrupted_while_it_takes_a_run_leaves_it(bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        assert (bucket / "run" / ".lock").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(leases.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt), locked(bucket / "run"):
        pass
    assert not (bucket / "run" / ".lock").is_file()


def test_the_run_of_an_owner_that_was_killed_is_free_after_some_seconds(
    bucket: Location, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with owner(tmp_path) as process:
        with pytest.raises(ConfigError, match="works on"), locked(bucket / "run"):
            pass
        process.kill()
        process.wait(60)
        with caplog.at_level(logging.WARNING, logger="raypp"), locked(bucket / "run"):
            pass
    assert "another command works on it, or was killed; watching for up to 2 s" in caplog.text


def test_an_owner_that_was_suspended_for_too_long_ends(bucket: Location, tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        os.kill(process.pid, signal.SIGSTOP)
        with locked(bucket / "run"):
            os.kill(process.pid, signal.SIGCONT)
            assert process.wait(60) == 1
            assert process.stderr is not None
            assert "belongs to another command, which has taken over" in process.stderr.read()
            wait_for(lambda: str(os.getpid()) in (bucket / "run" / ".lock").read_text(), "a beat", 60)
    assert not (bucket / "run" / ".lock").is_file()


def test_an_owner_whose_run_was_taken_and_given_up_again_ends_without_saving(bucket: Location, tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        os.kill(process.pid, signal.SIGSTOP)
        with locked(bucket / "run"):
            pass
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert "was deleted, perhaps by another command that had taken over" in process.stderr.read()
    assert (bucket / "run").files() == []


class Outage(FSSpecHandler):  # type: ignore[misc]
    """A folder of this machine that can be made to fail."""

    fails = False

    def open_input_stream(self, path: str) -> Any:
        if self.fails:
            raise OSError(errno.EIO, "the bucket does not answer")
        return super().open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        if self.fails:
            raise OSError(errno.EIO, "the bucket does not answer")
        return super().open_output_stream(path, metadata)


def test_a_storage_that_fails_for_a_while_takes_the_run_from_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAUSES_SECONDS", (0.1, 0.2, 0.4, 0.8, 1.6, 3.2))
    handler, held = Outage(LocalFileSystem()), []
    run = Location(pafs.PyFileSystem(handler), str(tmp_path / "run"))

    def wait() -> None:
        with locked(run, wait=True):
            held.append(True)

    with locked(run):
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        time.sleep(2 * leases.WATCH_SECONDS)
        handler.fails = True
        time.sleep(1.25 * leases.DEAD_SECONDS)  # the next attempt of the one that waits is after DEAD_SECONDS
        handler.fails = False
        time.sleep(2 * leases.DEAD_SECONDS)
        assert not held
    waiting.join(timeout=60)
    assert held == [True]


def test_after_storage_has_failed_the_lock_is_left_and_expires(bucket: Location) -> None:
    with pytest.raises(StorageFailed), locked(bucket / "run"):
        raise StorageFailed("of the test")
    assert (bucket / "run" / ".lock").is_file()
    with locked(bucket / "run"):
        pass
    assert not (bucket / "run" / ".lock").is_file()
