"""The feedback that finds the penalty's lambda for a target density (`pruning.target_density`).

What lambda can do is make scores fall, faster or slower, so what is controlled is a speed. Each step says where the
score is that the target density would be cut at (the level), and that level has to arrive at the final threshold when
the final warmup begins. The way that is left, over the way that scores can go at most until then (Adam moves a score by
about its learning rate a step, and the rates are known), is the speed that is needed, as a part of the greatest; the
level's own movement is the speed there is. The logarithm of lambda moves by their difference. So the control needs no
model of the gradients, it looks ahead past the delay of Adam's moments, and it rests where the scores arrive.

The threshold in force is the pruner's (`Pruner.refresh`): it keeps the requested density at every step, and comes to be
the final threshold by itself in so far as lambda did its work; `prune/density_by_lambda` shows it.

Density itself would be a worse measure: it is 1 until the first scores reach the threshold, and then the most of them
pass it within a few steps, with a lambda that was raised all the while.
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

# Sum of all moves of log(lambda) until the final warmup begins, were the speed wrong by 1 all the time: in a tenth of
# that time lambda can change by e ** 3.
GAIN = 30.0
# A greater speed than this is not asked for: at the very greatest, all scores fall alike and say nothing any more.
FASTEST = 0.9
# How far lambda may go from its first guess, either way. It is never negative: a score that is pushed up by the penalty
# says as little, and what lambda cannot bring back, the threshold in force does.
RANGE = 1e4
SMOOTHING = 0.2


@dataclass
class ControllerState:
    """What the controller remembers; plain numbers, so a checkpoint holds them as JSON, exactly."""

    log_factor: float = 0.0
    """Logarithm of lambda over its first guess."""
    speed: float = 0.0
    """How fast the level falls, smoothed, in learning rates a step."""
    level: float | None = None
    """At the step before."""


class LambdaController:
    """Moves lambda, step by step. Every worker has the same scores, so every worker has the same lambda."""

    def __init__(self, first_lambda: float, goal: float, rates: list[float], arrival: int) -> None:
        """
        Args:
            first_lambda: where to begin.
            goal: the score that the level is to arrive at.
            rates: learning rate of the scores at each step of the run.
            arrival: the step at which the level is to be there, and then to stay.
        """
        self.first_lambda, self.goal, self.rates, self.arrival = first_lambda, goal, rates, arrival
        self.state = ControllerState()
        self._way_until = [0.0, *accumulate(rates)]

    def observe(self, step: int, level: float) -> None:
        """Takes the level at a step into account: once per optimizer step, in their order."""
        state = self.state
        if state.level is not None and self.rates[step - 1] > 0:
            fallen = (state.level - level) / self.rates[step - 1]
            state.speed += SMOOTHING * (_within(fallen, 2.0) - state.speed)
            gain = GAIN / max(1, self.arrival)
            error = _within(self.needed_speed(step, level) - state.speed, 1.0)
            state.log_factor = _within(state.log_factor + gain * error, math.log(RANGE))
        state.level = level

    def needed_speed(self, step: int, level: float) -> float:
        """The part of the greatest speed at which the level arrives in time; during the final warmup, by its end."""
        end = self.arrival if step < self.arrival else len(self.rates)
        reach = self._way_until[end] - self._way_until[step]
        return _within((level - self.goal) / reach, FASTEST) if reach > 0 else 0.0

    def at(self, point: SchedulePoint) -> SchedulePoint:
        """The schedule's point with the lambda that is in force."""
        return replace(point, penalty_lambda=self.first_lambda * math.exp(self.state.log_factor))

    def state_dict(self) -> dict[str, float | None]:
        return asdict(self.state)

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        self.state = ControllerState(**state)  # type: ignore[arg-type]


class NoController:
    """The null object beside it: lambda is what the schedule says."""

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
    """The controller of a run with a target density; the null object for any other."""
    if not isinstance(settings, TargetedPruning) or settings.target_density is None:
        return NoController()
    assert settings.penalty is not None, "a target has a penalty"
    rates = [settings.mask_learning_rate * rate_factor(step, warmup_steps, total_steps) for step in range(total_steps)]
    arrival = PruningSchedule(settings, total_steps, warmup_steps).last_step
    return LambdaController(settings.penalty.final_lambda, final_score(settings), rates, arrival)


def _within(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))
