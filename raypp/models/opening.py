"""The model that a command-line argument names: that of a run, a model folder on any storage, or a model of the hub."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raypp.config import Experiment
from raypp.errors import ConfigError
from raypp.models.loading import resolve_model
from raypp.runs import local_model, run_experiment
from raypp.storage import Location


@dataclass(frozen=True)
class NamedModel:
    """A model by the name that the user gave."""

    reference: str
    """Run folder, model folder (both may be URIs), hub name or package:…."""
    field: str
    """The argument that names it, for errors."""
    location: Location
    """The folder, if the reference is one."""
    experiment: Experiment | None
    """That of the run; None if the reference is no run."""

    @classmethod
    def of(cls, reference: str, field: str) -> NamedModel:
        """Reads the experiment if the reference is a run.

        Raises:
            ConfigError: the storage cannot be opened, the folder is a sweep's, or raypp did not write its
                experiment.yaml.
        """
        location = Location.of(reference, field)
        is_run = (location / "experiment.yaml").is_file()
        return cls(reference, field, location, run_experiment(location, reference, field) if is_run else None)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Path]:
        """The model's local folder, which may be deleted afterwards.

        Raises:
            ConfigError: there is no such model, the run has none yet, or its files are not complete.
        """
        with contextlib.ExitStack() as stack:
            if self.experiment is not None:
                folder = str(stack.enter_context(local_model(self.location, self.reference, self.field)))
            elif self.location.is_local:
                folder = self.reference
            elif not (self.location / "config.json").is_file():
                raise ConfigError(
                    f"{self.field}: {self.reference} has no config.json; give a Hugging Face model folder, or a run"
                )
            else:
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="raypp-"))
                folder = str(self.location.download(Path(scratch)))
            yield resolve_model(folder, None, self.field)
