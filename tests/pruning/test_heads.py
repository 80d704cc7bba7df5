"""Surviving attention heads, against masks made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig, DistilBertConfig, RobertaConfig
from transformers.models.albert import AlbertConfig
from transformers.models.deberta_v2 import DebertaV2Config

from raypp.config import TopKPruning
from raypp.pruning import Pruner
from raypp.pruning.heads import count_heads
from raypp.pruning.linear import linear_layers

SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}


@pytest.fixture
def bert() -> nn.Module:
    """Three heads of 4 rows each in either layer, no weight zero."""
    model = AutoModel.from_config(BertConfig(vocab_size=30, max_position_embeddings=16, **SIZES))
    for layer in linear_layers(model).values():
        nn.init.constant_(layer.weight, 1.0)
    return model


def cut(model: nn.Module, name: str, rows: slice, columns: slice = slice(None)) -> None:
    """Prunes part of a matrix, in a folded or in a patched model."""
    layer = model.get_submodule(name)
    with torch.no_grad():
        if hasattr(layer, "mask"):
            mask = layer.mask.clone()
            mask[rows, columns] = False
            layer.mask = mask
        else:
            layer.weight[rows, columns] = 0.0


@pytest.mark.parametrize("patched", [False, True])
def test_a_head_dies_with_its_values_or_its_output(bert: nn.Module, patched: bool) -> None:
    if patched:
        Pruner(bert, TopKPruning(method="topk"))
    everything = slice(None)
    cut(bert, "encoder.layer.0.attention.self.value", slice(4, 8))  # head 1
    cut(bert, "encoder.layer.0.attention.output.dense", everything, slice(8, 12))  # head 2
    cut(bert, "encoder.layer.1.attention.self.query", slice(0, 4))  # head 0 attends to all tokens alike, and lives
    cut(bert, "encoder.layer.1.attention.self.value", slice(8, 11))  # one row of head 2 is left
    first, second = count_heads(bert)
    assert (first.stack, first.number, first.total) == ("encoder.layer", "0", 4 * 4 * 12)
    assert first.survives == (True, False, False)
    assert first.kept == (192, 192 - 48, 192 - 48)
    assert second.survives == (True, True, True)
    assert second.kept == (192 - 48, 192, 192 - 36)


@pytest.mark.parametrize(
    "config",
    [
        RobertaConfig(**SIZES),
        DistilBertConfig(dim=12, n_layers=2, n_heads=3, hidden_dim=20),
        DebertaV2Config(**SIZES),
        AlbertConfig(embedding_size=8, **SIZES),
    ],
    ids=lambda config: config.model_type,
)
def test_the_heads_of_other_families_are_found(config: object) -> None:
    model = AutoModel.from_config(config)
    layers = count_heads(model)
    assert len(layers) == (1 if type(config) is AlbertConfig else 2)  # ALBERT's layers share their weights
    assert all(len(layer.kept) == 3 and all(layer.survives) for layer in layers)
    assert {layer.total for layer in layers} == {4 * 4 * 12}


def test_a_model_of_unknown_attention_has_no_heads() -> None:
    assert count_heads(nn.Sequential(nn.Linear(4, 4))) == ()
