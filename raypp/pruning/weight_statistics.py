"""Statistics of what pruning did to the weights: histograms of scores and weights, movement, heads, one mask.

All matrices are counted one by one, so the memory that this takes does not grow with the model. The result is a small
file, from which all figures of weights can be drawn later, without the model.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raypp.pruning.density import DensityReport, LayerDensity, kept_weights
from raypp.pruning.heads import AttentionHeads, count_heads
from raypp.pruning.linear import MaskedLinear, all_linear_layers
from raypp.storage import Location

STATISTICS = "statistics.npz"  # name of the file in a run's folder of figures
BINS = 240
CHUNK_WEIGHTS = 1 << 22
# A few weights are outliers, many times as far out as the others. A scale ends at this many standard deviations.
STANDARD_DEVIATIONS = 12.0
LONG_TAIL = 10.0  # scores are counted by their logarithms if the largest is this many times the mean
LOWEST_SHOWN = 1e-12  # lowest score that has a bin of its own, as a part of the largest; logarithms have no end

Counts = NDArray[np.int64]
_Linear = nn.Linear | MaskedLinear


class DifferentModel(ValueError):
    """The initial model is not the one from which the final model was trained."""


@dataclass(frozen=True)
class Histogram:
    """Histogram of one number of each weight, in bins of equal width. The outermost bins include all numbers beyond."""

    edges: NDArray[np.float64]
    """Edges of the bins, [bins + 1]."""
    kept: Counts
    """Number of kept weights in each bin, [bins]."""
    pruned: Counts
    """Number of pruned weights in each bin, [bins]."""


@dataclass(frozen=True)
class Movement:
    """A two-dimensional histogram of the weights by initial value and change (final - initial)."""

    edges: NDArray[np.float64]
    """Edges of the initial weight's bins, [bins + 1]."""
    change_edges: NDArray[np.float64]
    """Edges of the change's bins, [bins + 1]."""
    kept: Counts
    """Number of kept weights, [bins of the initial weight, bins of the change]."""
    pruned: Counts
    """The same of the pruned weights. Their final values are those without the mask (0 in a folded model)."""

    @property
    def initial(self) -> Histogram:
        """Histogram of the initial weights."""
        return Histogram(self.edges, self.kept.sum(1), self.pruned.sum(1))


_Part = TypeVar("_Part", Histogram, Movement)


@dataclass(frozen=True)
class WeightStatistics:
    """Statistics of a pruned model's weights."""

    layers: tuple[LayerDensity, ...]
    """Number of remaining weights of each pruned matrix."""
    weights: Histogram
    """Final weights of the pruned matrices."""
    movement: Movement | None
    """None if the initial weights are unknown."""
    scores: Histogram | None
    """None without scores: for pruning by magnitude, and for folded models."""
    scores_are_logarithms: bool
    """Whether the histogram is of log10 of the scores, with scores of 0 in its first bin. It is for scores that are
    never negative and span many orders of magnitude, as Fisher information does."""
    lowest_kept: tuple[float, ...]
    """The lowest kept score (magnitude: absolute weight) of each matrix; empty for a folded model."""
    heads: tuple[AttentionHeads, ...]
    """Empty if the attention is of an unknown kind."""
    mask_name: str
    """Name of the matrix whose mask is kept, the first one."""
    mask: NDArray[np.bool_]
    """Whether each weight is kept, (out, in)."""

    def save(self, file: Location) -> None:
        """Writes an .npz file: arrays, and everything else as JSON text."""
        arrays: dict[str, NDArray[np.generic]] = {"mask": self.mask}
        for name, part in (("weights", self.weights), ("movement", self.movement), ("scores", self.scores)):
            if part is not None:
                arrays |= {f"{name}_{field.name}": getattr(part, field.name) for field in fields(part)}
        rest = {
            "layers": [asdict(layer) for layer in self.layers],
            "heads": [asdict(layer) for layer in self.heads],
            "lowest_kept": self.lowest_kept,
            "mask_name": self.mask_name,
            "scores_are_logarithms": self.scores_are_logarithms,
        }
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, rest=np.array(json.dumps(rest)), **arrays)
        file.write_bytes(content.getvalue())

    @classmethod
    def load(cls, file: Location) -> WeightStatistics:
        """Reads a file that `save` wrote."""
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            rest = json.loads(str(arrays["rest"]))
            weights, scores = _part(Histogram, arrays, "weights"), _part(Histogram, arrays, "scores")
            movement, mask = _part(Movement, arrays, "movement"), arrays["mask"]
        assert weights is not None
        return cls(
            layers=tuple(LayerDensity(**layer) for layer in rest["layers"]),
            weights=weights,
            movement=movement,
            scores=scores,
            scores_are_logarithms=rest.get("scores_are_logarithms", False),  # absent in files older than method: fisher
            lowest_kept=tuple(rest["lowest_kept"]),
            heads=tuple(
                AttentionHeads(h["stack"], h["number"], tuple(h["kept"]), h["total"], tuple(h["survives"]))
                for h in rest["heads"]
            ),
            mask_name=rest["mask_name"],
            mask=mask,
        )


def _part(kind: type[_Part], arrays: Mapping[str, NDArray[Any]], name: str) -> _Part | None:
    if f"{name}_edges" not in arrays:
        return None
    return kind(**{field.name: arrays[f"{name}_{field.name}"] for field in fields(kind)})


