"""The regularizer that pushes scores down. Unweighted: the loop multiplies it with the schedule's lambda."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from raypp.pruning.masks import GATE_CLOSES, GATE_TEMPERATURE


class _MeanSigmoid(torch.autograd.Function):
    """sigmoid(scores + shift).mean(), whose backward makes one matrix where autograd's own makes two."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, shift: float) -> Tensor:
        sigmoid = torch.add(scores, shift).sigmoid_() if shift else torch.sigmoid(scores)
        ctx.save_for_backward(sigmoid)
        return sigmoid.mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (sigmoid,) = ctx.saved_tensors
        return torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1).mul_(gradients[0] / sigmoid.numel()), None


def l1(scores: Tensor) -> Tensor:
    """Mean of sigmoid(scores) of one matrix (Sanh et al. 2020, section 4). Scores of any shape, scalar result."""
    return cast(Tensor, _MeanSigmoid.apply(scores, 0.0))  # type: ignore[no-untyped-call]


def l0(scores: Tensor) -> Tensor:
    """Mean probability that a hard concrete gate is not 0 (Louizos et al. 2018, equation 12); scalar result."""
    shift = -GATE_TEMPERATURE * GATE_CLOSES
    return cast(Tensor, _MeanSigmoid.apply(scores, shift))  # type: ignore[no-untyped-call]


def penalty(scores: Sequence[Tensor], kind: Literal["l1", "l0"], mean: Literal["per_matrix", "global"]) -> Tensor:
    """The penalty over all matrices, a scalar in [0, 1].

    Args:
        scores: one tensor a matrix, any shapes.
        kind: which of the two.
        mean: per_matrix gives every matrix the same weight, as the original (so a score of a small matrix counts more;
            the paper's lambdas assume it); global gives every score the same weight.
    """
    each = torch.stack([(l1 if kind == "l1" else l0)(matrix.float()) for matrix in scores])
    if mean == "per_matrix":
        return each.mean()
    sizes = torch.tensor([matrix.numel() for matrix in scores], dtype=each.dtype, device=each.device)
    return (each * sizes / sizes.sum()).sum()
