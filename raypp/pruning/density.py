"""Counts the remaining weights of a model. The numbers are the same before and after folding."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypp.pruning.linear import MaskedLinear, all_linear_layers, encoder_of, is_encoder_name, masked_layers


@dataclass(frozen=True)
class LayerDensity:
    """Number of remaining and of all weights of one pruned linear layer. A shared layer counts once."""

    name: str
    kept: int
    total: int

    @property
    def density(self) -> float:
        """The remaining part, 0 to 1."""
        return self.kept / self.total


@dataclass(frozen=True)
class DensityReport:
    """Achieved density, as a part of three totals. `dataclasses.asdict` of it is JSON."""

    linear: float
    """Remaining / all weights of the pruned linear layers."""
    encoder: float
    """Non-zero / all parameters of the encoder, with biases and norms but without embeddings, pooler and head."""
    model: float
    """Non-zero / all parameters of the whole model, with embeddings."""
    layers: tuple[LayerDensity, ...]
    """All pruned layers, in the model's order."""


def split_layer_name(name: str) -> tuple[str, str, str]:
    """Splits a matrix's name: encoder.layer.3.output.dense -> stack encoder.layer, number 3, kind output.dense.

    The number is the last one in the name that is not at its end. A name without a number has an empty stack and
    number.
    """
    found = re.fullmatch(r"(?:(.*)\.)?(\d+)\.(.+?)", name)
    return (found[1] or "", found[2], found[3]) if found else ("", "", name)


def kept_weights(layer: nn.Linear | MaskedLinear) -> Tensor:
    """Whether each weight remains, that is, is not zero after the mask (if there is one); bool, (out, in)."""
    return (layer.masked_weight() if isinstance(layer, MaskedLinear) else layer.weight) != 0


@torch.no_grad()
def count_density(model: nn.Module, layer_names: Iterable[str] | None = None) -> DensityReport:
    """Counts the parameters that are not zero in a patched model (after the masks) or in a plain one, without scores.

    Args:
        model: any module; the encoder is its `base_model`, if it has one.
        layer_names: the pruned layers, by their names inside the encoder. None: the masked layers of a patched model,
            or all linear layers of a plain model that may be pruned.

    Raises:
        ValueError: a name is not a linear layer of the encoder, or there is no layer.
    """
    layers = _layers(model, layer_names)
    body = _encoder_parameters(model)
    counts: list[Tensor] = []
    parameters: list[Tensor] = []
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or (isinstance(module, MaskedLinear) and name == "mask_scores"):
                continue
            seen.add(id(parameter))
            parameters.append(parameter)
            if isinstance(module, MaskedLinear) and name == "weight":
                counts.append(torch.count_nonzero(module.masked_weight()))
            else:
                counts.append(torch.count_nonzero(parameter))
    # All counts are brought to the host together, because waiting for the device at each matrix would cost more.
    numbers = torch.stack([count.to(counts[0].device) for count in counts]).tolist()
    kept = {id(parameter): int(number) for parameter, number in zip(parameters, numbers, strict=True)}

    def part(chosen: list[Tensor]) -> float:
        return sum(kept[id(parameter)] for parameter in chosen) / sum(parameter.numel() for parameter in chosen)

    return DensityReport(
        linear=part([layer.weight for layer in layers.values()]),
        encoder=part([parameter for parameter in parameters if id(parameter) in body]),
        model=part(parameters),
        layers=tuple(LayerDensity(name, kept[id(ly.weight)], ly.weight.numel()) for name, ly in layers.items()),
    )


def _layers(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Linear | MaskedLinear]:
    masked = masked_layers(model)
    available = all_linear_layers(model)
    if names is None:
        chosen = {name: layer for name, layer in available.items() if not masked or name in masked}
    else:
        wanted = list(names)
        if unknown := [name for name in wanted if name not in available]:
            raise ValueError(f"not linear layers of the encoder: {', '.join(unknown)}")
        chosen = {name: available[name] for name in wanted}
    if not chosen:
        raise ValueError("there is no linear layer to count in this model's encoder")
    return chosen


def _encoder_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters that count for the encoder's density."""
    return {
        id(parameter)
        for name, module in encoder_of(model).named_modules()
        if is_encoder_name(name) and not isinstance(module, nn.Embedding)  # such as a table of relative positions
        for parameter in module.parameters(recurse=False)
    }
