"""A state dict of the original movement-pruning code gives the logits that the original's own forward gives.

The original's MaskedBertForSequenceClassification is written down again here from its description, as one function over
a state dict that sorts every matrix at every forward: it shares nothing with raypp.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from raypp.config import (
    L0Pruning,
    MagnitudePruning,
    PruningSettings,
    SigmoidThresholdPruning,
    ThresholdPruning,
    TopKPruning,
)
from raypp.original.checkpoint import load_original_state_dict
from raypp.pruning import Pruner, PruningSchedule

CONFIG = BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=20, num_labels=3,
)  # fmt: skip
THRESHOLD = 0.3
SETTINGS: dict[str, PruningSettings] = {
    "topK": TopKPruning(method="topk", final_density=THRESHOLD),
    "magnitude": MagnitudePruning(method="magnitude", final_density=THRESHOLD),
    "sigmoied_threshold": SigmoidThresholdPruning(method="sigmoid_threshold", final_threshold=THRESHOLD),
    "threshold": ThresholdPruning(method="threshold", final_threshold=THRESHOLD),
    "l0": L0Pruning(method="l0"),
}


def original_state_dict(method: str) -> dict[str, Tensor]:
    """Random weights under the original's names, with the constant that its transformers saved along."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {"bert.embeddings.position_ids": torch.arange(20)[None]}
    for name, parameter in BertForSequenceClassification(CONFIG).state_dict().items():
        state[name] = torch.randn(parameter.shape, generator=generator) * 0.3
        if ".encoder." in name and name.endswith(".weight") and "LayerNorm" not in name and method != "magnitude":
            scores = torch.randn(parameter.shape, generator=generator)
            state[name.replace(".weight", ".mask_scores")] = scores
    return state


def original_mask(method: str, weight: Tensor, scores: Tensor | None) -> Tensor:
    if method == "l0":
        assert scores is not None
        return (torch.sigmoid(scores) * 1.2 - 0.1).clamp(0, 1)
    if method in ("threshold", "sigmoied_threshold"):
        assert scores is not None
        return ((torch.sigmoid(scores) if method == "sigmoied_threshold" else scores) > THRESHOLD).float()
    importance = weight.abs() if scores is None else scores
    order = importance.flatten().sort(descending=True).indices
    mask = torch.zeros(importance.numel())
    mask[order[: int(THRESHOLD * importance.numel())]] = 1
    return mask.view_as(importance)


def original_logits(state: dict[str, Tensor], method: str, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    def linear(inputs: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"]
        if ".encoder." in name:
            weight = weight * original_mask(method, weight, state.get(f"{name}.mask_scores"))
        return inputs @ weight.T + state[f"{name}.bias"]

    def norm(inputs: Tensor, name: str) -> Tensor:
        return functional.layer_norm(inputs, (16,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-12)

    def heads(inputs: Tensor) -> Tensor:
        return inputs.view(*inputs.shape[:2], 2, 8).transpose(1, 2)

    embeddings = "bert.embeddings"
    hidden = state[f"{embeddings}.word_embeddings.weight"][input_ids]
    hidden = hidden + state[f"{embeddings}.position_embeddings.weight"][: input_ids.shape[1]]
    hidden = norm(hidden + state[f"{embeddings}.token_type_embeddings.weight"][0], f"{embeddings}.LayerNorm")
    for number in range(2):
        layer = f"bert.encoder.layer.{number}"
        query, key, value = (heads(linear(hidden, f"{layer}.attention.self.{n}")) for n in ("query", "key", "value"))
        weights = (query @ key.transpose(2, 3) / math.sqrt(8)).masked_fill(attention_mask[:, None, None] == 0, -1e9)
        context = (weights.softmax(-1) @ value).transpose(1, 2).flatten(2)
        hidden = norm(
            hidden + linear(context, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm"
        )
        wide = functional.gelu(linear(hidden, f"{layer}.intermediate.dense"))
        hidden = norm(hidden + linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return linear(torch.tanh(linear(hidden[:, 0], "bert.pooler.dense")), "classifier")


@pytest.mark.parametrize("method", list(SETTINGS))
def test_the_originals_state_dict_folds_to_the_originals_logits(method: str) -> None:
    state, settings = original_state_dict(method), SETTINGS[method]
    input_ids = torch.randint(1, 40, (5, 12), generator=torch.Generator().manual_seed(1))
    attention_mask = (torch.arange(12) < torch.tensor([12, 7, 3, 12, 9])[:, None]).long()
    expected = original_logits(state, method, input_ids, attention_mask)

    pruner = Pruner(BertForSequenceClassification(CONFIG).eval(), settings)
    load_original_state_dict(pruner.model, state)
    pruner.refresh(PruningSchedule(settings, total_steps=1, warmup_steps=0).at(1))
    with torch.no_grad():
        masked = pruner.model(input_ids, attention_mask).logits
        folded = pruner.fold()(input_ids, attention_mask).logits
    torch.testing.assert_close(masked, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(folded, expected, atol=2e-5, rtol=0)
    assert expected.std() > 0.01


def test_a_checkpoint_for_squad_loads_without_the_pooler_that_it_does_not_use() -> None:
    """The original's model for question answering wraps a whole encoder."""
    state = {key: value for key, value in original_state_dict("topK").items() if not key.startswith("classifier.")}
    state |= {"qa_outputs.weight": torch.randn(2, 16), "qa_outputs.bias": torch.randn(2)}
    pruner = Pruner(BertForQuestionAnswering(BertConfig(**{**CONFIG.to_dict(), "num_labels": 2})), SETTINGS["topK"])
    load_original_state_dict(pruner.model, state)
    loaded = pruner.model.state_dict()
    for key in state.keys() - {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "bert.embeddings.position_ids"}:
        assert torch.equal(loaded[key], state[key]), key


def test_a_pooler_that_the_head_reads_is_needed() -> None:
    state = original_state_dict("topK")
    del state["bert.pooler.dense.weight"]
    with pytest.raises(ValueError, match=r"missing: bert\.pooler\.dense\.weight"):
        load_original_state_dict(Pruner(BertForSequenceClassification(CONFIG), SETTINGS["topK"]).model, state)


def test_keys_and_shapes_that_do_not_fit_are_all_named_and_nothing_is_loaded() -> None:
    model = BertForSequenceClassification(CONFIG)
    pruner = Pruner(model, SETTINGS["topK"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = original_state_dict("topK")
    del state["bert.encoder.layer.0.attention.self.query.mask_scores"]
    state["bert.encoder.layer.7.output.dense.weight"] = torch.zeros(1)
    state["classifier.weight"] = torch.zeros(2, 16)
    with pytest.raises(ValueError, match="does not fit") as raised:
        load_original_state_dict(pruner.model, state)
    for part in (
        "missing: bert.encoder.layer.0.attention.self.query.mask_scores",
        "unexpected: bert.encoder.layer.7.output.dense.weight",
        "classifier.weight is (2, 16), not (3, 16)",
    ):
        assert part in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scores_for_a_method_without_any_are_refused() -> None:
    pruner = Pruner(BertForSequenceClassification(CONFIG), SETTINGS["magnitude"])
    with pytest.raises(ValueError, match=r"unexpected: .*mask_scores"):
        load_original_state_dict(pruner.model, original_state_dict("topK"))
