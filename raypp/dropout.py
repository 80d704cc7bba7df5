"""Dropout of a loaded model, set anew: a student that has few weights left has little to overfit with."""

from __future__ import annotations

from torch import nn

from raypp.errors import ConfigError

# What modules of transformers call a probability that they hand to torch's functions themselves.
FUNCTIONAL = ("dropout", "attention_dropout", "activation_dropout")


def set_dropout(model: nn.Module, probability: float) -> None:
    """Sets every dropout of a model: of embeddings, hidden states, attention and the head.

    Raises:
        ConfigError: it has none.
    """
    found = 0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
            found += 1
        for name in FUNCTIONAL:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)
                found += 1
    if not found:
        raise ConfigError(f"train.dropout: {type(model).__name__} has no dropout, got {probability:g}; leave it out")
