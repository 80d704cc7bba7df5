"""The lock of a run: one process works on it at a time.

The system releases the lock of a local run when the process ends in any way. The lock of a run in a bucket, or on a
filesystem that is mounted without file locks, is a `Lease`, which expires.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from raypp.errors import ConfigError, Interrupted, StorageFailed
from raypp.events import never
from raypp.leases import Lease, is_lease, this_process
from raypp.storage import Location, tidying
from raypp.writable import not_written

logger = logging.getLogger("raypp")

LOCK = ".lock"
POLL_SECONDS = 0.5


@dataclass
class _Waiting:
    """What happens while another process holds a run's lock."""

    run: Location
    wait: bool
    is_interrupted: Callable[[], bool]
    told: bool = False

    def goes_on(self, holder: str) -> None:
        """Returns if the process waits on; tells the user once.

        Raises:
            ConfigError: it does not wait.
            Interrupted: it must stop.
        """
        other = f"another process ({holder or 'just ended'}) works on {self.run}"
        if not self.wait:
            raise ConfigError(f"run: {other}; wait for it, or stop it")
        if self.is_interrupted():
            raise Interrupted(0)
        if not self.told:
            logger.warning("%s; waiting for it", other)
            self.told = True


@contextlib.contextmanager
def locked(
    run: Location, *, wait: bool = False, command: str | None = None, is_interrupted: Callable[[], bool] = never
) -> Iterator[None]:
    """Locks the run for this process.

    Args:
        wait: whether to wait for another process that holds the lock.
        command: names the command that this process belongs to, for `delete_lock_of`.
        is_interrupted: whether to stop waiting.

    Raises:
        ConfigError: another process holds the lock, and `wait` is False; or its folder cannot be written to.
        Interrupted: `is_interrupted` while another process holds the lock.
        StorageFailed: writing to its folder fails for another reason, perhaps only now.
    """
    waiting = _Waiting(run, wait, is_interrupted)
    file = _locked_file(run, waiting) if run.is_local else None
    with _leased(run, waiting, command) if file is None else _kept(run, file):
        yield


def _locked_file(run: Location, waiting: _Waiting) -> IO[str] | None:
    """The lock file of a local run, locked; None if its filesystem has no file locks."""
    path = Path(run.path, LOCK)
    try:
        while (file := _try_lock(run, path)) is None:
            waiting.goes_on(_holder(path))
            time.sleep(POLL_SECONDS)
    except _NoFileLocks:
        return None
    return file


@contextlib.contextmanager
def _kept(run: Location, file: IO[str]) -> Iterator[None]:
    """Keeps a locked file, and removes it afterwards."""
    path = Path(run.path, LOCK)
    with file:
        try:
            _write_holder(run, file)
            yield
        finally:
            with tidying(path):  # an error here must not hide another one
                path.unlink(missing_ok=True)
            # Leave no empty folders of a run that was refused.
            for folder in (path.parent, path.parent.parent):
                with contextlib.suppress(OSError):
                    folder.rmdir()


@contextlib.contextmanager
def _leased(run: Location, waiting: _Waiting, command: str | None) -> Iterator[None]:
    """Owns a run whose storage has no file locks."""
    lease = Lease(run / LOCK, command)
    try:
        while (holder := lease.acquire()) is not None:
            waiting.goes_on(holder)
    except OSError as error:
        raise not_written(run, "run", error) from error
    expires = False
    try:
        yield
    except StorageFailed:
        expires = True  # deleting its file would fail for as long again
        raise
    finally:
        lease.release(expires=expires)


def delete_lock_of(command: str, run: Location) -> None:
    """Removes a lock that a process of the command, which has ended by now, could not remove itself."""
    lock = run / LOCK
    with contextlib.suppress(FileNotFoundError):
        if json.dumps(command) in lock.read_text():
            lock.delete()


def _holder(path: Path) -> str:
    """What a lock file says about its owner; empty if that has just removed it."""
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def _write_holder(run: Location, file: IO[str]) -> None:
    try:
        file.truncate(0)
        # Not through Python's buffer: on a full disk, closing the file would try to write its content again.
        os.write(file.fileno(), json.dumps(this_process()).encode())
    except OSError as error:
        raise not_written(run, "run", error) from error


class _NoFileLocks(Exception):
    """The filesystem is mounted without file locks, as Lustre and NFS may be."""


def _try_lock(run: Location, path: Path) -> IO[str] | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        is_folder = path.parent.is_dir() or not path.parent.exists()
        if isinstance(error, FileNotFoundError | FileExistsError) and is_folder:
            return None  # the previous holder is removing its empty folder
        raise not_written(run, "run", error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The previous holder may have removed the file between our opening and locking it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            if not is_lease(_holder(path)):
                return file
            file.close()
            raise _NoFileLocks  # for a node that has mounted this filesystem without file locks, and owns the run
    except BlockingIOError:
        pass
    except OSError as error:
        file.close()
        holder = _holder(path)
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP) or (holder and not is_lease(holder)):
            raise not_written(run, "run", error) from error  # perhaps an owner on another node has a file lock
        if not holder:  # the file was made here
            path.unlink(missing_ok=True)
        raise _NoFileLocks from error
    file.close()
    return None
