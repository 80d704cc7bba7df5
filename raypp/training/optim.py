"""AdamW with a separate learning rate for scores, or with running means of squared gradients as scores, and the linear
warmup and decay of the learning rates."""

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
    """The optimizer of a model, with these parameter groups:

    - weights, with weight decay; biases and norms, without it;
    - scores, without weight decay (torch's default would be 0.01), with their own learning rate or, for
      `FisherPruning`, as running means.
    """
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
            # DeBERTa's q_bias and v_bias are parameters of its attention, and not the biases of linear layers.
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
        groups.append(
            {"name": "mask", "params": score_parameters, "lr": mask_rate, "peak_rate": mask_rate, "weight_decay": 0.0}
        )
    return AdamW(
        [group for group in groups if group["params"]],
        lr=rate,
        betas=settings.adam_betas,
        eps=settings.adam_epsilon,
        fused=True,
    )


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW with two differences.

    On a CPU, clipping the gradients and the step are a single pass over memory. Groups with a `fisher_decay` take no
    step: their parameters become running means of their squared gradients, each times the number of rows of its batch.
    (The optimizer does this because a loss scaler unscales the gradients of an optimizer, and skips its step if they
    overflow.)
    """

    _scale = 1.0
    """The next step multiplies the gradients by this factor, and resets it to 1."""

    @torch.no_grad()
    def clip_gradients(self, max_norm: float | None, *, at_once: bool = False) -> float:
        """Clips the common norm of the gradients of all parameters that take a step.

        Args:
            max_norm: None to leave the gradients as they are.
            at_once: scale the gradients now, so that they can be logged; otherwise the next step scales them.

        Returns:
            The norm before clipping.
        """
        gradients = [
            parameter.grad
            for group in self.param_groups
            if "fisher_decay" not in group
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = _norm(gradients)
        # The 1e-6 against a division by 0 is torch's.
        self._scale = 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))
        if at_once:
            self._scale_gradients(gradients)
        return norm

    @torch.no_grad()
    def step(self, closure: None = None, *, rows: int = 1) -> None:  # type: ignore[override]
        """Takes a step. Afterwards the parameters of groups with a `fisher_decay` have no gradients.

        Args:
            rows: number of examples (for a language model: of targets) that the loss is the mean of. It only matters
                with a `fisher_decay` and batches of different sizes; a constant number scales all scores by the same
                factor.
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
        """A tensor set by a loss scaler: not 0 if a gradient has overflowed; None without a scaler. A fused optimizer
        must skip such a step itself."""
        found: Tensor | None = getattr(self, "found_inf", None)
        return found

    def _average(self, group: dict[str, Any], rows: int) -> None:
        overflows = self._overflows()
        is_skipped = overflows is not None and bool(overflows.item())
        for score in group["params"]:
            if score.grad is not None and not is_skipped:  # a matrix that the model did not use has no gradient
                _average_squares(score, score.grad, group["fisher_decay"], rows)
            score.grad = None  # so that AdamW skips it

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
            if not state:  # the same initial state as torch's
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
    """The 2-norm of all gradients together."""
    if not gradients or gradients[0].device.type != "cpu":
        return float(nn.utils.get_total_norm(gradients))
    if (kernels := cpu_kernels.kernels_for(*gradients)) is not None:
        return math.sqrt(kernels.sum_squares(gradients))
    # On a CPU, a dot product reads memory three times as fast as torch's norm.
    flats = [gradient.reshape(-1) for gradient in gradients]
    return float(torch.stack([torch.dot(flat, flat) for flat in flats]).sum().sqrt())


def _average_squares(mean: nn.Parameter, gradient: Tensor, decay: float, rows: int) -> None:
    """mean = decay * mean + (1 - decay) * rows * gradient^2, in place.

    For independent rows whose gradients have mean 0, the expected square of the batch's mean gradient is 1 / rows times
    the mean of the rows' squared gradients. The factor `rows` makes a short last batch count as much as a full one.
    """
    if (kernels := cpu_kernels.kernels_for(mean, gradient)) is not None:
        kernels.average_squares(mean, gradient, decay, rows)
        torch.autograd.graph.increment_version(mean)
    else:
        mean.mul_(decay).addcmul_(gradient, gradient, value=(1.0 - decay) * rows)


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The current learning rates by the name of their group."""
    return {group["name"]: group["lr"] for group in optimizer.param_groups if "peak_rate" in group}


def rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """The factor of the peak learning rate at a step (counted from 0): a linear warmup, then a linear decay to 0."""
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets the learning rate of every group to its peak rate times `factor`."""
    for group in optimizer.param_groups:
        if "peak_rate" in group:
            group["lr"] = group["peak_rate"] * factor
