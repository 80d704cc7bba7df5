"""AdamW with a learning rate of their own for scores, and the linear warmup and decay of both."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from raypp.config import TrainSettings

NORMS = (nn.LayerNorm, nn.RMSNorm)


def build_optimizer(
    model: nn.Module, scores: Iterable[nn.Parameter], settings: TrainSettings, mask_learning_rate: float
) -> torch.optim.AdamW:
    """Groups: weights with decay; biases and norms without; scores without (torch's default would decay them by
    0.01)."""
    score_parameters = list(scores)
    taken = {id(parameter) for parameter in score_parameters}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in taken:
                continue
            taken.add(id(parameter))
            is_norm = isinstance(module, NORMS) or "norm" in type(module).__name__.lower()
            (plain if name == "bias" or is_norm else decayed).append(parameter)
    rate, decay = settings.learning_rate, settings.weight_decay
    groups = [
        {"name": "weights", "params": decayed, "peak_rate": rate, "weight_decay": decay},
        {"name": "weights", "params": plain, "peak_rate": rate, "weight_decay": 0.0},
        {"name": "mask", "params": score_parameters, "peak_rate": mask_learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=rate,
        betas=settings.adam_betas,
        eps=settings.adam_epsilon,
        fused=True,
    )


def rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """What the peak learning rate is multiplied by at a step (counted from 0): a linear rise, then a linear fall to
    0."""
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Gives every group its peak rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_rate"] * factor
