"""A run's folder: its lock, the settings it was started with, and whether it is finished."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml
from pydantic import ValidationError

from raypp.config import Experiment
from raypp.errors import ConfigError, Interrupted, StorageFailed
from raypp.events import never
from raypp.leases import Lease, is_lease, this_process
from raypp.storage import Location, is_definite, tidying
from raypp.yaml_text import dump_yaml, load_yaml

logger = logging.getLogger("raypp")

LOCK = ".lock"
LOCK_POLL_SECONDS = 0.5
JOB_FILES = "/runtime_resources/working_dir_files/"  # where Ray unpacks what `ray job submit --working-dir` sends


def may_be_finished(experiment: Experiment) -> bool:
    """Whether any run of the experiment's name is finished. Only its plan knows which run belongs to the experiment.

    Raises:
        ConfigError: `cluster.storage` cannot be opened.
        StorageFailed: the storage fails after all retries.
    """
    folder = Location.of(experiment.cluster.storage, "cluster.storage") / experiment.name
    try:
        runs = folder.children() if experiment.run is None else [folder / experiment.run]
        return any((run / "result.json").is_file() for run in runs)
    except OSError as error:
        if is_definite(error):  # `check_writable` reports it
            return False
        raise StorageFailed(f"{folder} cannot be read: {error}") from error


def finished_result(run: Location, digest: str) -> dict[str, Any] | None:
    """The result of a finished run, or None if there is none yet.

    Raises:
        ConfigError: the folder holds a run of other settings.
    """
    recorded = _recorded(run)
    if recorded is not None and recorded.get("identity") != digest:
        raise ConfigError(
            f"run: the folder {run} contains a run with other settings or other input, or of an older raypp; give "
            "another run name, or start over with --fresh"
        )
    if recorded is None or not (run / "result.json").is_file():
        return None
    return dict((run / "result.json").read_json())


@contextlib.contextmanager
def local_model(run: Location, named: str, field: str) -> Iterator[Path]:
    """The model of a run, in a local folder that is deleted afterwards.

    Args:
        named: the run as the user named it, for the error.
        field: the argument or setting that names it, for the error.

    Raises:
        ConfigError: the run has no model yet.
    """
    if not (run / "model" / "config.json").is_file():
        raise ConfigError(f"{field}: the run {named} has no model yet; `raypp train` finishes it")
    with tempfile.TemporaryDirectory(prefix="raypp-") as scratch:
        yield (run / "model").download(Path(scratch))


def model_checksums(run: Location) -> dict[str, str]:
    """sha256 (hex) of every file of a run's model, by name."""
    return {file.name: file.sha256() for file in (run / "model").files()}


def start_run(run: Location, experiment: Experiment, digest: str, versions: Mapping[str, str]) -> None:
    """Writes experiment.yaml; in a run that is resumed, warns if versions have changed instead."""
    recorded = _recorded(run)
    if recorded is None:
        write_experiment(run, experiment, digest, versions)
        return
    before = recorded.get("versions", {})
    changed = [f"{name} {before[name]} -> {now}" for name, now in versions.items() if before.get(name, now) != now]
    if changed:
        logger.warning(
            "this run was started with other versions: %s; its result may differ slightly", ", ".join(changed)
        )


def write_experiment(folder: Location, experiment: Experiment, digest: str, versions: Mapping[str, str]) -> None:
    """Writes experiment.yaml: the resolved settings, and as provenance the identity and the versions."""
    provenance = {"identity": digest, "versions": dict(versions)}
    content = {**experiment.model_dump(mode="json"), "provenance": provenance}
    header = "# The resolved experiment. `provenance` is a record and not a setting.\n"
    (folder / "experiment.yaml").write_text(header + dump_yaml(content))


def clear_run(run: Location) -> None:
    """Removes all files of an earlier run except the lock that is held. The result is removed first, so that the run no
    longer counts as finished if this is interrupted."""
    (run / "result.json").delete()
    for child in run.children():
        if child.name != LOCK:
            child.delete()


def _recorded(run: Location) -> dict[str, Any] | None:
    return recorded_settings(run)[1] if (run / "experiment.yaml").is_file() else None


