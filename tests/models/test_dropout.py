"""Every dropout of a model is set. training/test_loop.py tests that a run trains with the dropout of its settings."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Starcoder2Config, Starcoder2Model, XLMConfig, XLMModel

from raypp.errors import ConfigError
from raypp.models.dropout import set_dropout


@pytest.mark.parametrize("of_attention", [0.2, 0])
def test_dropout_of_any_kind_is_set(of_attention: float) -> None:
    config = XLMConfig(vocab_size=20, emb_dim=16, n_layers=1, n_heads=2, dropout=0.3, attention_dropout=of_attention)
    model = XLMModel(config).train()  # hands its probabilities to torch's functions
    inputs = {"input_ids": torch.arange(3, 9).view(1, 6)}
    assert not torch.equal(model(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
    set_dropout(model, 0.0)
    assert torch.equal(model(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
    set_dropout(model, 0.5)
    assert {module.attention_dropout for module in model.modules() if hasattr(module, "attention_dropout")} == {0.5}


def test_a_dropout_of_any_name_is_set() -> None:
    config = Starcoder2Config(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=16, residual_dropout=0.3, embedding_dropout=0.3, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model = Starcoder2Model(config).train()
    set_dropout(model, 0.0)
    inputs = {"input_ids": torch.arange(3, 9).view(1, 6)}
    assert torch.equal(model(**inputs).last_hidden_state, model(**inputs).last_hidden_state)


def test_a_model_without_dropout_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.dropout: Linear has no dropout, got 0\.5"):
        set_dropout(nn.Linear(2, 2), 0.5)
