"""The parameters that a run freezes: all embeddings, or only those of positions or token types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from raypp.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from raypp.config import Experiment

# Names of the modules in the model families of transformers.
POSITIONS = ("position_embeddings", "wpe", "embed_positions", "positions_embed")
TOKEN_TYPES = ("token_type_embeddings",)
# For base models without a module of all embeddings. These are the token embeddings of an encoder and decoder.
TOKENS = ("embed_tokens",)
LAYER_NORMS = ("layernorm_embedding", "layer_norm_emb", "word_embeddings_layernorm")


def freeze(model: PreTrainedModel, experiment: Experiment) -> None:
    """Freezes the parameters that the settings name.

    Raises:
        ConfigError: the model has no such embeddings.
    """
    settings = experiment.train
    if freezes_embeddings(experiment):
        for module in embeddings_of(model):
            module.requires_grad_(False)
    for field, names in (
        ("freeze_position_embeddings", POSITIONS),
        ("freeze_token_type_embeddings", TOKEN_TYPES),
    ):
        if not getattr(settings, field):
            continue
        found = [module for module in _named(model, names) if isinstance(module, nn.Embedding)]
        if not found:
            raise ConfigError(f"train.{field}: a {model.config.model_type} has no such embeddings; leave it out")
        for module in found:
            module.requires_grad_(False)


def freezes_embeddings(experiment: Experiment) -> bool:
    """Whether a run freezes the embeddings. By default it does if it prunes a pretrained student."""
    chosen = experiment.train.freeze_embeddings
    by_default = experiment.pruning is not None and experiment.student.config is None
    return by_default if chosen is None else chosen


def embeddings_of(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that `train.freeze_embeddings` freezes: of tokens, positions, token types, and their LayerNorm."""
    encoder = model.base_model
    embeddings = getattr(encoder, "embeddings", None)
    if embeddings is None or isinstance(embeddings, nn.Embedding):  # XLM's are only its token embeddings
        return [encoder.get_input_embeddings(), *_named(model, (*TOKENS, *POSITIONS, *TOKEN_TYPES, *LAYER_NORMS))]
    return [embeddings]


def _named(model: PreTrainedModel, names: tuple[str, ...]) -> list[nn.Module]:
    return [module for name, module in model.base_model.named_modules() if name.rpartition(".")[2] in names]
