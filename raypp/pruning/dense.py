"""The null object beside `Pruner`: a dense run goes through the same loop, with nothing to prune."""

from __future__ import annotations

import math

from torch import Tensor, nn

from raypp.config import PruningSettings
from raypp.pruning.density import DensityReport, count_density
from raypp.pruning.linear import linear_layers
from raypp.pruning.pruner import Pruner
from raypp.pruning.schedule import PruningSchedule, SchedulePoint


class NoPruner:
    """Leaves a model as it is."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.level = math.nan

    def scores(self) -> list[tuple[str, nn.Parameter]]:
        return []

    def refresh(self, point: SchedulePoint, *, noise_seed: int | None = None) -> None:
        pass

    def add_penalty(self, factor: float | Tensor) -> Tensor:
        raise AssertionError("a dense run has no penalty")

    def describe(self, point: SchedulePoint) -> dict[str, float]:
        return {}

    def density(self) -> DensityReport:
        if not linear_layers(self.model):  # GPT-2's layers are of a class of its own: nothing is pruned, nor could be
            return DensityReport(linear=1.0, encoder=1.0, model=1.0, layers=())
        return count_density(self.model)

    def fold(self) -> nn.Module:
        return self.model


class NoSchedule:
    """Always at its end."""

    def at(self, step: int) -> SchedulePoint:
        return SchedulePoint(value=None, progress=1.0, penalty_lambda=0.0, is_final=True)


def build_pruning(
    model: nn.Module, settings: PruningSettings | None, total_steps: int, warmup_steps: int, seed: int
) -> tuple[Pruner, PruningSchedule] | tuple[NoPruner, NoSchedule]:
    """The pruner of a model and its schedule; their null objects for a dense run."""
    if settings is None:
        return NoPruner(model), NoSchedule()
    return Pruner(model, settings, seed=seed), PruningSchedule(settings, total_steps, warmup_steps)
