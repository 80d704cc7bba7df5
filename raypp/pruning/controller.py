"""Feedback control that finds the penalty's lambda for a target density (`pruning.target_density`).

Lambda makes scores fall faster or slower, so the controlled quantity is a speed. Each step measures the *level*: the
score above which the target density of all weights lies. The level has to reach the final threshold when the final
warmup begins. The needed speed is the level's remaining distance divided by the farthest that scores can move until
then (Adam moves a score by about its learning rate per step, and the learning rates are known). The current speed is
the level's own movement. The logarithm of lambda moves by the difference of both. So the control needs no model of the
gradients, it looks ahead further than the delay of Adam's moments, and it comes to rest when the scores arrive.

The pruner chooses the threshold of each step (`TargetSelector`), so that the requested density holds at every step. It
reaches the final threshold by itself if lambda did its work; `prune/density_by_lambda` shows how far it did.

The density itself would be a worse measure. It is 1 until the first scores reach the threshold, and lambda would be
raised all the while; then most scores pass the threshold within a few steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import accumulate

from raypp.config import PruningSettings, TargetedPruning
from raypp.pruning.level import final_score
from raypp.pruning.schedule import PruningSchedule, SchedulePoint
from raypp.training.optim import rate_factor

# How far log(lambda) would move until the final warmup begins if the speed were always wrong by 1. In a tenth of that
# time, lambda can change by a factor of e ** 3.
GAIN = 30.0
# The greatest needed speed. At a speed of 1 all scores fall alike, and no longer show which weights matter.
FASTEST = 0.9
# The greatest factor between lambda and its first guess, up or down. Lambda is never negative: scores that the penalty
# pushes up show as little, and the pruner's threshold keeps the requested density anyway.
RANGE = 1e4
# Weight of the newest speed in its running mean.
SMOOTHING = 0.2


@dataclass
class ControllerState:
    """The controller's state: plain numbers, which a checkpoint holds exactly, as JSON."""

    log_factor: float = 0.0
    """Logarithm of lambda divided by its first guess."""
    speed: float = 0.0
    """The level's smoothed speed of falling, in learning rates per step."""
    level: float | None = None
    """The level at the previous step; None before the first one."""


class LambdaController:
    """Moves lambda at every step. All workers have the same scores, so they have the same lambda."""

    def __init__(self, first_lambda: float, goal: float, rates: list[float], arrival: int) -> None:
        """
        Args:
            first_lambda: the first guess of lambda.
            goal: the score that the level has to reach.
            rates: learning rate of the scores at each step of the run.
            arrival: the step at which the level has to reach the goal, and from which it has to stay there.
        """
        self.first_lambda, self.goal, self.rates, self.arrival = first_lambda, goal, rates, arrival
        self.state = ControllerState()
        self._way_until = [0.0, *accumulate(rates)]

    def observe(self, step: int, level: float) -> None:
        """Updates lambda by the level at a step. Called once per optimizer step, in order."""
        state = self.state
        if state.level is not None and self.rates[step - 1] > 0:
            fallen = (state.level - level) / self.rates[step - 1]
            state.speed += SMOOTHING * (_within(fallen, 2.0) - state.speed)
            gain = GAIN / max(1, self.arrival)
            error = _within(self.needed_speed(step, level) - state.speed, 1.0)
            state.log_factor = _within(state.log_factor + gain * error, math.log(RANGE))
        state.level = level

    def needed_speed(self, step: int, level: float) -> float:
        """The speed at which the level reaches the goal in time (during the final warmup: by its end), from -FASTEST to
        FASTEST; 1 is the speed at which all scores move by their learning rate."""
        end = self.arrival if step < self.arrival else len(self.rates)
        reach = self._way_until[end] - self._way_until[step]
        return _within((level - self.goal) / reach, FASTEST) if reach > 0 else 0.0

    def at(self, point: SchedulePoint) -> SchedulePoint:
        """The schedule's point with the controller's lambda."""
        return replace(point, penalty_lambda=self.first_lambda * math.exp(self.state.log_factor))

    def state_dict(self) -> dict[str, float | None]:
        return asdict(self.state)

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        self.state = ControllerState(**state)  # type: ignore[arg-type]


class NoController:
    """Null object: lambda follows the schedule."""

    def observe(self, step: int, level: float) -> None:
        pass

    def at(self, point: SchedulePoint) -> SchedulePoint:
        return point

    def state_dict(self) -> dict[str, float | None]:
        return {}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        pass


def build_controller(
    settings: PruningSettings | None, total_steps: int, warmup_steps: int
) -> LambdaController | NoController:
    """The controller of a run with a target density; the null object for all other runs.

    Raises:
        ConfigError: see `PruningSchedule`.
    """
    if not isinstance(settings, TargetedPruning) or settings.target_density is None:
        return NoController()
    assert settings.penalty is not None, "a target has a penalty"
    rates = [settings.mask_learning_rate * rate_factor(step, warmup_steps, total_steps) for step in range(total_steps)]
    arrival = PruningSchedule(settings, total_steps, warmup_steps).last_step
    return LambdaController(settings.penalty.final_lambda, final_score(settings), rates, arrival)


def _within(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))
