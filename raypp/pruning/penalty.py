"""The penalty: a regularizer that pushes scores down. The training loop multiplies it with lambda."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from raypp.cpu import kernels as cpu_kernels
from raypp.pruning.gates import GATE_CLOSES, GATE_TEMPERATURE

# Each penalty is a mean of sigmoid(scores + shift). l1: the mean of sigmoid(scores) (Sanh et al. 2020, section 4). l0:
# the mean probability that a hard concrete gate is not 0 (Louizos et al. 2018, equation 12).
SHIFTS = {"l1": 0.0, "l0": -GATE_TEMPERATURE * GATE_CLOSES}


@torch.no_grad()
def add_penalty(
    scores: Sequence[nn.Parameter],
    kind: Literal["l1", "l0"],
    mean: Literal["per_matrix", "global"],
    factor: float | Tensor,
) -> Tensor:
    """Adds the gradient of factor * penalty to each matrix's `grad`, and returns the penalty, a scalar in [0, 1].

    The gradient is computed in closed form, matrix by matrix: autograd would keep all sigmoids and read all gradients
    once more.

    Args:
        scores: one parameter per matrix, of any shape.
        kind: see `SHIFTS`.
        mean: per_matrix gives each matrix the same weight, as the original does, so a score of a small matrix counts
            more (the paper's lambdas assume this); global gives each score the same weight.
        factor: lambda, times the loss scale if there is one; a number or a scalar on the scores' device.
    """
    total = sum(matrix.numel() for matrix in scores)
    parts = []
    for matrix in scores:
        share = 1 / total if mean == "global" else 1 / (len(scores) * matrix.numel())
        if matrix.grad is None:
            matrix.grad = torch.zeros_like(matrix)
        kernels = cpu_kernels.kernels_for(matrix, matrix.grad)
        if kernels is not None:
            added = kernels.add_sigmoid_gradient(matrix, SHIFTS[kind], float(factor) * share, matrix.grad)
            parts.append(torch.tensor(added * share))
            continue
        sigmoid = torch.add(matrix.float(), SHIFTS[kind]).sigmoid_()
        parts.append(sigmoid.sum() * share)
        each = torch.as_tensor(factor * share, dtype=sigmoid.dtype, device=sigmoid.device).expand_as(sigmoid)
        gradient = torch.ops.aten.sigmoid_backward(each, sigmoid).to(matrix.dtype)
        matrix.grad.add_(gradient)
    return torch.stack(parts).sum()
