"""`raypp export --format huggingface`: a run's model as a plain Hugging Face folder, for the standard Auto classes."""

from __future__ import annotations

from raypp.errors import ConfigError
from raypp.kinds import kind_of
from raypp.runs import local_model, run_experiment
from raypp.storage import Location
from raypp.tasks import resolve_task


def export_run(reference: str, destination: Location) -> str:
    """Copies the model of a finished run to a folder; returns a line for the user.

    Raises:
        ConfigError: the run does not exist or is not finished, or the folder is not empty.
    """
    run = Location.of(reference, "RUN")
    if not (run / "result.json").is_file():
        raise ConfigError(f"RUN: {reference} is not a finished run (it has no result.json); `raypp train` finishes it")
    experiment = run_experiment(run, reference, "RUN")
    kind = kind_of(resolve_task(experiment.task, experiment.data.source))
    with local_model(run, reference, "RUN") as folder:
        if destination.is_file() or destination.children():
            raise ConfigError(f"--to: {destination} is not empty; give a new or an empty folder")
        destination.upload(folder)
    return f"{len(destination.files())} files in {destination}, a model for {kind.auto_class}.from_pretrained"
