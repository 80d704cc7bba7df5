"""Surviving attention heads, against masks made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel, BartConfig, BertConfig, ConvBertConfig, DistilBertConfig, LlamaConfig, RobertaConfig
from transformers.models.albert import AlbertConfig
from transformers.models.deberta_v2 import DebertaV2Config

from raypp.config import TopKPruning
from raypp.pruning import Pruner
from raypp.pruning.heads import count_heads
from raypp.pruning.linear import linear_layers

SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}


@pytest.fixture
def bert() -> nn.Module:
    """Two layers of three heads with 4 rows each; no weight is zero."""
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
    cut(bert, "encoder.layer.1.attention.self.query", slice(0, 4))  # head 0 attends to all tokens equally, and survives
    cut(bert, "encoder.layer.1.attention.self.value", slice(8, 11))  # one row of head 2 remains
    first, second = count_heads(bert)
    assert (first.stack, first.number, first.total) == ("encoder.layer", "0", 4 * 4 * 12)
    assert first.survives == (True, False, False)
    assert first.kept == (192, 192 - 48, 192 - 48)
    assert second.survives == (True, True, True)
    assert second.kept == (192 - 48, 192, 192 - 36)


def test_a_decoder_may_have_other_heads_and_two_attentions_per_layer() -> None:
    config = BartConfig(
        vocab_size=30, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=4, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=16,
    )  # fmt: skip
    model = AutoModel.from_config(config)
    for layer in linear_layers(model).values():
        nn.init.constant_(layer.weight, 1.0)
    cut(model, "decoder.layers.0.encoder_attn.v_proj", slice(0, 4))
    found = {layer.stack: layer for layer in count_heads(model)}
    assert found.keys() == {"encoder.layers", "self_attn of decoder.layers", "encoder_attn of decoder.layers"}
    assert found["encoder.layers"].survives == (True, True)
    assert found["self_attn of decoder.layers"].survives == (True, True, True, True)
    assert found["encoder_attn of decoder.layers"].survives == (False, True, True, True)
    assert found["encoder_attn of decoder.layers"].total == 4 * 4 * 16


def test_an_attention_that_is_half_a_convolution_is_not_counted() -> None:
    config = ConvBertConfig(
        vocab_size=30,
        embedding_size=16,
        max_position_embeddings=16,
        **SIZES | {"hidden_size": 24, "num_attention_heads": 4},
    )
    assert count_heads(AutoModel.from_config(config)) == ()


def test_heads_that_share_keys_and_values_live_and_die_with_them() -> None:
    sizes = {**SIZES, "hidden_size": 16, "num_attention_heads": 4}
    model = AutoModel.from_config(LlamaConfig(vocab_size=30, num_key_value_heads=2, **sizes))
    for layer in linear_layers(model).values():
        nn.init.constant_(layer.weight, 1.0)
    cut(model, "layers.0.self_attn.v_proj", slice(4, 8))  # of heads 2 and 3
    cut(model, "layers.0.self_attn.q_proj", slice(4, 8))  # of head 1
    cut(model, "layers.1.self_attn.k_proj", slice(0, 1))  # of heads 0 and 1
    first, second = count_heads(model)
    assert first.total == second.total == 4 * 4 * 16
    assert first.survives == (True, True, False, False)
    assert first.kept == (256, 256 - 64, 256 - 64, 256 - 64)
    assert second.survives == (True, True, True, True)
    assert second.kept == (256 - 16, 256 - 16, 256, 256)


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
