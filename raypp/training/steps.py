"""How long a run is: its optimizer steps, its warmup, and the steps after which it evaluates and saves."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from raypp.config import EvaluationSettings, TrainSettings
from raypp.errors import ConfigError


@dataclass(frozen=True)
class StepPlan:
    """The optimizer steps of a run, all known before the first one."""

    epoch_steps: tuple[int, ...]
    """Global batches of each epoch that the run begins; the numbers differ if batches are cut by tokens."""
    total: int
    warmup: int
    evaluation: EvaluationSettings
    between_checkpoints: int | None

    def place(self, step: int) -> tuple[int, int]:
        """The epoch of a step and the number of its batch in that epoch, both counted from 0."""
        epoch = bisect_right(self._ends, step)
        return epoch, step - (self._ends[epoch - 1] if epoch else 0)

    @cached_property
    def _ends(self) -> list[int]:
        """Total steps at the end of each epoch."""
        return list(accumulate(self.epoch_steps))

    def epochs_after(self, done: int) -> float:
        """Number of epochs, with a fraction, after `done` steps."""
        epoch, place = self.place(done)
        return epoch + (place / self.epoch_steps[epoch] if place else 0)

    def evaluates_after(self, done: int) -> bool:
        """Whether the run evaluates after `done` steps. It always does after the last one."""
        if done == self.total:
            return True
        if self.evaluation.every_steps is not None:
            return done % self.evaluation.every_steps == 0
        return self._evaluations(done) > self._evaluations(done - 1)

    def _evaluations(self, done: int) -> int:
        return math.floor(self.epochs_after(done) / (self.evaluation.every_epochs or 1) + 1e-9)

    def saves_after(self, done: int) -> bool:
        """Whether the run writes a checkpoint after `done` steps. It always does at an evaluation."""
        return self.evaluates_after(done) or (
            self.between_checkpoints is not None and done % self.between_checkpoints == 0
        )


def plan_steps(
    settings: TrainSettings,
    evaluation: EvaluationSettings,
    batches_of: Callable[[int], int],
    checkpoint_every_steps: int | None = None,
) -> StepPlan:
    """Plans the steps of a run.

    Args:
        batches_of: returns the number of global batches of an epoch, counted from 0 (`batches.batch_counter`).

    Raises:
        ConfigError: the warmup is longer than the run.
    """
    counts: list[int] = []
    if settings.max_steps is not None:
        total, begun = settings.max_steps, 0
        while begun < total:
            counts.append(batches_of(len(counts)))
            begun += counts[-1]
    else:
        epochs = settings.epochs or 0
        counts = [batches_of(epoch) for epoch in range(math.ceil(epochs))]
        unused = math.floor((math.ceil(epochs) - epochs) * counts[-1] + 1e-9)
        total = sum(counts) - unused
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = int((settings.warmup_fraction or 0) * total)
    if warmup > total:
        raise ConfigError(
            f"train.warmup_steps: {warmup} is more than the {total} steps of the run; give at most {total}"
        )
    return StepPlan(tuple(counts), total, warmup, evaluation, checkpoint_every_steps)