def recorded_settings(run: Location) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of experiment.yaml: the resolved settings as plain values, and the provenance (identity, versions).

    Raises:
        ConfigError: raypp did not write the file.
    """
    file = run / "experiment.yaml"
    try:
        values = dict(load_yaml(file.read_text()))
        return values, dict(values.pop("provenance"))
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{file}: was not written by raypp, or was changed ({error}); move it away or start over with --fresh"
        ) from None


def run_experiment(run: Location, named: str, field: str) -> Experiment:
    """The experiment that a run was started with.

    Args:
        named: the run as the user named it, for the errors.
        field: the argument or setting that names it, for the errors.

    Raises:
        ConfigError: the folder is a sweep's, or raypp did not write its experiment.yaml.
    """
    settings, provenance = recorded_settings(run)
    try:
        experiment = Experiment.model_validate(settings, strict=False)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        version = provenance.get("versions", {}).get("raypp", "another version")
        raise ConfigError(
            f"{field}: {named} was started with raypp {version}, and this version does not know its settings {fields}; "
            "use that version, or give the folder of its model"
        ) from None
    if experiment.sweep is not None:
        raise ConfigError(f"{field}: {named} is a sweep; give one of its runs (best.json lists the best ones)")
    return experiment


def check_kept(location: Location, field: str) -> None:
    """Refuses a folder below the working directory of a job of Ray, where relative paths of a job begin.

    Raises:
        ConfigError: Ray would delete the folder after the job; names `field`.
    """
    if location.is_local and JOB_FILES in os.path.realpath(location.path):
        raise ConfigError(
            f"{field}: {location} is among the files of the job, which Ray deletes after the job; allowed are a bucket "
            "(s3://, gs://) and an absolute path elsewhere"
        )


def check_writable(location: Location, field: str) -> None:
    """Checks that the folder can be written to, and is kept.

    Raises:
        ConfigError: it cannot be written to, or as `check_kept`; names `field`.
        StorageFailed: writing failed for another reason, perhaps only now.
    """
    check_kept(location, field)
    probe = location / f".raypp-{os.getpid()}"
    try:
        location.make_folder()
        probe.write_bytes(b"\n")  # a full disk has room for an empty file
        probe.delete()
    except OSError as error:
        raise _not_written(location, field, error) from error


def _not_written(location: Location, field: str, error: OSError) -> ConfigError | StorageFailed:
    """The error for a folder that cannot be written to: StorageFailed if waiting may help."""
    said = f"{location} cannot be written to: {error.strerror or error}"
    return ConfigError(f"{field}: {said}") if is_definite(error) else StorageFailed(said)


def check_storage_writable(experiment: Experiment) -> None:
    """`check_writable` for `cluster.storage`."""
    check_writable(Location.of(experiment.cluster.storage, "cluster.storage"), "cluster.storage")


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

    The system releases the lock of a local run when the process ends in any way. The lock of a run in a bucket, or on a
    filesystem that is mounted without file locks, is a `Lease`, which expires.

    Args:
        wait: whether to wait for another process that holds the lock.
        command: names the command that this process belongs to, for `delete_lock_of`.
        is_interrupted: whether to stop waiting.

    Raises:
        ConfigError: another process holds the lock, and `wait` is False; or its folder cannot be written to.
        Interrupted: `is_interrupted` while another process holds the lock.
        StorageFailed: writing to its folder fails for another reason, perhaps only now.
    """
    path, waiting = Path(run.path, LOCK), _Waiting(run, wait, is_interrupted)
    try:
        while run.is_local and (file := _try_lock(run, path)) is None:
            waiting.goes_on(_holder(path))
            time.sleep(LOCK_POLL_SECONDS)
        has_file_locks = run.is_local
    except _NoFileLocks:
        has_file_locks = False
    if not has_file_locks:
        with _leased(run, waiting, command):
            yield
        return
    assert file is not None
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
    """`locked` for a run in storage without file locks."""
    lease = Lease(run / LOCK, command)
    try:
        while (holder := lease.acquire()) is not None:
            waiting.goes_on(holder)
    except OSError as error:
        raise _not_written(run, "run", error) from error
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
        raise _not_written(run, "run", error) from error


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
        raise _not_written(run, "run", error) from error
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
            raise _not_written(run, "run", error) from error  # perhaps an owner on another node has a file lock
        if not holder:  # the file was made here
            path.unlink(missing_ok=True)
        raise _NoFileLocks from error
    file.close()
    return None
