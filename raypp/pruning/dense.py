"""Null objects: with them, a dense run goes through the same training loop as a pruned one."""

from __future__ import annotations

import math

from torch import Tensor, nn

from raypp.pruning.density import DensityReport, count_density
from raypp.pruning.linear import linear_layers
from raypp.pruning.schedule import SchedulePoint


class NoPruner:
    """Leaves a model unchanged; its methods are those of `Pruner`."""

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
        if not linear_layers(self.model):  # GPT-2 has a layer class of its own instead: it cannot be pruned
            return DensityReport(linear=1.0, encoder=1.0, model=1.0, layers=())
        return count_density(self.model)

    def fold(self) -> nn.Module:
        return self.model


class NoSchedule:
    """Is at its end at every step."""

    def at(self, step: int) -> SchedulePoint:
        return SchedulePoint(value=None, progress=1.0, penalty_lambda=0.0, is_final=True)
