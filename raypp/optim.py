"""AdamW with a learning rate of their own for scores, or running means of gradients as scores, and the linear warmup
and decay of the rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from raypp import cpu_kernels
from raypp.config import FisherPruning, PruningSettings, ScoredPruning, TrainSettings
from raypp.cpu_kernels import Kernels

NORMS = (nn.LayerNorm, nn.RMSNorm)


def build_optimizer(
    model: nn.Module, scores: Iterable[nn.Parameter], settings: TrainSettings, pruning: PruningSettings | None
) -> AdamW:
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
    if isinstance(pruning, FisherPruning):
        groups.append({"name": "fisher", "params": score_parameters, "fisher_decay": pruning.fisher_decay})
    elif isinstance(pruning, ScoredPruning):
        mask_rate = pruning.mask_learning_rate
        groups.append({"name": "mask", "params": score_parameters, "peak_rate": mask_rate, "weight_decay": 0.0})
    return AdamW(
        [group for group in groups if group["params"]],
        lr=rate,
        betas=settings.adam_betas,
        eps=settings.adam_epsilon,
        fused=True,
    )


class AdamW(torch.optim.AdamW):
    """torch's AdamW, fused, but for two things.

    The gradients' clipping and the step are one pass over memory on a CPU. Groups with a `fisher_decay` take no step:
    their parameters become running means of their squared gradients. (In the optimizer, since it is what a loss scaler
    unscales gradients for, and what it leaves out when they overflow.)
    """

    _scale = 1.0

    @torch.no_grad()
    def clip_gradients(self, max_norm: float | None) -> float:
        """The norm of all gradients that parameters take a step by; if it is more than `max_norm`, the next step takes
        them scaled down to that. The gradients themselves stay as they are."""
        gradients = [
            parameter.grad
            for group in self.param_groups
            if "fisher_decay" not in group
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if gradients and (kernels := cpu_kernels.kernels_for(*gradients)) is not None:
            norm = math.sqrt(kernels.sum_squares(gradients))
        else:
            norm = float(nn.utils.get_total_norm(gradients))
        # torch's own term against division by 0
        self._scale = 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))
        return norm

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        scale, self._scale = self._scale, 1.0
        # A fused optimizer leaves a step whose gradients overflow out by itself: a loss scaler only tells it of them.
        overflows = getattr(self, "found_inf", None)
        is_left_out = overflows is not None and bool(overflows.item())
        for group in self.param_groups:
            decay = group.get("fisher_decay")
            if decay is None:
                continue
            for score in group["params"]:
                if score.grad is not None and not is_left_out:  # none of a matrix that the model did not use
                    _average_squares(score, score.grad, decay)
                score.grad = None  # which is what AdamW passes over
        moved = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        everything = [tensor for parameters in moved for p in parameters for tensor in (p, p.grad)]
        kernels = cpu_kernels.kernels_for(*everything)
        if kernels is None or overflows is not None or getattr(self, "grad_scale", None) is not None:
            if scale != 1.0:
                torch._foreach_mul_([p.grad for parameters in moved for p in parameters], scale)
            super().step(closure)
            return
        for group, parameters in zip(self.param_groups, moved, strict=True):
            if parameters:
                self._step_on_cpu(kernels, group, parameters, scale)

    def _step_on_cpu(
        self, kernels: Kernels, group: dict[str, Any], parameters: list[nn.Parameter], scale: float
    ) -> None:
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:  # as torch's own
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
        kernels.adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [float(state["step"]) for state in states],
            rate=group["lr"],
            weight_decay=group["weight_decay"],
            betas=group["betas"],
            epsilon=group["eps"],
            scale=scale,
        )
        torch.autograd.graph.increment_version(parameters)


def _average_squares(mean: nn.Parameter, gradient: Tensor, decay: float) -> None:
    """mean = decay * mean + (1 - decay) * gradient^2, in place."""
    if (kernels := cpu_kernels.kernels_for(mean, gradient)) is not None:
        kernels.average_squares(mean, gradient, decay)
        torch.autograd.graph.increment_version(mean)
    else:
        mean.mul_(decay).addcmul_(gradient, gradient, value=1.0 - decay)


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The present rates by the name of their group."""
    return {group["name"]: group["lr"] for group in optimizer.param_groups if "peak_rate" in group}


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
