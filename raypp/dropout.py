"""Dropout of a loaded model, set anew: a student that has few weights left has little to overfit with."""

from __future__ import annotations

from torch import nn

from raypp.errors import ConfigError

# What modules of transformers call a probability that they hand to torch's functions themselves.
FUNCTIONAL = ("dropout", "attention_dropout", "activation_dropout", "hidden_dropout")


def set_dropout(model: nn.Module, probability: float) -> None:
    """Sets every dropout that a model has: of embeddings, hidden states, attention and the head. Where it was built
    without one (ModernBERT's attention outputs), there is none to set.

    Raises:
        ConfigError: it has none.
    """
    found = 0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
            found += 1
        for name in FUNCTIONAL:
            value = getattr(module, name, None)
            if isinstance(value, int | float) and not isinstance(value, bool):
                setattr(module, name, probability)
                found += 1
    if not found:
        raise ConfigError(f"train.dropout: {type(model).__name__} has no dropout, got {probability:g}; leave it out")
