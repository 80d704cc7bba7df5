"""Dropout of a loaded model: its probability set anew, and on a CPU drawn many times faster than torch does.

torch draws a dropout's random numbers on one thread, one after the other, which takes a fifth of a small encoder's
step. Here they come from a generator for each piece of the tensor (`cpu_kernels.c`). They are drawn again in the
backward pass, for which nothing but their seed is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raypp import cpu_kernels
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


def replace_dropout(model: nn.Module) -> None:
    """Makes every `nn.Dropout` of a model a `Dropout`."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Dropout and not module.inplace:
                setattr(parent, name, Dropout(module.p).train(module.training))


class Dropout(nn.Dropout):
    """`nn.Dropout`, by kernels on a CPU that has them."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Of any shape, and so the result."""
        contiguous = inputs.contiguous()
        kernels = cpu_kernels.kernels_for(or_bfloat16=contiguous)
        if kernels is None or not self.training or not 0 < self.p < 1:
            return super().forward(inputs)
        dropped: Tensor = _Dropout.apply(contiguous, self.p, draw_seed(), kernels)  # type: ignore[no-untyped-call]
        return dropped


def draw_seed() -> int:
    """A seed for one dropout, from torch's generator: what follows from `torch.manual_seed` still does."""
    return int(torch.randint(2**63 - 1, ()))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, probability: float, seed: int, kernels: cpu_kernels.Kernels) -> Tensor:
        ctx.drawn = probability, seed
        ctx.kernels = kernels
        return kernels.dropout(inputs, probability, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return ctx.kernels.dropout(gradient.contiguous(), *ctx.drawn), None, None, None
