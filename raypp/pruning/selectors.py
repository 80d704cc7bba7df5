"""How each method turns the scores of a model's layers into their masks.

There is one selector for each way to choose, and `build_selector` picks it by the settings. What a selector remembers
between steps changes only how long a selection takes, never its result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from raypp.config import (
    DensityPruning,
    L0Pruning,
    PruningSettings,
    SigmoidThresholdPruning,
    TargetedPruning,
    ThresholdPruning,
    ThresholdPruningBase,
)
from raypp.pruning.gates import GATE_CLOSES, hard_concrete, sample_gates
from raypp.pruning.level import density_above, final_score, logit, sigmoid
from raypp.pruning.linear import MaskedLinear
from raypp.pruning.masks import (
    Selection,
    ThresholdHint,
    floor_count,
    keep_above,
    keep_largest,
    kept_count,
)
from raypp.pruning.schedule import SchedulePoint
from raypp.seeds import named_seed

# With a target density, the lowest gate that is kept opens at least as far as a score this far above GATE_CLOSES would.
GATE_MARGIN = 0.01


class Selector(ABC):
    """Sets the masks of a model's layers."""

    def __init__(self, layers: Mapping[str, MaskedLinear], seed: int) -> None:
        self.names, self.layers = list(layers), list(layers.values())
        self.seeds = [named_seed(seed, name) for name in layers]
        """For each layer, the seed of the order in which equal scores are kept."""

    @abstractmethod
    def select(self, point: SchedulePoint, noise_seed: int | None) -> None:
        """Sets every layer's mask; see `Pruner.refresh`."""

    @abstractmethod
    def describe(self, point: SchedulePoint) -> dict[str, float]:
        """The metrics of a step's selection, by key."""

    def scores(self) -> list[Tensor]:
        """The learned scores of every layer, (out, in) each."""
        return [layer.mask_scores for layer in self.layers if layer.mask_scores is not None]

    def set_masks(self, masks: Iterable[Tensor]) -> None:
        """Gives each layer its boolean mask."""
        for layer, mask in zip(self.layers, masks, strict=True):
            layer.mask = mask


class LargestSelector(Selector):
    """Keeps the largest scores (topk, fisher) or absolute weights (magnitude)."""

    def __init__(self, layers: Mapping[str, MaskedLinear], seed: int, scope: Literal["local", "global"]) -> None:
        super().__init__(layers, seed)
        size = len(layers) if scope == "global" else 1
        self._groups = [(slice(start, start + size), ThresholdHint()) for start in range(0, len(layers), size)]
        self._magnitudes: list[Tensor] = []

    def select(self, point: SchedulePoint, noise_seed: int | None) -> None:
        assert point.value is not None, "the schedule has a density"
        importance = self.scores() or self._absolute_weights()
        selections = []
        for group, hint in self._groups:
            count = kept_count(point.value, sum(matrix.numel() for matrix in importance[group]))
            selections.append(Selection(importance[group], count, self.seeds[group], hint))
        self.set_masks(chain.from_iterable(keep_largest(selections)))

    def describe(self, point: SchedulePoint) -> dict[str, float]:
        assert point.value is not None, "the schedule has a density"
        return {"prune/requested_density": point.value}

    def _absolute_weights(self) -> list[Tensor]:
        """The absolute weights of every layer. On a GPU, a few launches compute all of them; on a CPU, they are written
        where the last ones were, because new memory takes longer there."""
        weights: list[Tensor] = [layer.weight for layer in self.layers]
        if weights[0].is_cuda:
            return list(torch._foreach_abs(weights))
        if not self._magnitudes:
            self._magnitudes = [torch.empty_like(weight) for weight in weights]
        scratch = [last.to(weight) for last, weight in zip(self._magnitudes, weights, strict=True)]
        self._magnitudes = [torch.abs(weight, out=last) for weight, last in zip(weights, scratch, strict=True)]
        return self._magnitudes


class ThresholdSelector(Selector):
    """Keeps the scores above the schedule's threshold (threshold) or above its logit (sigmoid_threshold)."""

    def __init__(self, layers: Mapping[str, MaskedLinear], seed: int, settings: ThresholdPruningBase) -> None:
        super().__init__(layers, seed)
        self.is_probability = isinstance(settings, SigmoidThresholdPruning)
        self.minimums = _minimums(self.layers, settings)

    def select(self, point: SchedulePoint, noise_seed: int | None) -> None:
        assert point.value is not None, "the schedule has a threshold"
        threshold = logit(point.value) if self.is_probability else point.value
        self.set_masks(keep_above(self.scores(), threshold, self.minimums, self.seeds))

    def describe(self, point: SchedulePoint) -> dict[str, float]:
        assert point.value is not None, "the schedule has a threshold"
        return {"prune/threshold": point.value}


