"""Which parameters a run leaves as they are: all embeddings, or those of positions and token types alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from raypp.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from raypp.config import Experiment

# What transformers' families call the module.
POSITIONS = ("position_embeddings", "wpe", "embed_positions")
TOKEN_TYPES = ("token_type_embeddings",)


def freeze(model: PreTrainedModel, experiment: Experiment) -> None:
    """Takes the gradient from what the settings keep as it is.

    Raises:
        ConfigError: the model has no such embeddings.
    """
    settings = experiment.train
    if freezes_embeddings(experiment):
        embeddings_of(model).requires_grad_(False)
    for field, names in (
        ("freeze_position_embeddings", POSITIONS),
        ("freeze_token_type_embeddings", TOKEN_TYPES),
    ):
        if not getattr(settings, field):
            continue
        found = [
            module
            for name, module in model.base_model.named_modules()
            if name.rpartition(".")[2] in names and isinstance(module, nn.Embedding)
        ]
        if not found:
            raise ConfigError(f"train.{field}: a {model.config.model_type} has no such embeddings; leave it out")
        for module in found:
            module.requires_grad_(False)


def freezes_embeddings(experiment: Experiment) -> bool:
    """Whether a run leaves the embeddings as they are: as the settings say, by default only when it prunes a student
    that has learned some."""
    chosen = experiment.train.freeze_embeddings
    by_default = experiment.pruning is not None and experiment.student.config is None
    return by_default if chosen is None else chosen


def embeddings_of(model: PreTrainedModel) -> nn.Module:
    """The module that is kept as it is when embeddings are frozen: tokens, positions, token types, their LayerNorm."""
    encoder = model.base_model
    embeddings: nn.Module = getattr(encoder, "embeddings", None) or encoder.get_input_embeddings()
    return embeddings
