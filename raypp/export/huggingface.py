"""A plain Hugging Face folder: configuration, safetensors, tokenizer; the standard Auto classes open it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from raypp.errors import ConfigError
from raypp.kinds import TaskKind, kind_of
from raypp.models import quiet_loading
from raypp.runs import local_model, run_experiment
from raypp.storage import Location
from raypp.tasks import resolve_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, destination: Location) -> None:
    """Writes a folded model and its tokenizer; what stood there before is replaced."""
    destination.delete()
    destination.make_folder()
    with tempfile.TemporaryDirectory(prefix="raypp-") as scratch, quiet_loading():
        folder = Path(destination.path if destination.is_local else scratch)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if destination.is_local:
            destination.sync()
        else:
            destination.upload(folder)


def load_saved(location: Location, kind: TaskKind, device: torch.device | str = "cpu") -> Any:
    """The model in a folder such as `save_model` writes, in float32 and evaluation mode, through the standard Auto
    class of the task's kind."""
    with tempfile.TemporaryDirectory(prefix="raypp-") as scratch, quiet_loading():
        folder = location.download(Path(scratch))
        model = kind.auto_model().from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        return model.to(device).eval()


def export_run(reference: str, destination: Location) -> str:
    """Copies a finished run's model to a folder; returns a line that says so.

    Raises:
        ConfigError: no finished run there, or a folder that holds something already.
    """
    run = Location.of(reference, "RUN")
    if not (run / "result.json").is_file():
        raise ConfigError(f"RUN: {reference} is no finished run (it has no result.json); `raypp train` finishes it")
    experiment = run_experiment(run, reference, "RUN")
    kind = kind_of(resolve_task(experiment.task, experiment.data.source))
    with local_model(run, reference, "RUN") as folder:
        if destination.is_file() or destination.children():
            raise ConfigError(f"--to: {destination} holds something already; give a new or an empty folder")
        destination.upload(folder)
    return f"{len(destination.files())} files in {destination}, a model for {kind.auto_class}.from_pretrained"
