"""Dropout of a loaded model: its probability set anew, and on a CPU drawn many times faster than torch does.

torch draws a dropout's random numbers on one thread, one after the other, which takes a fifth of a small encoder's
step. Here they come from a generator for each piece of the tensor (`cpu_kernels.c`). They are drawn again in the
backward pass, for which nothing but their seed is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raypp.cpu import kernels as cpu_kernels
from raypp.errors import ConfigError

# How modules of transformers end the names of probabilities that they hand to torch's functions themselves.
FUNCTIONAL = ("dropout", "dropout_p")


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
        for name, value in list(vars(module).items()):
            if name.endswith(FUNCTIONAL) and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(module, name, probability)
                found += 1
    if not found:
        raise ConfigError(f"train.dropout: {type(model).__name__} has no dropout, got {probability:g}; leave it out")


def replace_dropout(model: nn.Module) -> None:
    """Makes every `nn.Dropout` of a model a `Dropout`."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Dropout and not module.inplace:
                setattr(parent, name, Dropout(module.p).train(module.training))


class Dropout(nn.Dropout):
    """`nn.Dropout`, on a CPU by `drop`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Of any shape, and so the result."""
        if inputs.device.type != "cpu" or not self.training or not 0 < self.p < 1:
            return super().forward(inputs)
        dropped: Tensor = _Dropout.apply(inputs, self.p, draw_seed())  # type: ignore[no-untyped-call]
        return dropped


def draw_seed() -> int:
    """A seed for one dropout, from torch's generator: what follows from `torch.manual_seed` still does."""
    return int(torch.randint(2**63 - 1, ()))


def drop(inputs: Tensor, probability: float, seed: int) -> Tensor:
    """The inputs, on a CPU, of which each is 0 with this probability (rounded to 1/65,536); the others are scaled, so
    that the expectation is the same. The seed alone decides which."""
    inputs = inputs.contiguous()
    dropped = min(round(probability * 2**16), 2**16 - 1)
    scale = 2**16 / (2**16 - dropped)
    if (kernels := cpu_kernels.kernels_for(or_bfloat16=inputs)) is not None:
        return kernels.dropout(inputs, dropped, scale, seed)
    kept = torch.from_numpy(_noise(inputs.numel(), seed) >= dropped).view(inputs.shape)
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    return torch.where(kept, (wide * scale).to(inputs.dtype), 0)


def _noise(size: int, seed: int) -> npt.NDArray[np.uint16]:
    """The kernel's random numbers (DROPOUT in cpu_kernels.c): an SFC64 generator for each piece, seeded with its
    number."""
    generator = np.random.SFC64()
    pieces = []
    for piece in range(-(-size // cpu_kernels.CHUNK)):
        state = generator.state
        state["state"]["state"] = np.array([seed, piece, 0, 1], np.uint64)
        generator.state = state
        generator.random_raw(18)
        pieces.append(generator.random_raw(cpu_kernels.CHUNK // 4).view(np.uint16))
    return np.concatenate([np.zeros(0, np.uint16), *pieces])[:size]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, probability: float, seed: int) -> Tensor:
        ctx.drawn = probability, seed
        return drop(inputs, probability, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return drop(gradient, *ctx.drawn), None, None
