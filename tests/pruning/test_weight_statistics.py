"""The statistics of weights, against counts made directly from the matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from raypp.config import FisherPruning, MagnitudePruning, PruningSettings, SigmoidThresholdPruning, TopKPruning
from raypp.figures.weights import scores_figure
from raypp.pruning import Pruner, PruningSchedule
from raypp.pruning import weight_statistics as module
from raypp.pruning.density import count_density
from raypp.pruning.weight_statistics import BINS, DifferentModel, WeightStatistics, measure
from raypp.storage import Location

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}


def bert(seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    return BertModel(BertConfig(vocab_size=30, max_position_embeddings=16, **SIZES))


def moved(settings: PruningSettings) -> tuple[BertModel, Pruner]:
    """A patched model whose weights and scores have changed, its masks up to date."""
    model = bert()
    pruner = Pruner(model, settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in pruner.layers.values():
            layer.weight += 0.01 * torch.randn(layer.weight.shape, generator=generator)
            if layer.mask_scores is not None:
                layer.mask_scores.copy_(torch.randn(layer.weight.shape, generator=generator))
    pruner.refresh(PruningSchedule(settings, 100, 10).at(100))
    return model, pruner


@pytest.mark.parametrize(
    "settings",
    [
        TopKPruning(method="topk", final_density=0.3),
        SigmoidThresholdPruning(method="sigmoid_threshold", final_threshold=0.6),
        MagnitudePruning(method="magnitude", final_density=0.3, scope="global"),
    ],
    ids=lambda settings: settings.method,
)
def test_every_weight_is_counted_once_and_in_its_bin(
    settings: PruningSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_WEIGHTS", 100)  # less than a matrix
    model, pruner = moved(settings)
    statistics = measure(model, pruner.density(), bert())
    masks = np.concatenate([layer.mask.numpy().ravel() for layer in pruner.layers.values()])
    weights = np.concatenate([layer.weight.detach().numpy().ravel() for layer in pruner.layers.values()])
    plain = dict(bert().named_modules())
    before = np.concatenate([plain[name].weight.detach().numpy().ravel() for name in pruner.layers])
    assert statistics.movement is not None
    for histogram in (statistics.weights, statistics.movement.initial, statistics.scores):
        if histogram is not None:
            assert (histogram.kept.sum(), histogram.pruned.sum()) == (masks.sum(), (~masks).sum())

    # Rounding can only move a number at the border of two bins.
    expected, _ = np.histogram(np.clip(weights[masks], *statistics.weights.edges[[0, -1]]), statistics.weights.edges)
    assert np.abs(statistics.weights.kept - expected).sum() <= 4
    movement = statistics.movement
    joint, _, _ = np.histogram2d(before[~masks], (weights - before)[~masks], [movement.edges, movement.change_edges])
    assert np.abs(movement.pruned - joint).sum() <= 4

    if settings.method == "magnitude":
        assert statistics.scores is None
        assert min(statistics.lowest_kept) == pytest.approx(np.abs(weights[masks]).min())
        assert min(statistics.lowest_kept) >= np.abs(weights[~masks]).max()
    else:
        scores = [
            layer.mask_scores.detach().numpy() for layer in pruner.layers.values() if layer.mask_scores is not None
        ]
        lowest = [score[layer.mask.numpy()].min() for score, layer in zip(scores, pruner.layers.values(), strict=True)]
        assert statistics.lowest_kept == pytest.approx(lowest)
    name = next(iter(pruner.layers))
    assert statistics.mask_name == name
    np.testing.assert_array_equal(statistics.mask, pruner.layers[name].mask.numpy())


def test_scores_of_many_orders_of_magnitude_are_counted_by_their_power_of_ten() -> None:
    model = bert()
    pruner = Pruner(model, FisherPruning(method="fisher", final_density=0.25))
    with torch.no_grad():
        for _, scores in pruner.scores():
            scores.copy_(10 ** torch.empty_like(scores).uniform_(-9, -1))
        pruner.layers[next(iter(pruner.layers))].mask_scores[0, 0] = 0  # type: ignore[index]
    pruner.refresh(PruningSchedule(pruner.settings, 100, 10).at(100))
    statistics = measure(model, pruner.density(), bert())
    assert statistics.scores_are_logarithms
    assert statistics.scores is not None
    assert statistics.scores.edges[[0, -1]] == pytest.approx([-9, -1], abs=0.1)
    kept, pruned = statistics.scores.kept, statistics.scores.pruned
    middles = (statistics.scores.edges[1:] + statistics.scores.edges[:-1]) / 2
    assert kept.sum() / (kept + pruned).sum() == pytest.approx(0.25, abs=0.01)
    # Scores are spread evenly over 8 powers of ten, and the upper fourth is kept.
    assert np.average(middles, weights=kept) == pytest.approx(-2, abs=0.1)
    assert np.average(middles, weights=pruned) == pytest.approx(-6, abs=0.1)
    assert [axes.get_xlabel() for axes in scores_figure(statistics).axes] == ["score (its power of ten)"]


def test_outliers_are_in_the_outermost_bins() -> None:
    model = bert()
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight[0, :2] = torch.tensor([1000.0, -1000.0])
    histogram = measure(model, count_density(model)).weights
    assert histogram.edges[-1] < 200
    assert histogram.kept[[0, -1]].tolist() == [1, 1]
    assert histogram.kept.sum() + histogram.pruned.sum() == sum(layer.total for layer in count_density(model).layers)


def test_a_folded_model_shows_the_remaining_weights_and_their_initial_values() -> None:
    settings = TopKPruning(method="topk", final_density=0.3)
    model, pruner = moved(settings)
    patched = measure(model, pruner.density(), bert())
    folded = measure(pruner.fold(), pruner.density(), bert())
    assert (folded.scores, folded.lowest_kept) == (None, ())
    assert folded.layers == patched.layers
    assert folded.heads == patched.heads
    np.testing.assert_array_equal(folded.mask, patched.mask)
    np.testing.assert_array_equal(folded.weights.kept, patched.weights.kept)
    assert folded.weights.pruned[BINS // 2] == folded.weights.pruned.sum(), "all at 0"
    assert folded.movement is not None
    assert patched.movement is not None
    np.testing.assert_array_equal(folded.movement.initial.pruned, patched.movement.initial.pruned)
    assert folded.movement.change_edges[-1] < 0.1, "the scale is that of the kept weights"


def test_the_file_holds_everything(tmp_path: Path) -> None:
    model, pruner = moved(TopKPruning(method="topk", final_density=0.3))
    statistics = measure(model, pruner.density(), bert())
    statistics.save(Location.of(tmp_path / "statistics.npz"))
    read = WeightStatistics.load(Location.of(tmp_path / "statistics.npz"))
    assert (read.layers, read.heads, read.lowest_kept) == (statistics.layers, statistics.heads, statistics.lowest_kept)
    np.testing.assert_array_equal(read.mask, statistics.mask)
    for part in ("weights", "movement", "scores"):
        for name, array in vars(getattr(statistics, part)).items():
            np.testing.assert_array_equal(getattr(getattr(read, part), name), array)


def test_another_initial_model_is_refused() -> None:
    model = bert()
    other = BertModel(BertConfig(vocab_size=30, max_position_embeddings=16, **SIZES | {"intermediate_size": 48}))
    with pytest.raises(DifferentModel, match=r"no matrix encoder\.layer\.0\.intermediate\.dense of shape \(40, 24\)"):
        measure(model, count_density(model), other)
    with pytest.raises(DifferentModel):
        measure(model, count_density(model), nn.Linear(2, 2))
