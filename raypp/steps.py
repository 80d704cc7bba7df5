"""How long a run is: its optimizer steps, its warmup, and the steps after which it evaluates and saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raypp.config import EvaluationSettings, TrainSettings
from raypp.errors import ConfigError


@dataclass(frozen=True)
class StepPlan:
    """Numbers of optimizer steps, all known before the first one."""

    per_epoch: int
    total: int
    warmup: int
    between_evaluations: int
    between_checkpoints: int

    def evaluates_after(self, done: int) -> bool:
        """Whether dev is evaluated after so many steps; after the last one always."""
        return done == self.total or done % self.between_evaluations == 0

    def saves_after(self, done: int) -> bool:
        """Whether a checkpoint is written after so many steps; at every evaluation always."""
        return self.evaluates_after(done) or done % self.between_checkpoints == 0


def plan_steps(
    settings: TrainSettings, evaluation: EvaluationSettings, rows: int, checkpoint_every_steps: int | None = None
) -> StepPlan:
    """Lays a run out for a training split of `rows` examples.

    Raises:
        ConfigError: the warmup is longer than the run.
    """
    per_epoch = math.ceil(rows / settings.batch_size)
    total = settings.max_steps or math.ceil((settings.epochs or 0) * per_epoch)
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = int((settings.warmup_fraction or 0) * total)
    if warmup > total:
        raise ConfigError(
            f"train.warmup_steps: {warmup} is more than the {total} steps of the run; give at most {total}"
        )
    between = evaluation.every_steps or max(1, round((evaluation.every_epochs or 1) * per_epoch))
    return StepPlan(per_epoch, total, warmup, between, checkpoint_every_steps or between)
