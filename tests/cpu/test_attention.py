"""Attention of a CPU's training step against torch's: outputs, gradients, dropout, and models of many families."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    RobertaConfig,
)

from raypp.cpu import attention
from raypp.cpu.attention import attend, use_cpu_attention
from raypp.cpu.dropout import Dropout
from raypp.models.dropout import set_dropout

BATCH, HEADS, TOKENS, FEATURES = 3, 2, 70, 8
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "num_labels": 3,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "electra": ElectraConfig(**SIZES, embedding_size=16),
    "albert": AlbertConfig(**SIZES, embedding_size=16),
    "distilbert": DistilBertConfig(
        vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40, num_labels=3
    ),
    "modernbert": ModernBertConfig(
        **SIZES, local_attention=8, global_attn_every_n_layers=2, bos_token_id=1, eos_token_id=2, cls_token_id=1,
        sep_token_id=2,
    ),
    "deberta-v2": DebertaV2Config(**SIZES, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"]),
    "gpt2": GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        num_labels=3,
    ),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
}  # fmt: skip


class Module(nn.Module):
    """What an attention function reads of the layer that calls it."""

    is_causal = False


def inputs(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor, Tensor]:
    """Queries, keys and values; a mask in which one text is padded; and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(BATCH, HEADS, TOKENS, FEATURES, generator=generator) for _ in range(4)]
    mask = torch.ones(BATCH, 1, TOKENS, TOKENS, dtype=torch.bool)
    mask[1, :, :, 40:] = False
    return [each.to(dtype).requires_grad_() for each in drawn[:3]], mask, drawn[3].to(dtype).transpose(1, 2)


def results(output: Tensor, gradient: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_torchs_attention_with_its_gradients(masked: bool, scaling: float | None, dtype: torch.dtype) -> None:
    leaves, mask, gradient = inputs()
    given = mask if masked else None
    expected = nn.functional.scaled_dot_product_attention(*leaves, attn_mask=given, scale=scaling).transpose(1, 2)
    ours = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    output, _ = attend(Module().train(), *ours, given, dropout=1e-9, scaling=scaling)  # rounded to none
    assert "_Attention" in str(output.grad_fn.next_functions[0][0].next_functions), "it is not torch's own"
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for found, wanted in zip(
        results(output, gradient.to(dtype), ours), results(expected, gradient, leaves), strict=True
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), wanted, **tolerance)


def test_dropped_weights_are_those_of_dropout_and_so_are_the_gradients() -> None:
    leaves, mask, gradient = inputs()
    torch.manual_seed(5)
    output, _ = attend(Module().train(), *leaves, mask, dropout=0.3)
    query, key, value = leaves
    products = (query @ key.transpose(-1, -2) / FEATURES**0.5).masked_fill(~mask, -torch.inf)
    torch.manual_seed(5)
    expected = Dropout(0.3).train()(products.softmax(-1)) @ value
    for found, wanted in zip(
        results(output, gradient, leaves), results(expected.transpose(1, 2), gradient, leaves), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def keeps_pairs(tokens: int, dropout: float, dtype: torch.dtype) -> bool:
    """Whether the attention's memory is that of all pairs of tokens: whether it is not torch's own."""
    query, key, value = (torch.randn(1, 2, tokens, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    output, _ = attend(Module().train(), query, key, value, None, dropout=dropout)
    return "_Attention" in str(output.grad_fn.next_functions[0][0].next_functions)


def test_where_torchs_needs_less_memory_and_no_more_time_it_is_torchs() -> None:
    assert keeps_pairs(512, 0.0, torch.bfloat16)
    assert not keeps_pairs(513, 0.0, torch.bfloat16)
    assert keeps_pairs(513, 0.1, torch.bfloat16), "with dropout torch's keeps them as well"
    assert keeps_pairs(100, 0.1, torch.float32)
    assert keeps_pairs(100, 0.1, torch.float16), "what is dropped does not depend on the precision"
    assert not keeps_pairs(100, 0.0, torch.float32)


def test_under_autocast_it_computes_in_bfloat16_whatever_it_is_given() -> None:
    (query, key, value), mask, gradient = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = attend(Module().train(), query, key, value.bfloat16(), mask, dropout=0.1)
    assert output.dtype == torch.bfloat16
    output.backward(gradient.bfloat16())
    assert query.grad is not None
    assert query.grad.dtype == torch.float32
    assert query.grad.isfinite().all()


def test_a_token_that_sees_nothing_is_no_nan() -> None:
    leaves, mask, gradient = inputs()
    mask[0] = False
    output, _ = attend(Module().train(), *leaves, mask, dropout=0.1)
    assert all(each.isfinite().all() for each in results(output, gradient, leaves))


def loss_and_gradients(model: PreTrainedModel) -> tuple[Tensor, list[Tensor]]:
    ids = torch.randint(3, 50, (4, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, 12:], mask[1, 12:] = 0, 0
    loss = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1, 2, 0])).loss
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return loss.detach(), list(gradients)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_any_family_trains_as_before(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(FAMILIES[family]).train()
    set_dropout(model, 1e-9)  # rounded to none by the kernels
    ours = copy.deepcopy(model)
    use_cpu_attention(ours)
    calls: list[int] = []
    apply = attention._Attention.apply
    monkeypatch.setattr(attention._Attention, "apply", lambda *given: (calls.append(1), apply(*given))[1])
    loss, gradients = loss_and_gradients(ours)
    # One computes its attention by itself, and one has more heads for queries than for keys.
    assert len(calls) == (0 if family in ("deberta-v2", "qwen2") else 2)
    set_dropout(model, 0.0)
    expected_loss, expected_gradients = loss_and_gradients(model)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    calls.clear()
    assert torch.equal(loss_and_gradients(ours.eval())[0], loss_and_gradients(model.eval())[0])
    assert not calls, "evaluation is torch's"


def test_a_saved_model_knows_nothing_of_it(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_config(FAMILIES["bert"])
    use_cpu_attention(model)
    assert model.config._attn_implementation == attention.NAME
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()


def test_an_attention_that_was_asked_for_is_kept() -> None:
    model = AutoModelForSequenceClassification.from_config(FAMILIES["bert"], attn_implementation="eager")
    use_cpu_attention(model)
    assert model.config._attn_implementation == "eager"