class GateSelector(Selector):
    """Makes the masks l0's hard concrete gates."""

    def __init__(self, layers: Mapping[str, MaskedLinear], seed: int) -> None:
        super().__init__(layers, seed)
        self._set(self.gates(None))  # a mask of ones, which layers begin with, would have no derivative

    def select(self, point: SchedulePoint, noise_seed: int | None) -> None:
        self._set(self.gates(noise_seed))

    def describe(self, point: SchedulePoint) -> dict[str, float]:
        return {}

    @torch.no_grad()
    def gates(self, noise_seed: int | None, lift: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """The gates of each matrix and their derivatives.

        Args:
            noise_seed: see `Pruner.refresh`.
            lift: scalar that is added to all scores first.
        """
        if noise_seed is not None:
            return sample_gates(self.scores(), [named_seed(noise_seed, name) for name in self.names], lift)
        return [hard_concrete(matrix if lift is None else matrix + lift, None) for matrix in self.scores()]

    def _set(self, gates: list[tuple[Tensor, Tensor]]) -> None:
        for layer, (gate, slope) in zip(self.layers, gates, strict=True):
            layer.set_gates(gate, slope)


class TargetSelector(Selector):
    """Keeps the requested density: the highest scores of all matrices together, at whatever threshold that takes."""

    def __init__(self, layers: Mapping[str, MaskedLinear], seed: int, settings: TargetedPruning) -> None:
        super().__init__(layers, seed)
        self.final_score = final_score(settings)
        self.is_probability = not isinstance(settings, ThresholdPruning)
        self.minimums = _minimums(self.layers, settings)
        self.gates = GateSelector(layers, seed) if isinstance(settings, L0Pruning) else None
        self._hint = ThresholdHint()
        self._lowest_kept: Tensor | None = None

    def select(self, point: SchedulePoint, noise_seed: int | None) -> None:
        assert point.target_density is not None, "the schedule has a target density"
        scores = self.scores()
        count = kept_count(point.target_density, sum(matrix.numel() for matrix in scores))
        (masks,) = keep_largest([Selection(scores, count, self.seeds, self._hint, self.minimums)])
        found = self._hint.found
        self._lowest_kept = torch.stack([matrix.min() for matrix in scores]).min() if found is None else found
        if self.gates is None:
            self.set_masks(masks)
            return
        lift = (GATE_CLOSES + GATE_MARGIN - self._lowest_kept).clamp(min=0)
        gates = self.gates.gates(noise_seed, lift)
        for layer, mask, (gate, slope) in zip(self.layers, masks, gates, strict=True):
            layer.set_gates(gate, slope, kept=mask)

    def describe(self, point: SchedulePoint) -> dict[str, float]:
        """Includes the density that the final threshold alone would keep now, which shows what lambda has achieved."""
        assert point.target_density is not None, "the schedule has a target density"
        assert self._lowest_kept is not None, "masks are refreshed before they are described"
        lowest = float(self._lowest_kept)
        return {
            "prune/requested_density": point.target_density,
            "prune/threshold": sigmoid(lowest) if self.is_probability else lowest,
            "prune/density_by_lambda": density_above(self.scores(), self.final_score),
        }


def _minimums(layers: Sequence[MaskedLinear], settings: TargetedPruning) -> list[int]:
    """The least number of weights that each layer keeps; empty for l0, which has no density floor."""
    if not isinstance(settings, ThresholdPruningBase):
        return []
    return [floor_count(settings.density_floor, layer.weight.numel()) for layer in layers]


def build_selector(settings: PruningSettings, layers: Mapping[str, MaskedLinear], seed: int) -> Selector:
    """The selector of a method for these layers."""
    if isinstance(settings, DensityPruning):
        return LargestSelector(layers, seed, settings.scope)
    if settings.target_density is not None:
        return TargetSelector(layers, seed, settings)
    if isinstance(settings, ThresholdPruningBase):
        return ThresholdSelector(layers, seed, settings)
    return GateSelector(layers, seed)
