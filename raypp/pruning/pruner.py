"""Puts masks on an already loaded model's linear layers, keeps them up to date, and takes them off again.

A method is three things: where importance comes from (`_importance`), how it is selected (`refresh`, with `masks.py`),
and how a selection acts on the weight (`MaskedLinear`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from raypp.config import (
    DensityPruning,
    FisherPruning,
    L0Pruning,
    PruningSettings,
    ScoredPruning,
    ScoreInitialization,
    SigmoidThresholdPruning,
    TargetedPruning,
    ThresholdPruning,
    ThresholdPruningBase,
)
from raypp.errors import ConfigError
from raypp.pruning.density import DensityReport, count_density
from raypp.pruning.gates import GATE_CLOSES, hard_concrete, sample_gates
from raypp.pruning.level import density_above, final_score, logit, score_quantile, sigmoid
from raypp.pruning.linear import MaskedLinear, masked_layers, select_layers
from raypp.pruning.masks import (
    Selection,
    ThresholdHint,
    floor_count,
    keep_above,
    keep_largest,
    kept_count,
    named_seed,
)
from raypp.pruning.penalty import add_penalty
from raypp.pruning.schedule import SchedulePoint
from raypp.seeds import named_seed

# With a target density the lowest gate that is kept opens at least as far as a score this far above closing opens it.
GATE_MARGIN = 0.01


class Pruner:
    """Owns the masks of one model.

    Replaces the chosen linear layers by `MaskedLinear`, in place; `fold` puts plain ones back. Between the two, whoever
    trains calls `refresh` once per optimizer step, and after loading a state dict.
    """

    def __init__(self, model: nn.Module, settings: PruningSettings, *, seed: int = 0) -> None:
        """Patches `model`.

        Args:
            model: an already loaded Hugging Face model of any family, a bare encoder, or any module.
            settings: method, layers, initial scores.
            seed: for the initial scores and the order of ties; each matrix's follows from it and the matrix's name.

        Raises:
            ConfigError: the layer rule fits no layer (see `linear.select_layers`), or a target density is less than the
                floor of these matrices.
            ValueError: the model is patched already.
        """
        if masked_layers(model):
            raise ValueError("the model is patched already; fold it first")
        self.model = model
        self.settings = settings
        self.seed = seed
        self.layers: dict[str, MaskedLinear] = {}
        self._folded = False
        self._hints: dict[str, ThresholdHint] = {}
        self._magnitudes: dict[str, Tensor] = {}
        self._lowest_kept: Tensor | None = None
        self.level = math.nan
        """With a target density: the score above which just that part of all weights lay at the last `refresh`
        (`score_quantile`), for the controller of lambda."""
        chosen = select_layers(model, settings.layers)
        for name, linear in chosen.items():
            scores = None
            if isinstance(settings, ScoredPruning):
                scores = initial_scores(linear.weight.shape, settings.score_initialization, named_seed(seed, name))
            elif isinstance(settings, FisherPruning):
                scores = torch.zeros(linear.weight.shape)
            self.layers[name] = layer = MaskedLinear.from_linear(linear, scores)
            if isinstance(settings, L0Pruning) and layer.mask_scores is not None:
                # All ones would have no derivative. From the layer's own scores, which are on the weight's device.
                layer.set_gates(*hard_concrete(layer.mask_scores.detach(), None))
        check_density_floor(settings, list(chosen.values()))
        self._replace({linear: self.layers[name] for name, linear in chosen.items()})

    def scores(self) -> list[tuple[str, nn.Parameter]]:
        """The scores that training changes, with their layers' names; none for a method without scores."""
        return [(name, layer.mask_scores) for name, layer in self.layers.items() if layer.mask_scores is not None]

    @torch.no_grad()
    def refresh(self, point: SchedulePoint, *, noise_seed: int | None = None) -> None:
        """Recomputes all masks from the present scores (magnitude: weights).

        Args:
            point: the schedule's density or threshold.
            noise_seed: for l0, samples the gates (training); None gives the deterministic ones (evaluation). The other
                methods have no noise.

        Raises:
            FloatingPointError: a score (magnitude: a weight) is NaN; names the layers.
        """
        self._require_patched()
        self._inspect_scores()
        settings = self.settings
        if point.target_density is not None:
            self._keep_requested(point.target_density, noise_seed)
            return
        if isinstance(settings, L0Pruning):
            for layer, gates in zip(self.layers.values(), self._gates(noise_seed), strict=True):
                layer.set_gates(*gates)
            return
        assert point.value is not None, f"{settings.method} needs a schedule with a value"
        if isinstance(settings, ThresholdPruningBase):
            self._keep_above(settings, point.value)
        else:
            self._keep_largest(settings, point.value)

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
        """The metrics of a schedule's point: its density or threshold, and the lambda where there is a penalty.

        With a target density also what the final threshold by itself would keep now, which is lambda's own doing.
        """
        settings = self.settings
        described: dict[str, float] = {}
        if isinstance(settings, TargetedPruning) and point.target_density is not None:
            assert self._lowest_kept is not None, "masks are refreshed before they are described"
            lowest = float(self._lowest_kept)
            described["prune/requested_density"] = point.target_density
            described["prune/threshold"] = lowest if isinstance(settings, ThresholdPruning) else sigmoid(lowest)
            described["prune/density_by_lambda"] = density_above([s for _, s in self.scores()], final_score(settings))
        elif point.value is not None:
            name = "requested_density" if isinstance(settings, DensityPruning) else "threshold"
            described[f"prune/{name}"] = point.value
        if isinstance(settings, ScoredPruning) and settings.penalty is not None:
            described["prune/penalty_lambda"] = point.penalty_lambda
        return described

    def density(self) -> DensityReport:
        """Achieved density with the masks as they are now; after `fold`, of the folded model's same layers."""
        return count_density(self.model, self.layers)

    def fold(self) -> nn.Module:
        """Puts plain linear layers back, pruned weights exactly 0.0, and returns the model. The pruner is done then."""
        self._require_patched()
        self._replace({layer: layer.to_linear() for layer in self.layers.values()})
        self._folded = True
        return self.model

    def load_original_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads a state dict of the original movement-pruning code: `….mask_scores` beside `….weight`.

        Masks are stale afterwards: call `refresh`.

        Raises:
            ValueError: missing or unexpected keys, or shapes that do not fit; nothing is loaded then.
        """
        self._require_patched()
        expected = self.model.state_dict()
        # The original's transformers saved this constant with the embeddings; today's computes it. It had a pooler in
        # every model; today's has none where the head does not read it, as in question answering.
        is_pooled = any("pooler" in key.split(".") for key in expected)
        given = {
            key: value
            for key, value in state_dict.items()
            if not key.endswith("embeddings.position_ids") and (is_pooled or "pooler" not in key.split("."))
        }
        problems = [f"missing: {key}" for key in expected if key not in given]
        problems += [f"unexpected: {key}" for key in given if key not in expected]
        problems += [
            f"{key} is {tuple(given[key].shape)}, not {tuple(value.shape)}"
            for key, value in expected.items()
            if key in given and given[key].shape != value.shape
        ]
        if problems:
            raise ValueError("the state dict does not fit the patched model: " + "; ".join(problems))
        self.model.load_state_dict(given)

    def _keep_above(self, settings: ThresholdPruningBase, threshold: float) -> None:
        scores = [scores for _, scores in self.scores()]
        minimums = [floor_count(settings.density_floor, matrix.numel()) for matrix in scores]
        if isinstance(settings, SigmoidThresholdPruning):
            threshold = logit(threshold)
        masks = keep_above(scores, threshold, minimums, [named_seed(self.seed, name) for name in self.layers])
        for layer, mask in zip(self.layers.values(), masks, strict=True):
            layer.mask = mask

    def _keep_largest(self, settings: DensityPruning, density: float) -> None:
        names = list(self.layers)
        groups = [names] if settings.scope == "global" else [[name] for name in names]
        selections = []
        for group in groups:
            importance = [self._importance(name) for name in group]
            count = kept_count(density, sum(matrix.numel() for matrix in importance))
            seeds = [named_seed(self.seed, name) for name in group]
            selections.append(Selection(importance, count, seeds, self._hints.setdefault(group[0], ThresholdHint())))
        for group, masks in zip(groups, keep_largest(selections), strict=True):
            for name, mask in zip(group, masks, strict=True):
                self.layers[name].mask = mask

    def _keep_requested(self, density: float, noise_seed: int | None) -> None:
        """With a target density: the highest scores of all matrices together, whatever the threshold that takes."""
        settings, hint = self.settings, self._hints.setdefault("", ThresholdHint())
        scores = [scores for _, scores in self.scores()]
        count = kept_count(density, sum(matrix.numel() for matrix in scores))
        seeds = [named_seed(self.seed, name) for name in self.layers]
        minimums: list[int] = []
        if isinstance(settings, ThresholdPruningBase):
            minimums = [floor_count(settings.density_floor, matrix.numel()) for matrix in scores]
        (masks,) = keep_largest([Selection(scores, count, seeds, hint, minimums)])
        self._lowest_kept = torch.stack([m.min() for m in scores]).min() if hint.found is None else hint.found
        if isinstance(settings, L0Pruning):
            lift = (GATE_CLOSES + GATE_MARGIN - self._lowest_kept).clamp(min=0)
            for layer, mask, gates in zip(self.layers.values(), masks, self._gates(noise_seed, lift), strict=True):
                layer.set_gates(*gates, kept=mask)
        else:
            for layer, mask in zip(self.layers.values(), masks, strict=True):
                layer.mask = mask

    def _gates(self, noise_seed: int | None, lift: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """l0's gates and their derivatives, matrix by matrix; `refresh` says what the noise's seed is."""
        scores = [scores for _, scores in self.scores()]
        if noise_seed is not None:
            return sample_gates(scores, [named_seed(noise_seed, name) for name in self.layers], lift)
        return [hard_concrete(matrix if lift is None else matrix + lift, None) for matrix in scores]

    def _importance(self, name: str) -> Tensor:
        layer = self.layers[name]
        if layer.mask_scores is not None:
            return layer.mask_scores
        scratch = self._magnitudes.setdefault(name, torch.empty(0, device=layer.weight.device))
        self._magnitudes[name] = torch.abs(layer.weight, out=scratch.to(layer.weight))
        return self._magnitudes[name]

    def _inspect_scores(self) -> None:
        """Refuses NaN, and takes the level for a target density, with one wait for the device.

        Any NaN makes a sum NaN, and a sum is cheap; the exact check is for that case.
        """
        sources = {
            name: layer.weight if layer.mask_scores is None else layer.mask_scores
            for name, layer in self.layers.items()
        }
        found = torch.stack([source.sum(dtype=torch.float32) for source in sources.values()]).isnan().any().view(1)
        if isinstance(self.settings, TargetedPruning) and self.settings.target_density is not None:
            level = score_quantile(list(sources.values()), self.settings.target_density)
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
        """Exchanges modules wherever they stand, a shared one at each of its places."""
        for parent in list(self.model.modules()):
            for name, child in list(parent._modules.items()):  # named_children() would skip a shared one's second place
                if child is not None and child in replacements:
                    setattr(parent, name, replacements[child])


def initial_scores(shape: torch.Size, initialization: ScoreInitialization, seed: int) -> Tensor:
    """Initial scores of one matrix: float32 on the CPU, from a generator of their own, so the same on every machine.

    Args:
        shape: (out, in).
        initialization: constant; uniform in [-scale, scale]; or kaiming (He et al. 2015 with a = sqrt(5), that is
            uniform in [-1, 1] / sqrt(in)), times scale.
        seed: of this matrix.
    """
    if initialization.kind == "constant":
        return torch.full(shape, initialization.scale, dtype=torch.float32)
    bound = initialization.scale / (math.sqrt(shape[1]) if initialization.kind == "kaiming" else 1.0)
    return torch.empty(shape, dtype=torch.float32).uniform_(
        -bound, bound, generator=torch.Generator().manual_seed(seed)
    )


def check_density_floor(settings: PruningSettings, layers: Sequence[nn.Linear]) -> None:
    """Refuses a target density below what the floor of these layers keeps. It keeps one weight more than its part of
    each matrix, which matters where matrices are tiny."""
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
