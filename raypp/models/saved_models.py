"""The models that runs leave: plain Hugging Face folders, written to any storage and opened from it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from raypp.models.loading import quiet_loading
from raypp.storage import Location

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raypp.kinds import TaskKind


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
