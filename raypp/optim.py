"""AdamW with a learning rate of their own for scores, or running means of gradients as scores, and the linear warmup
and decay of the rates."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from raypp.config import FisherPruning, PruningSettings, ScoredPruning, TrainSettings

NORMS = (nn.LayerNorm, nn.RMSNorm)


def build_optimizer(
    model: nn.Module, scores: Iterable[nn.Parameter], settings: TrainSettings, pruning: PruningSettings | None
) -> torch.optim.AdamW:
    """Groups: weights with decay; biases and norms without; scores without (torch's default would decay them by
    0.01), at their own rate or, for `FisherPruning`, as running means."""
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
            # DeBERTa has a q_bias and a v_bias beside its layers.
            (plain if name.endswith("bias") or is_norm else decayed).append(parameter)
    rate, decay = settings.learning_rate, settings.weight_decay
    groups = [
        {"name": "weights", "params": decayed, "peak_rate": rate, "weight_decay": decay},
        {"name": "weights", "params": plain, "peak_rate": rate, "weight_decay": 0.0},
    ]
    optimizer: type[torch.optim.AdamW] = torch.optim.AdamW
    if isinstance(pruning, FisherPruning):
        optimizer = FisherAdamW
        groups.append({"name": "fisher", "params": score_parameters, "fisher_decay": pruning.fisher_decay})
    elif isinstance(pruning, ScoredPruning):
        mask_rate = pruning.mask_learning_rate
        groups.append({"name": "mask", "params": score_parameters, "peak_rate": mask_rate, "weight_decay": 0.0})
    return optimizer(
        [group for group in groups if group["params"]],
        lr=rate,
        betas=settings.adam_betas,
        eps=settings.adam_epsilon,
        fused=True,
    )


class FisherAdamW(torch.optim.AdamW):
    """AdamW for all groups but those with a `fisher_decay`, whose parameters become running means of their squared
    gradients.

    In the optimizer, since it is what a loss scaler unscales gradients for, and what it leaves out when they overflow.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        # A fused optimizer leaves a step whose gradients overflow out by itself: a loss scaler only tells it of them.
        overflows = getattr(self, "found_inf", None)
        is_left_out = overflows is not None and bool(overflows.item())
        for group in self.param_groups:
            decay = group.get("fisher_decay")
            if decay is None:
                continue
            for score in group["params"]:
                if score.grad is not None and not is_left_out:  # none of a matrix that the model did not use
                    score.mul_(decay).addcmul_(score.grad, score.grad, value=1.0 - decay)
                score.grad = None  # which is what AdamW passes over
        super().step(closure)


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The present rates by the name of their group."""
    return {group["name"]: group["lr"] for group in optimizer.param_groups if "peak_rate" in group}


def averaged_parameters(optimizer: torch.optim.Optimizer) -> set[nn.Parameter]:
    """Those that are running means of squared gradients: they take no step, so their gradients need no clipping."""
    return {score for group in optimizer.param_groups if "fisher_decay" in group for score in group["params"]}


def rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """What the peak learning rate is multiplied by at a step (counted from 0): a linear rise, then a linear fall to
    0."""
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Gives every group its peak rate times `factor`."""
    for group in optimizer.param_groups:
        if "peak_rate" in group:
            group["lr"] = group["peak_rate"] * factor
