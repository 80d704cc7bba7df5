"""Hard concrete gates: l0's scores become masks between 0 and 1 (Louizos et al. 2018, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from raypp.cpu import kernels as cpu_kernels
from raypp.gpu import kernels as gpu_kernels
from raypp.noise import random_bits

# The interval to which a gate is stretched before it is clamped to [0, 1], and the temperature of the distribution.
GATE_LOW, GATE_HIGH, GATE_TEMPERATURE = -0.1, 1.1, 2 / 3
GATE_CLOSES = math.log(-GATE_LOW / GATE_HIGH)  # the highest score (log alpha) whose deterministic gate is 0
NOISE_MARGIN = 1e-4  # keeps log(u) and log(1 - u) finite, as in the original


@torch.no_grad()
def hard_concrete(log_alpha: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gates of L0 regularization (Louizos et al. 2018, equations 10 to 13), and their derivatives by `log_alpha`.

    Args:
        log_alpha: the scores, any shape.
        noise: uniform in [0, 1], shaped as the scores, to sample gates; None for the deterministic ones.

    Returns:
        Gates in [0, 1] and d gate / d log_alpha, both float, shaped as the scores.
    """
    steepness = 1.0
    if noise is None:
        sigmoid = torch.sigmoid(log_alpha)
    else:
        steepness = 1 / GATE_TEMPERATURE
        logits = torch.logit(noise, eps=NOISE_MARGIN).to(log_alpha.dtype)
        sigmoid = logits.add_(log_alpha).mul_(steepness).sigmoid_()
    stretch = GATE_HIGH - GATE_LOW
    gate = torch.add(sigmoid.new_full((), GATE_LOW), sigmoid, alpha=stretch)  # new_tensor would wait for the device
    slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1).mul_(steepness * stretch)
    # The slope is 0 where the gate is clamped. The derivative of torch's clamping activation does this seven times as
    # fast as a comparison and a multiplication by its boolean mask.
    torch.ops.aten.hardtanh_backward.grad_input(slope, gate, 0.0, 1.0, grad_input=slope)
    return gate.clamp_(0.0, 1.0), slope


@torch.no_grad()
def sample_gates(
    scores: Sequence[Tensor], seeds: Sequence[int], lift: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Samples the gates of each matrix, with noise from a seed of its own (`hard_concrete`).

    Args:
        scores: matrices of any shape, on one device.
        seeds: one per matrix.
        lift: scalar that is added to all scores first; None for 0.
    """
    matrices = [matrix.detach() for matrix in scores]
    if (kernels := cpu_kernels.kernels_for(*matrices)) is not None:
        raised = 0.0 if lift is None else float(lift)
        return kernels.sample_gates(matrices, seeds, raised, (GATE_LOW, GATE_HIGH), NOISE_MARGIN)
    if (on_gpu := gpu_kernels.float32_kernels_for(*matrices)) is not None:
        sampled: list[tuple[Tensor, Tensor]] = on_gpu.sample_gates(
            matrices, seeds, lift, (GATE_LOW, GATE_HIGH), NOISE_MARGIN
        )
        return sampled
    return [
        hard_concrete(matrix if lift is None else matrix + lift, uniform_noise(matrix, seed))
        for matrix, seed in zip(matrices, seeds, strict=True)
    ]


def uniform_noise(matrix: Tensor, seed: int) -> Tensor:
    """Uniform noise in (0, 1) for the gates of one matrix, the same on every device, 16 bits each.

    It is drawn on the CPU, and copied to the matrix's device without waiting for it.
    """
    noise = torch.from_numpy(random_bits(matrix.numel(), seed)).float().mul_(2.0**-16).add_(2.0**-17)
    if matrix.is_cuda:
        noise = noise.pin_memory()  # otherwise the host would wait for the device at each matrix
    return noise.view(matrix.shape).to(matrix.device, non_blocking=True)
