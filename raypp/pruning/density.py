"""How many weights remain, over three denominators; the same numbers before and after folding."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypp.pruning.linear import MaskedLinear, all_linear_layers, encoder_of, is_encoder_name, masked_layers


@dataclass(frozen=True)
class LayerDensity:
    """Remaining and all weights of one pruned linear layer (a shared layer counts once)."""

    name: str
    kept: int
    total: int

    @property
    def density(self) -> float:
        """Remaining part, 0 to 1."""
        return self.kept / self.total


@dataclass(frozen=True)
class DensityReport:
    """Achieved density; `dataclasses.asdict` of it is JSON."""

    linear: float
    """Remaining / all weights of the pruned linear layers."""
    encoder: float
    """Non-zero / all parameters of the encoder: biases and norms included, embeddings, pooler and head not."""
    model: float
    """Non-zero / all parameters of the whole model, embeddings included."""
    layers: tuple[LayerDensity, ...]
    """Each pruned layer, in the model's order."""


def split_layer_name(name: str) -> tuple[str, str, str]:
    """Stack, layer number and kind of a matrix: encoder.layer.3.output.dense -> (encoder.layer, 3, output.dense).

    The last number counts, unless it ends the name. A name without one has neither stack nor number.
    """
    found = re.fullmatch(r"(?:(.*)\.)?(\d+)\.(.+?)", name)
    return (found[1] or "", found[2], found[3]) if found else ("", "", name)


def kept_weights(layer: nn.Linear | MaskedLinear) -> Tensor:
    """Which weights remain, (out, in), bool: those that are not zero, after the mask if there is one."""
    return (layer.masked_weight() if isinstance(layer, MaskedLinear) else layer.weight) != 0


@torch.no_grad()
def count_density(model: nn.Module, layer_names: Iterable[str] | None = None) -> DensityReport:
    """Counts what is not zero in a patched model (masks applied) or in a plain, folded one. Scores never count.

    Args:
        model: any module; the encoder is its `base_model`, if it has one.
        layer_names: the pruned layers, named inside the encoder; None: the masked layers of a patched model, or in a
            plain one every linear layer that may be pruned.

    Raises:
        ValueError: a name that is no linear layer of the encoder, or no layer at all.
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
    # All counts come to the host together: waiting for the device once per matrix would cost more than counting.
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
    """Ids of the parameters that the encoder density is over."""
    return {
        id(parameter)
        for name, module in encoder_of(model).named_modules()
        if is_encoder_name(name) and not isinstance(module, nn.Embedding)  # such as a table of relative positions
        for parameter in module.parameters(recurse=False)
    }
