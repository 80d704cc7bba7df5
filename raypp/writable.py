"""Whether folders of the settings can be written to and are kept, before anything starts."""

from __future__ import annotations

import os

from raypp.config import Experiment
from raypp.errors import ConfigError, StorageFailed
from raypp.storage import Location, is_definite

JOB_FILES = "/runtime_resources/working_dir_files/"  # where Ray unpacks what `ray job submit --working-dir` sends


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
        raise not_written(location, field, error) from error


def not_written(location: Location, field: str, error: OSError) -> ConfigError | StorageFailed:
    """The error for a folder that cannot be written to: StorageFailed if waiting may help."""
    said = f"{location} cannot be written to: {error.strerror or error}"
    return ConfigError(f"{field}: {said}") if is_definite(error) else StorageFailed(said)


def check_storage_writable(experiment: Experiment) -> None:
    """`check_writable` for `cluster.storage`."""
    check_writable(Location.of(experiment.cluster.storage, "cluster.storage"), "cluster.storage")
