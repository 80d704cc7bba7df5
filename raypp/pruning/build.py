"""Builds the pruner of a run and its schedule."""

from __future__ import annotations

from torch import nn

from raypp.config import PruningSettings
from raypp.pruning.dense import NoPruner, NoSchedule
from raypp.pruning.pruner import Pruner
from raypp.pruning.schedule import PruningSchedule


def build_pruning(
    model: nn.Module, settings: PruningSettings | None, total_steps: int, warmup_steps: int, seed: int
) -> tuple[Pruner, PruningSchedule] | tuple[NoPruner, NoSchedule]:
    """The pruner of a model and its schedule; for a dense run (settings None), their null objects.

    Raises:
        ConfigError: see `Pruner` and `PruningSchedule`.
    """
    if settings is None:
        return NoPruner(model), NoSchedule()
    return Pruner(model, settings, seed=seed), PruningSchedule(settings, total_steps, warmup_steps)
