"""The cubic schedule of the density or the threshold, and of the penalty's lambda.

Steps are counted from 0. Optimizer step `s` uses the masks of `at(s)`, and the evaluation after the last step uses
those of `at(total_steps)`, which always has the final value.
"""

from __future__ import annotations

from dataclasses import dataclass

from raypp.config import DensityPruning, PruningSettings, ScoredPruning, TargetedPruning, ThresholdPruningBase
from raypp.errors import ConfigError


@dataclass(frozen=True)
class SchedulePoint:
    """The scheduled values at one step."""

    value: float | None
    """Density (topk, magnitude, fisher) or threshold (sigmoid_threshold, threshold); None for l0, which has none."""
    progress: float
    """0 until the initial warmup ends, 1 from the final warmup on, and cubic in between."""
    penalty_lambda: float
    """Weight of the penalty; 0 without a penalty."""
    is_final: bool
    """Whether the density has its final value, so that a checkpoint of this step may be delivered. If no density is
    requested, only the last step is final, because scores fall below the final threshold (l0: close gates) until
    then."""
    target_density: float | None = None
    """Density requested from a threshold method or l0 at this step; None without `pruning.target_density`."""


class PruningSchedule:
    """Initial value, cubic descent, final value (Zhu and Gupta 2017; Sanh et al. 2020, section 5).

    With iw = initial_warmup * warmup_steps and fw = final_warmup * warmup_steps, for iw < step <= total_steps - fw:
        value = final + (initial - final) * (1 - (step - iw) / (total_steps - iw - fw)) ** 3
    and lambda = final_lambda * progress. For the paper's soft movement pruning (initial threshold 0) this is the
    original's lambda = final_lambda * value / final. Elsewhere it differs on purpose: the original's formula divides by
    zero at a final threshold of 0, lets lambda fall for topk, and keeps it constant for l0.
    """

    def __init__(self, settings: PruningSettings, total_steps: int, warmup_steps: int) -> None:
        """
        Args:
            settings: the method and its initial and final values.
            total_steps: optimizer steps of the run.
            warmup_steps: warmup steps of the learning rate, the unit of the schedule's own warmups.

        Raises:
            ConfigError: the warmups leave no step for the cubic phase, so the schedule could not reach its end.
        """
        self.first_step = settings.initial_warmup * warmup_steps
        self.last_step = total_steps - settings.final_warmup * warmup_steps
        if self.last_step <= self.first_step:
            raise ConfigError(_unreachable(settings, total_steps, warmup_steps))
        self.initial, self.final = _ends(settings)
        self.final_step = self.last_step
        if settings.requested_density is None:
            self.final_step = total_steps
        elif isinstance(settings, DensityPruning) and self.initial == self.final:
            self.final_step = 0
        self.target_density = settings.target_density if isinstance(settings, TargetedPruning) else None
        penalty = settings.penalty if isinstance(settings, ScoredPruning) else None
        self.final_lambda = 0.0 if penalty is None else penalty.final_lambda

    def at(self, step: int) -> SchedulePoint:
        """The scheduled values at a step; steps beyond `total_steps` have the final values.

        Raises:
            ValueError: the step is negative.
        """
        if step < 0:
            raise ValueError(f"steps are counted from 0, got {step}")
        if step <= self.first_step:
            remaining = 1.0
        elif step >= self.last_step:
            remaining = 0.0
        else:
            remaining = (1 - (step - self.first_step) / (self.last_step - self.first_step)) ** 3
        progress = 1.0 - remaining
        return SchedulePoint(
            value=_between(self.initial, self.final, remaining),
            progress=progress,
            penalty_lambda=self.final_lambda * progress,
            is_final=step >= self.final_step,
            target_density=_between(1.0, self.target_density, remaining),
        )


def _between(initial: float | None, final: float | None, remaining: float) -> float | None:
    """The scheduled number when the part `remaining` (1 to 0) of the way is left; None without a scheduled number."""
    if initial is None or final is None:
        return None
    if remaining == 1.0:  # rounding must not turn a density of 1 into less
        return initial
    return final + (initial - final) * remaining


def _ends(settings: PruningSettings) -> tuple[float | None, float | None]:
    """The initial and the final value of the scheduled number; None for l0, which has none."""
    if isinstance(settings, DensityPruning):
        return settings.initial_density, settings.final_density
    if isinstance(settings, ThresholdPruningBase):
        return settings.initial_threshold, settings.final_threshold
    return None, None


def _unreachable(settings: PruningSettings, total_steps: int, warmup_steps: int) -> str:
    warmups = settings.initial_warmup + settings.final_warmup
    allowed = [f"at least {warmups * warmup_steps + 1} training steps"]
    if warmups and total_steps > 0:
        most = (total_steps - 1) // warmups
        allowed.append(f"train.warmup_steps of at most {most} (train.warmup_fraction {most / total_steps:.3g})")
    if warmup_steps and total_steps > 0:
        allowed.append(f"initial_warmup + final_warmup of at most {(total_steps - 1) // warmup_steps}")
    return (
        f"pruning.initial_warmup={settings.initial_warmup}, pruning.final_warmup={settings.final_warmup} and "
        f"train.warmup_steps={warmup_steps} leave no step to prune in: the warmups take "
        f"({settings.initial_warmup} + {settings.final_warmup}) * {warmup_steps} = {warmups * warmup_steps} steps of "
        f"{total_steps} (train.epochs or train.max_steps). Allowed: " + ", or ".join(allowed)
    )
