"""The dropout probability of a loaded model: `train.dropout`."""

from __future__ import annotations

from torch import nn

from raypp.errors import ConfigError

# Modules of transformers that call torch's functional dropout keep the probability in an attribute of such a name.
FUNCTIONAL = ("dropout", "dropout_p")


def set_dropout(model: nn.Module, probability: float) -> None:
    """Sets the probability of every dropout of a model: of embeddings, hidden states, attention and the head. It adds
    no dropout where the model was built without one, as in ModernBERT's attention outputs.

    Raises:
        ConfigError: the model has no dropout.
    """
    found = 0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
            found += 1
        for name, value in list(vars(module).items()):
            if name.endswith(FUNCTIONAL) and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(module, name, probability)
                found += 1
    if not found:
        raise ConfigError(f"train.dropout: {type(model).__name__} has no dropout, got {probability:g}; leave it out")
