"""What pruning has done to the weights, in counts: histograms of scores and weights, movement, heads, one mask.

Everything is counted matrix by matrix, so what it takes beside the models does not grow with them, and what comes out
is a small file from which all figures of weights are drawn, at any time and without the model.
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

STATISTICS = "statistics.npz"  # name of their file, in a run's folder of figures
BINS = 240
CHUNK_WEIGHTS = 1 << 22
# Weights have a few outliers, many times as far out as the others: a scale ends at so many standard deviations.
STANDARD_DEVIATIONS = 12.0
LONG_TAIL = 10.0  # scores whose largest is so many times the mean are counted by their logarithms
LOWEST_SHOWN = 1e-12  # of the largest; logarithms have no end

Counts = NDArray[np.int64]
_Linear = nn.Linear | MaskedLinear


class DifferentModel(ValueError):
    """The initial model is not what the final one began as."""


@dataclass(frozen=True)
class Histogram:
    """Numbers in bins of one width, of kept and of pruned weights; the outermost bins have what is beyond them, too."""

    edges: NDArray[np.float64]
    """Of the bins, [bins + 1]."""
    kept: Counts
    """How many kept weights are in each bin, [bins]."""
    pruned: Counts
    """How many pruned ones are, [bins]."""


@dataclass(frozen=True)
class Movement:
    """How far weights went from where: a histogram over the initial weight and its change, final - initial."""

    edges: NDArray[np.float64]
    """Of the initial weight's bins, [bins + 1]."""
    change_edges: NDArray[np.float64]
    """Of the change's bins, [bins + 1]."""
    kept: Counts
    """[bins of the initial weight, bins of the change]."""
    pruned: Counts
    """The same of the pruned weights, whose final values are those beneath the mask (0 in a folded model)."""

    @property
    def initial(self) -> Histogram:
        """The weights as they began."""
        return Histogram(self.edges, self.kept.sum(1), self.pruned.sum(1))


_Part = TypeVar("_Part", Histogram, Movement)


@dataclass(frozen=True)
class WeightStatistics:
    """What is left of a model, and what became of its weights."""

    layers: tuple[LayerDensity, ...]
    """Remaining weights of each pruned matrix."""
    weights: Histogram
    """Final weights of these matrices."""
    movement: Movement | None
    """None where the initial weights are not known."""
    scores: Histogram | None
    """None where there are none: pruning by magnitude, and folded models."""
    scores_are_logarithms: bool
    """Whether that histogram is of log10 of the scores (those of 0 in its first bin): of scores that are never negative
    and of many orders of magnitude, as Fisher information is."""
    lowest_kept: tuple[float, ...]
    """Of each matrix, the lowest score (for magnitude: absolute weight) that was kept; empty for a folded model."""
    heads: tuple[AttentionHeads, ...]
    """Empty where the attention is of an unknown kind."""
    mask_name: str
    """The matrix whose mask is shown, the first."""
    mask: NDArray[np.bool_]
    """True where a weight is kept, (out, in)."""

    def save(self, file: Location) -> None:
        """Writes an .npz file: arrays, and a JSON text of the rest."""
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
        """Reads what `save` wrote."""
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
            scores_are_logarithms=rest.get("scores_are_logarithms", False),  # written since there is method: fisher
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
    """Counts what pruning has done to a patched model, or to a plain, folded one.

    Args:
        density: of this model; its layers are those that count.
        initial: the model before training, patched or not; None: its weights are not known.

    Raises:
        DifferentModel: `initial` lacks one of the matrices, or has it in another shape.
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

    # In a folded model the pruned ones have all gone to 0, which says nothing of how far a weight goes.
    is_folded = not any(isinstance(layer, MaskedLinear) for layer in layers)
    change_edges = _edges_around_zero(change[kept] if is_folded else change for kept, _, change in changes())
    return Movement(edges, change_edges, *_count(changes(), [edges, change_edges]))


def _edges_around_zero(matrices: Iterable[Tensor]) -> NDArray[np.float64]:
    """Bins on both sides of 0, as far as the farthest number, or as `STANDARD_DEVIATIONS` of all of them."""
    count, square, farthest = 0, 0.0, 0.0
    for matrix in matrices:
        if matrix.numel():
            count += matrix.numel()
            square += float(matrix.norm()) ** 2
            farthest = max(farthest, *(abs(float(end)) for end in matrix.aminmax()))
    limit = min(farthest, STANDARD_DEVIATIONS * math.sqrt(square / max(count, 1))) or 1.0
    return np.linspace(-limit, limit, BINS + 1)


def _count_scores(layers: Sequence[MaskedLinear]) -> tuple[Histogram | None, bool]:
    """The scores' histogram, and whether it is of their logarithms."""
    scored: list[tuple[MaskedLinear, Tensor]] = [
        (layer, layer.mask_scores) for layer in layers if layer.mask_scores is not None
    ]
    if not scored:
        return None, False
    lowest, highest = _ends(scores for _, scores in scored)
    mean = sum(float(scores.sum()) for _, scores in scored) / sum(scores.numel() for _, scores in scored)
    # On a linear axis nearly all of such scores would be in one bin.
    are_logarithms = lowest >= 0 and highest > LONG_TAIL * mean
    if are_logarithms:
        smallest = max(min(float(s[s > 0].min()) for _, s in scored if s.any()), highest * LOWEST_SHOWN)
        scored = [(layer, scores.clamp(min=smallest).log10()) for layer, scores in scored]
        lowest, highest = _ends(scores for _, scores in scored)
    margin = 0.0 if lowest < highest else 0.5  # all the same, as they begin: any width will do
    edges = np.linspace(lowest - margin, highest + margin, BINS + 1)
    counts = _count(((kept_weights(layer), scores) for layer, scores in scored), [edges])
    return Histogram(edges, *counts), are_logarithms


def _ends(matrices: Iterable[Tensor]) -> tuple[float, float]:
    ends = [float(end) for matrix in matrices for end in matrix.aminmax()]
    return min(ends), max(ends)


def _lowest_kept(layer: MaskedLinear) -> float:
    """The lowest score, or absolute weight, that is kept; infinity where nothing is."""
    importance = layer.weight.abs() if layer.mask_scores is None else layer.mask_scores
    return float(importance.masked_fill(~kept_weights(layer), torch.inf).min())


def _count(matrices: Iterable[Sequence[Tensor]], edges: Sequence[NDArray[np.float64]]) -> list[Counts]:
    """Counts of kept and of pruned weights: [bins], or [bins, bins] for two numbers of each weight.

    Args:
        matrices: of each layer in turn, which weights are kept (bool), and one or two numbers of every weight.
        edges: of the bins, for each of the numbers.
    """
    shape = (2, *(BINS for _ in edges))
    counts = np.zeros(math.prod(shape), np.int64)
    for layer in matrices:
        for kept, *numbers in zip(*(matrix.reshape(-1).split(CHUNK_WEIGHTS) for matrix in layer), strict=True):
            cell = (~kept).long()
            for number, ends in zip(numbers, edges, strict=True):
                place = (number.to(kept.device).float() - ends[0]) * (BINS / (ends[-1] - ends[0]))
                cell = cell * BINS + place.long().clamp_(0, BINS - 1)
            counts += torch.bincount(cell, minlength=len(counts)).cpu().numpy()
    return list(counts.reshape(shape))
