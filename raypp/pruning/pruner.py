"""Puts masks on the linear layers of a loaded model, keeps them up to date, and removes them again.

A pruning method has three parts: where the scores come from (learned, or the weights themselves), how masks follow from
them (`selectors.py`), and how a mask acts on its weight (`MaskedLinear`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from raypp.config import (
    FisherPruning,
    PruningSettings,
    ScoredPruning,
    ScoreInitialization,
    TargetedPruning,
    ThresholdPruningBase,
)
from raypp.errors import ConfigError
from raypp.pruning.density import DensityReport, count_density
from raypp.pruning.level import score_quantile
from raypp.pruning.linear import MaskedLinear, masked_layers, select_layers
from raypp.pruning.masks import floor_count, kept_count
from raypp.pruning.penalty import add_penalty
from raypp.pruning.schedule import SchedulePoint
from raypp.pruning.selectors import build_selector
from raypp.seeds import named_seed


class Pruner:
    """Owns the masks of one model.

    It replaces the chosen linear layers by `MaskedLinear`, in place; `fold` puts plain ones back. In between, the
    training loop calls `refresh` once per optimizer step, and after it loads a state dict.
    """

    def __init__(self, model: nn.Module, settings: PruningSettings, *, seed: int = 0) -> None:
        """Patches `model`.

        Args:
            model: a loaded Hugging Face model of any family, a bare encoder, or any other module.
            settings: the method, the layers and the initial scores.
            seed: seed of the initial scores and of the order of equal scores. Each matrix has a seed of its own, which
                follows from this one and the matrix's name.

        Raises:
            ConfigError: the layer rule matches no layer (see `linear.select_layers`), or the target density is below
                what the density floor keeps of these matrices.
            ValueError: the model is already patched.
        """
        if masked_layers(model):
            raise ValueError("the model is already patched; fold it first")
        self.model = model
        self.settings = settings
        self.seed = seed
        self.layers: dict[str, MaskedLinear] = {}
        self.level = math.nan
        """With a target density: the score above which this part of all weights lay at the last `refresh`
        (`score_quantile`). The controller of lambda reads it."""
        self._folded = False
        chosen = select_layers(model, settings.layers)
        check_density_floor(settings, list(chosen.values()))
        for name, linear in chosen.items():
            scores = None
            if isinstance(settings, ScoredPruning):
                scores = initial_scores(linear.weight.shape, settings.score_initialization, named_seed(seed, name))
            elif isinstance(settings, FisherPruning):
                scores = torch.zeros(linear.weight.shape)
            self.layers[name] = MaskedLinear.from_linear(linear, scores)
        self._selector = build_selector(settings, self.layers, seed)
        self._replace({linear: self.layers[name] for name, linear in chosen.items()})

    def scores(self) -> list[tuple[str, nn.Parameter]]:
        """The learned scores, (out, in) each, with their layers' names; empty for a method without scores."""
        return [(name, layer.mask_scores) for name, layer in self.layers.items() if layer.mask_scores is not None]

    @torch.no_grad()
    def refresh(self, point: SchedulePoint, *, noise_seed: int | None = None) -> None:
        """Computes all masks from the current scores (magnitude: from the current weights).

        Args:
            point: the schedule's density or threshold.
            noise_seed: for l0, the seed of the sampled gates (training); None gives the deterministic gates
                (evaluation). The other methods have no noise.

        Raises:
            FloatingPointError: a score (magnitude: a weight) is NaN; names the layers.
        """
        self._require_patched()
        self._inspect_scores()
        self._selector.select(point, noise_seed)

    def add_penalty(self, factor: float | Tensor) -> Tensor:
        """Adds the gradient of factor * penalty to the scores' gradients; returns the unweighted penalty, a scalar.

        Raises:
            ValueError: the settings have no penalty.
        """
        self._require_patched()
        settings = self.settings
        if not isinstance(settings, ScoredPruning) or settings.penalty is None:
            raise ValueError(f"{settings.method} has no penalty here")
        return add_penalty(
            [scores for _, scores in self.scores()], settings.penalty.kind, settings.penalty.mean, factor
        )

    def describe(self, point: SchedulePoint) -> dict[str, float]:
        """The metrics of a step, by key: its requested density or threshold, and lambda if there is a penalty."""
        described = self._selector.describe(point)
        if isinstance(self.settings, ScoredPruning) and self.settings.penalty is not None:
            described["prune/penalty_lambda"] = point.penalty_lambda
        return described

    def density(self) -> DensityReport:
        """Achieved density with the current masks; after `fold`, the density of the same layers of the folded model."""
        return count_density(self.model, self.layers)

    def fold(self) -> nn.Module:
        """Puts plain linear layers back, with pruned weights exactly 0.0, and returns the model.

        The pruner cannot be used afterwards, except for `density`.
        """
        self._require_patched()
        self._replace({layer: layer.to_linear() for layer in self.layers.values()})
        self._folded = True
        return self.model

    def _inspect_scores(self) -> None:
        """Refuses NaN and, with a target density, measures the level. The host waits for the device once.

        A sum is NaN if any summand is, and a sum is cheap; the exact check is only made then. On a GPU, a few launches
        for all matrices together sum the absolute values.
        """
        sources = {
            name: layer.weight if layer.mask_scores is None else layer.mask_scores
            for name, layer in self.layers.items()
        }
        tensors: list[Tensor] = list(sources.values())
        if tensors[0].is_cuda:
            sums = list(torch._foreach_norm(tensors, 1))
        else:
            sums = [tensor.sum(dtype=torch.float32) for tensor in tensors]
        found = torch.stack(sums).isnan().any().view(1)
        if isinstance(self.settings, TargetedPruning) and self.settings.target_density is not None:
            level = score_quantile(tensors, self.settings.target_density)
            found = torch.cat([found.float(), level.view(1)])
        has_nan, *levels = found.tolist()
        if levels:
            self.level = levels[0]
        if not has_nan:
            return
        if names := [name for name, source in sources.items() if bool(source.isnan().any())]:
            kind = "scores" if self.scores() else "weights"
            raise FloatingPointError(f"NaN in the {kind} of {', '.join(names[:5])}" + (" …" if len(names) > 5 else ""))

    def _require_patched(self) -> None:
        if self._folded:
            raise RuntimeError("the model is folded: it has no masks any more")

    def _replace(self, replacements: Mapping[nn.Module, nn.Module]) -> None:
        """Replaces modules everywhere in the model, also where one module is used in several places."""
        for parent in list(self.model.modules()):
            for name, child in list(parent._modules.items()):  # named_children() gives a shared module only once
                if child is not None and child in replacements:
                    setattr(parent, name, replacements[child])


