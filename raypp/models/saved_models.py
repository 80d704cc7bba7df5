"""The models that runs deliver: plain Hugging Face folders, saved to any storage and loaded from it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from raypp.models.loading import FROM_FOLDER, quiet_loading
from raypp.storage import Location

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raypp.kinds import TaskKind


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, destination: Location) -> None:
    """Saves a folded model and its tokenizer; replaces the destination if it exists."""
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
    """Loads a model that `save_model` has saved with the standard Auto class of the task's kind, in float32 and
    evaluation mode."""
    with tempfile.TemporaryDirectory(prefix="raypp-") as scratch, quiet_loading():
        folder = location.download(Path(scratch))
        model = kind.auto_model().from_pretrained(str(folder), use_safetensors=True, dtype=torch.float32, **FROM_FOLDER)
        return model.to(device).eval()
