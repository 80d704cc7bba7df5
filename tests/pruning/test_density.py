"""The three densities against counts by hand, for patched and for folded models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from raypp.config import TopKPruning
from raypp.pruning import Pruner, PruningSchedule
from raypp.pruning.density import count_density


def filled_bert() -> BertForSequenceClassification:
    """A tiny BERT without any zero, so that every zero comes from a mask."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20, num_labels=2,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape).abs() + 0.1)
    return model


def patched(density: float) -> tuple[BertForSequenceClassification, Pruner]:
    model = filled_bert()
    settings = TopKPruning(method="topk", initial_density=density, final_density=density)
    pruner = Pruner(model, settings, seed=1)
    pruner.refresh(PruningSchedule(settings, 10, 0).at(0))
    return model, pruner


LINEAR = 2 * (4 * 16 * 16 + 2 * 16 * 24)  # four attention matrices and two of the feed-forward, twice
BIASES_AND_NORMS = 2 * (4 * 16 + 24 + 16 + 2 * 2 * 16)
POOLER_AND_HEAD = 16 * 16 + 16 + 2 * 16 + 2
EMBEDDINGS = (30 + 20 + 2) * 16 + 2 * 16


def test_the_three_denominators_counted_by_hand() -> None:
    model, pruner = patched(0.25)
    report = pruner.density()
    kept = LINEAR // 4
    assert report.linear == kept / LINEAR == 0.25
    assert report.encoder == (kept + BIASES_AND_NORMS) / (LINEAR + BIASES_AND_NORMS)
    rest = BIASES_AND_NORMS + POOLER_AND_HEAD + EMBEDDINGS
    assert report.model == (kept + rest) / (LINEAR + rest)
    assert sum(p.numel() for p in filled_bert().parameters()) == LINEAR + rest
    assert len(report.layers) == 12
    first = report.layers[0]
    assert (first.name, first.kept, first.total, first.density) == (
        "encoder.layer.0.attention.self.query",
        64,
        256,
        0.25,
    )
    assert sum(layer.kept for layer in report.layers) == kept
    assert count_density(model) == report
    assert json.loads(json.dumps(asdict(report)))["linear"] == 0.25


def test_folding_changes_no_number() -> None:
    model, pruner = patched(0.15)
    with torch.no_grad():  # a kept weight that is 0 counts in neither form
        layer = pruner.layers["encoder.layer.1.output.dense"]
        kept = layer.mask.nonzero()[0]
        layer.weight[kept[0], kept[1]] = 0.0
    before = pruner.density()
    assert before.layers[-1].kept == int(0.15 * 16 * 24) - 1
    folded = pruner.fold()
    assert folded is model
    assert pruner.density() == before
    assert count_density(folded) == before
    assert count_density(folded, [layer.name for layer in before.layers]) == before


def test_a_bare_encoder_and_a_dense_model_are_counted_too() -> None:
    report = count_density(filled_bert())
    assert (report.linear, report.encoder, report.model) == (1.0, 1.0, 1.0)
    assert len(report.layers) == 12
    assert count_density(filled_bert().bert).layers == report.layers


def test_chosen_layers_and_unknown_ones() -> None:
    model, pruner = patched(0.5)
    names = ["encoder.layer.0.output.dense"]
    assert [layer.name for layer in count_density(model, names).layers] == names
    with pytest.raises(ValueError, match=r"encoder\.layer\.9\.output"):
        count_density(pruner.fold(), ["encoder.layer.9.output.dense"])
    with pytest.raises(ValueError, match="no linear layer"):
        count_density(nn.LayerNorm(3))


def test_a_report_waits_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, pruner = patched(0.5)
    waits: list[str] = []

    def counted(method: str) -> Callable[[Tensor], Any]:
        real = getattr(Tensor, method)

        def wait(tensor: Tensor) -> Any:
            waits.append(method)
            return real(tensor)

        return wait

    for method in ("item", "tolist", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(Tensor, method, counted(method))
    pruner.density()
    assert waits == ["tolist"]