def initial_scores(shape: torch.Size, initialization: ScoreInitialization, seed: int) -> Tensor:
    """Initial scores of one matrix: float32 on the CPU, from a separate generator, so they are the same everywhere.

    Args:
        shape: (out, in).
        initialization: constant; uniform in [-scale, scale]; or kaiming (He et al. 2015 with a = sqrt(5), that is
            uniform in [-1, 1] / sqrt(in)), times scale.
        seed: seed of this matrix.
    """
    if initialization.kind == "constant":
        return torch.full(shape, initialization.scale, dtype=torch.float32)
    bound = initialization.scale / (math.sqrt(shape[1]) if initialization.kind == "kaiming" else 1.0)
    return torch.empty(shape, dtype=torch.float32).uniform_(
        -bound, bound, generator=torch.Generator().manual_seed(seed)
    )


def check_density_floor(settings: PruningSettings, layers: Sequence[nn.Linear]) -> None:
    """Refuses a target density that is below what the density floor keeps of these layers.

    The floor keeps one weight more than its part of each matrix (`floor_count`), which matters for tiny matrices.

    Raises:
        ConfigError: the target density is too low; names the lowest possible one.
    """
    if not isinstance(settings, ThresholdPruningBase) or settings.target_density is None:
        return
    density, floor = settings.target_density, settings.density_floor
    sizes = [layer.weight.numel() for layer in layers]
    least = sum(floor_count(floor, size) for size in sizes)
    if kept_count(density, sum(sizes)) < least:
        raise ConfigError(
            f"pruning.target_density={density} is less than what pruning.density_floor={floor} keeps of these "
            f"{len(sizes)} matrices, {least} of {sum(sizes)} weights; give at least {least / sum(sizes):.4g}"
        )
