"""A run's folder: who may write to it, what it was started with, and whether it is finished."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml
from pydantic import ValidationError

from raypp.config import Experiment
from raypp.errors import ConfigError, StorageFailed
from raypp.storage import Location, is_definite

logger = logging.getLogger("raypp")

LOCK_POLL_SECONDS = 0.5


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
        if is_definite(error):  # `check_writable` says what is wrong
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
            f"run: the folder {run} holds a run with other settings or other input, or of an older raypp; name another "
            "run, or start it over with --fresh"
        )
    if recorded is None or not (run / "result.json").is_file():
        return None
    return dict((run / "result.json").read_json())


@contextlib.contextmanager
def local_model(run: Location, named: str, field: str) -> Iterator[Path]:
    """The model that a run left, on this machine while it is needed.

    Args:
        named: what the user calls the run.
        field: where, for the error.

    Raises:
        ConfigError: there is none yet.
    """
    if not (run / "model" / "config.json").is_file():
        raise ConfigError(f"{field}: the run {named} has no model yet; `raypp train` finishes it")
    with tempfile.TemporaryDirectory(prefix="raypp-") as scratch:
        yield (run / "model").download(Path(scratch))


def model_checksums(run: Location) -> dict[str, str]:
    """sha256 (hex) of every file of a run's model, by name."""
    return {file.name: file.sha256() for file in (run / "model").files()}


def start_run(run: Location, experiment: Experiment, digest: str, versions: Mapping[str, str]) -> None:
    """Writes experiment.yaml, or, when going on, warns of versions that have changed since."""
    recorded = _recorded(run)
    if recorded is None:
        write_experiment(run, experiment, digest, versions)
        return
    before = recorded.get("versions", {})
    changed = [f"{name} {before[name]} -> {now}" for name, now in versions.items() if before.get(name, now) != now]
    if changed:
        logger.warning(
            "this run was started with other versions: %s; its result may differ a little", ", ".join(changed)
        )


def write_experiment(folder: Location, experiment: Experiment, digest: str, versions: Mapping[str, str]) -> None:
    """Writes experiment.yaml: what runs here, what identifies it and what it is run with."""
    provenance = {"identity": digest, "versions": dict(versions)}
    content = {**experiment.model_dump(mode="json"), "provenance": provenance}
    header = "# The resolved experiment. `provenance` is recorded and not read again.\n"
    (folder / "experiment.yaml").write_text(header + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def clear_run(run: Location) -> None:
    """Removes what an earlier run left, but not the lock that is held. Its result first: without, it is not finished,
    however far this comes."""
    (run / "result.json").delete()
    for child in run.children():
        if child.name != ".lock":
            child.delete()


def _recorded(run: Location) -> dict[str, Any] | None:
    return recorded_settings(run)[1] if (run / "experiment.yaml").is_file() else None


def recorded_settings(run: Location) -> tuple[dict[str, Any], dict[str, Any]]:
    """What experiment.yaml says: the resolved settings as plain values, and their provenance (identity, versions).

    Raises:
        ConfigError: it is not what raypp wrote.
    """
    file = run / "experiment.yaml"
    try:
        values = dict(yaml.safe_load(file.read_text()))
        return values, dict(values.pop("provenance"))
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{file}: is not what raypp wrote ({error}); move it away or start over with --fresh"
        ) from None


def run_experiment(run: Location, named: str, field: str) -> Experiment:
    """The experiment that a run was started with.

    Args:
        named: what the user calls the run.
        field: where, for the errors.

    Raises:
        ConfigError: it is no run but a sweep, or not what raypp wrote.
    """
    settings, provenance = recorded_settings(run)
    try:
        experiment = Experiment.model_validate(settings, strict=False)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        version = provenance.get("versions", {}).get("raypp", "another version")
        raise ConfigError(
            f"{field}: {named} was started with raypp {version}, and this one does not know its settings {fields}; use "
            "that version, or name the folder of its model"
        ) from None
    if experiment.sweep is not None:
        raise ConfigError(f"{field}: {named} is a sweep; name one of its runs, the best of which are in its best.json")
    return experiment


def check_writable(location: Location, field: str) -> None:
    """Raises ConfigError naming `field` if it is no place to write to, and StorageFailed if writing there fails."""
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


@contextlib.contextmanager
def locked(run: Location, *, wait: bool = False) -> Iterator[None]:
    """Holds the run for this process; the system lets go of it however the process ends.

    Args:
        wait: until another process that holds it is done.

    Raises:
        ConfigError: another process holds it, and there is no waiting; or its folder cannot be written to.
        StorageFailed: writing to its folder fails for another reason, perhaps only now.
    """
    if not run.is_local:
        yield
        return
    path = Path(run.path, ".lock")
    while (file := _try_lock(run, path)) is None:
        if not wait:
            holder = path.read_text() if path.exists() else ""
            raise ConfigError(f"run: another process ({holder or 'just ended'}) works on {run}; wait for it, or end it")
        time.sleep(LOCK_POLL_SECONDS)
    with file:
        try:
            _write_holder(run, file)
            yield
        finally:
            path.unlink(missing_ok=True)
            # A run that was refused leaves no empty folders.
            for folder in (path.parent, path.parent.parent):
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _write_holder(run: Location, file: IO[str]) -> None:
    try:
        file.truncate(0)
        # Not through Python's buffer: on a full disk, closing the file would try to write its content again.
        os.write(file.fileno(), json.dumps({"pid": os.getpid(), "host": os.uname().nodename}).encode())
    except OSError as error:
        raise _not_written(run, "run", error) from error


def _try_lock(run: Location, path: Path) -> IO[str] | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        is_folder = path.parent.is_dir() or not path.parent.exists()
        if isinstance(error, FileNotFoundError | FileExistsError) and is_folder:
            return None  # the holder before is removing the empty folder that it held
        raise _not_written(run, "run", error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder before may have removed the file between our opening and locking it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except BlockingIOError:
        pass
    file.close()
    return None
