"""The model that a command-line argument names: that of a run, a model folder on any storage, or a model of the hub."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from raypp.config import Experiment
from raypp.errors import ConfigError
from raypp.models.loading import resolve_model
from raypp.runs import local_model, run_experiment
from raypp.storage import Location


@contextlib.contextmanager
def opened_model(reference: str, field: str) -> Iterator[tuple[Path, Experiment | None]]:
    """The local folder of the model, which may be deleted afterwards, and the experiment if the reference is a run.

    Args:
        reference: run folder, model folder (both may be URIs), hub name or package:….
        field: the argument that names it, for errors.

    Raises:
        ConfigError: there is no such model, the run has none yet, or its files are not complete.
    """
    location = Location.of(reference, field)
    if (location / "experiment.yaml").is_file():
        experiment = run_experiment(location, reference, field)
        with local_model(location, reference, field) as folder:
            yield resolve_model(str(folder), None, field), experiment
    elif location.is_local:
        yield resolve_model(reference, None, field), None
    elif not (location / "config.json").is_file():
        raise ConfigError(f"{field}: {reference} has no config.json; give a Hugging Face model folder, or a run")
    else:
        with tempfile.TemporaryDirectory(prefix="raypp-") as scratch:
            yield resolve_model(str(location.download(Path(scratch))), None, field), None
