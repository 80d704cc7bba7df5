"""A run's folder: the settings it was started with, and whether it is finished."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raypp.config import Experiment
from raypp.errors import ConfigError, StorageFailed
from raypp.locks import LOCK
from raypp.storage import Location, is_definite
from raypp.yaml_text import dump_yaml, load_yaml

logger = logging.getLogger("raypp")


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
