"""AdamW with a learning rate of their own for scores, or running means of gradients as scores, and the linear warmup
and decay of the rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raypp.config import FisherPruning, PruningSettings, ScoredPruning, TrainSettings
from raypp.cpu import kernels as cpu_kernels
from raypp.cpu.kernels import Kernels

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
    their parameters become running means of their squared gradients, each times the rows of its batch. (In the
    optimizer, since it is what a loss scaler unscales gradients for, and what it leaves out when they overflow.)
    """

    _scale = 1.0
    """What the next step multiplies the gradients by; it is for that one alone."""

    @torch.no_grad()
    def clip_gradients(self, max_norm: float | None, *, at_once: bool = False) -> float:
        """Scales all gradients that parameters take a step by together down to a norm of `max_norm`, and returns their
        norm before that.

        Args:
            max_norm: None scales none.
            at_once: so that the gradients can be looked at; else the next step does it on its way.
        """
        gradients = [
            parameter.grad
            for group in self.param_groups
            if "fisher_decay" not in group
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = _norm(gradients)
        # torch's own term against division by 0
        self._scale = 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))
        if at_once:
            self._scale_gradients(gradients)
        return norm

    @torch.no_grad()
    def step(self, closure: None = None, *, rows: int = 1) -> None:  # type: ignore[override]
        """A step of all groups; those with a `fisher_decay` are left without gradients.

        Args:
            rows: examples that the loss is the mean over. It matters to a `fisher_decay` alone, where batches differ in
                size; the same number at every step scales all scores alike.
        """
        assert closure is None
        for group in self.param_groups:
            if "fisher_decay" in group:
                self._average(group, rows)
        moved = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        gradients = [p.grad for parameters in moved for p in parameters if p.grad is not None]
        kernels = cpu_kernels.kernels_for(*[p for parameters in moved for p in parameters], *gradients)
        if kernels is None or self._overflows() is not None:
            self._scale_gradients(gradients)
            super().step()
            return
        scale, self._scale = self._scale, 1.0
        for group, parameters in zip(self.param_groups, moved, strict=True):
            if parameters:
                self._step_on_cpu(kernels, group, parameters, scale)

    def _overflows(self) -> Tensor | None:
        """What a loss scaler says: not 0 if a gradient has overflowed. A fused optimizer leaves such a step out by
        itself; a loss scaler only tells it of them."""
        found: Tensor | None = getattr(self, "found_inf", None)
        return found

    def _average(self, group: dict[str, Any], rows: int) -> None:
        overflows = self._overflows()
        is_left_out = overflows is not None and bool(overflows.item())
        for score in group["params"]:
            if score.grad is not None and not is_left_out:  # none of a matrix that the model did not use
                _average_squares(score, score.grad, group["fisher_decay"], rows)
            score.grad = None  # which is what AdamW passes over

    def _scale_gradients(self, gradients: list[Tensor]) -> None:
        if self._scale != 1.0:
            torch._foreach_mul_(gradients, self._scale)
        self._scale = 1.0

    def _step_on_cpu(
        self, kernels: Kernels, group: dict[str, Any], parameters: list[nn.Parameter], scale: float
    ) -> None:
        assert not group["amsgrad"]
        assert not group["maximize"]
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


def _norm(gradients: Sequence[Tensor]) -> float:
    """The 2-norm of all of them together."""
    if not gradients or gradients[0].device.type != "cpu":
        return float(nn.utils.get_total_norm(gradients))
    if (kernels := cpu_kernels.kernels_for(*gradients)) is not None:
        return math.sqrt(kernels.sum_squares(gradients))
    # On a CPU a dot product reads memory three times as fast as torch's norm.
    flats = [gradient.reshape(-1) for gradient in gradients]
    return float(torch.stack([torch.dot(flat, flat) for flat in flats]).sum().sqrt())


def _average_squares(mean: nn.Parameter, gradient: Tensor, decay: float, rows: int) -> None:
    """mean = decay * mean + (1 - decay) * rows * gradient^2, in place.

    The square of a mean of independent rows' gradients is, but for the square of what they have in common, 1 / rows of
    the mean of their squares: so a short last batch counts no more than a full one.
    """
    if (kernels := cpu_kernels.kernels_for(mean, gradient)) is not None:
        kernels.average_squares(mean, gradient, decay, rows)
        torch.autograd.graph.increment_version(mean)
    else:
        mean.mul_(decay).addcmul_(gradient, gradient, value=(1.0 - decay) * rows)


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