@torch.no_grad()
def measure(model: nn.Module, density: DensityReport, initial: nn.Module | None = None) -> WeightStatistics:
    """Measures the weights of a patched model, or of a plain, folded one.

    Args:
        model: the pruned model.
        density: the density of this model, whose layers are measured.
        initial: the model before training, patched or not; None if its weights are unknown.

    Raises:
        DifferentModel: `initial` does not have one of the matrices, or has it in another shape.
    """
    found = all_linear_layers(model)
    layers = [found[layer.name] for layer in density.layers]
    weights = [layer.weight for layer in layers]
    before = None if initial is None else _initial_weights(initial, density.layers, weights)
    edges = _edges_around_zero([*weights, *(before or [])])
    patched = [layer for layer in layers if isinstance(layer, MaskedLinear)]
    scores, are_logarithms = _count_scores(patched)
    return WeightStatistics(
        layers=density.layers,
        weights=Histogram(edges, *_count(((kept_weights(layer), layer.weight) for layer in layers), [edges])),
        movement=None if before is None else _count_movement(layers, before, edges),
        scores=scores,
        scores_are_logarithms=are_logarithms,
        lowest_kept=tuple(map(_lowest_kept, patched)),
        heads=count_heads(model),
        mask_name=density.layers[0].name,
        mask=kept_weights(layers[0]).cpu().numpy(),
    )


def _initial_weights(initial: nn.Module, layers: Sequence[LayerDensity], weights: Sequence[Tensor]) -> list[Tensor]:
    found = all_linear_layers(initial)
    for layer, weight in zip(layers, weights, strict=True):
        if layer.name not in found or found[layer.name].weight.shape != weight.shape:
            raise DifferentModel(f"the initial model has no matrix {layer.name} of shape {tuple(weight.shape)}")
    return [found[layer.name].weight for layer in layers]


def _count_movement(layers: Sequence[_Linear], before: Sequence[Tensor], edges: NDArray[np.float64]) -> Movement:
    def changes() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for layer, was in zip(layers, before, strict=True):
            yield kept_weights(layer), was, layer.weight - was.to(layer.weight)

    # In a folded model all pruned weights have moved to 0, which does not show how far weights move.
    is_folded = not any(isinstance(layer, MaskedLinear) for layer in layers)
    change_edges = _edges_around_zero(change[kept] if is_folded else change for kept, _, change in changes())
    return Movement(edges, change_edges, *_count(changes(), [edges, change_edges]))


def _edges_around_zero(matrices: Iterable[Tensor]) -> NDArray[np.float64]:
    """Edges of bins on both sides of 0, up to the number farthest from 0, but at most `STANDARD_DEVIATIONS`."""
    count, square, farthest = 0, 0.0, 0.0
    for matrix in matrices:
        if matrix.numel():
            count += matrix.numel()
            square += float(matrix.norm()) ** 2
            farthest = max(farthest, *(abs(float(end)) for end in matrix.aminmax()))
    limit = min(farthest, STANDARD_DEVIATIONS * math.sqrt(square / max(count, 1))) or 1.0
    return np.linspace(-limit, limit, BINS + 1)


def _count_scores(layers: Sequence[MaskedLinear]) -> tuple[Histogram | None, bool]:
    """The histogram of the scores, and whether it is of their logarithms."""
    scored: list[tuple[MaskedLinear, Tensor]] = [
        (layer, layer.mask_scores) for layer in layers if layer.mask_scores is not None
    ]
    if not scored:
        return None, False
    lowest, highest = _ends(scores for _, scores in scored)
    mean = sum(float(scores.sum()) for _, scores in scored) / sum(scores.numel() for _, scores in scored)
    # On a linear axis, nearly all such scores would be in one bin.
    are_logarithms = lowest >= 0 and highest > LONG_TAIL * mean
    if are_logarithms:
        smallest = max(min(float(s[s > 0].min()) for _, s in scored if s.any()), highest * LOWEST_SHOWN)
        scored = [(layer, scores.clamp(min=smallest).log10()) for layer, scores in scored]
        lowest, highest = _ends(scores for _, scores in scored)
    margin = 0.0 if lowest < highest else 0.5  # all scores are equal, as at the start: any width is right
    edges = np.linspace(lowest - margin, highest + margin, BINS + 1)
    counts = _count(((kept_weights(layer), scores) for layer, scores in scored), [edges])
    return Histogram(edges, *counts), are_logarithms


def _ends(matrices: Iterable[Tensor]) -> tuple[float, float]:
    ends = [float(end) for matrix in matrices for end in matrix.aminmax()]
    return min(ends), max(ends)


def _lowest_kept(layer: MaskedLinear) -> float:
    """The lowest score (without scores: absolute weight) that is kept; infinity if none is."""
    importance = layer.weight.abs() if layer.mask_scores is None else layer.mask_scores
    return float(importance.masked_fill(~kept_weights(layer), torch.inf).min())


def _count(matrices: Iterable[Sequence[Tensor]], edges: Sequence[NDArray[np.float64]]) -> list[Counts]:
    """Histograms of the kept and of the pruned weights: [bins], or [bins, bins] for two numbers of each weight.

    Args:
        matrices: for each layer, whether each weight is kept (bool), and one or two numbers of each weight.
        edges: edges of the bins, for each of the numbers.
    """
    shape = (2, *(BINS for _ in edges))
    counts = np.zeros(math.prod(shape), np.int64)
    for layer in matrices:
        for kept, *numbers in zip(*(matrix.reshape(-1).split(CHUNK_WEIGHTS) for matrix in layer), strict=True):
            cell = (~kept).long()
            for number, ends in zip(numbers, edges, strict=True):
                bin_index = (number.to(kept.device).float() - ends[0]) * (BINS / (ends[-1] - ends[0]))
                cell = cell * BINS + bin_index.long().clamp_(0, BINS - 1)
            counts += torch.bincount(cell, minlength=len(counts)).cpu().numpy()
    return list(counts.reshape(shape))
