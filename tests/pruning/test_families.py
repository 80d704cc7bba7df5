"""Every encoder family on a tiny random model: which layers, density 1, training, folding, reloading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from raypp.config import L0Pruning, MagnitudePruning, PruningSettings, ScoreInitialization, TopKPruning
from raypp.pruning import Pruner
from raypp.pruning.linear import MaskedLinear
from raypp.pruning.schedule import SchedulePoint

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "num_labels": 3,
}
BERT_LAYER = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "intermediate.dense", "output.dense",
)  # fmt: skip


def layers(prefix: str, names: tuple[str, ...], count: int = 2) -> list[str]:
    return [f"{prefix}.{layer}.{name}" for layer in range(count) for name in names]


@dataclass
class Family:
    config: PreTrainedConfig
    names: list[str]
    """The layers that must be pruned, and no others."""
    spared: tuple[str, ...]
    """All other linear layers of the model: they must stay as they are."""


FAMILIES = {
    "bert": Family(BertConfig(**SIZES), layers("encoder.layer", BERT_LAYER), ("bert.pooler.dense", "classifier")),
    "roberta": Family(
        RobertaConfig(**SIZES), layers("encoder.layer", BERT_LAYER), ("classifier.dense", "classifier.out_proj")
    ),
    "distilbert": Family(
        DistilBertConfig(
            vocab_size=50, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=40, num_labels=3
        ),
        layers(
            "transformer.layer",
            ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"),
        ),
        ("pre_classifier", "classifier"),
    ),
    "electra": Family(
        ElectraConfig(**SIZES, embedding_size=16),
        layers("encoder.layer", BERT_LAYER),
        ("electra.embeddings_project", "classifier.dense", "classifier.out_proj"),
    ),
    "deberta-v2": Family(
        DebertaV2Config(
            **SIZES, embedding_size=16, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"],
            share_att_key=True, norm_rel_ebd="layer_norm", type_vocab_size=0,
        ),
        layers(
            "encoder.layer",
            (
                "attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj",
                "attention.output.dense", "intermediate.dense", "output.dense",
            ),
        ),
        ("deberta.embeddings.embed_proj", "pooler.dense", "classifier"),
    ),
    "albert": Family(
        AlbertConfig(**{**SIZES, "num_hidden_layers": 3}, embedding_size=16),
        # One layer, used three times.
        layers(
            "encoder.albert_layer_groups.0.albert_layers",
            ("ffn", "ffn_output", "attention.query", "attention.key", "attention.value", "attention.dense"),
            count=1,
        ),
        ("albert.encoder.embedding_hidden_mapping_in", "albert.pooler", "classifier"),
    ),
    "mpnet": Family(
        MPNetConfig(**SIZES),
        layers(
            "encoder.layer",
            ("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o",
             "intermediate.dense", "output.dense"),
        ),
        ("classifier.dense", "classifier.out_proj"),
    ),
    "modernbert": Family(
        ModernBertConfig(
            **SIZES, local_attention=8, global_attn_every_n_layers=2, bos_token_id=1, eos_token_id=2,
            cls_token_id=1, sep_token_id=2,
        ),
        layers("layers", ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")),
        ("head.dense", "classifier"),
    ),
}  # fmt: skip


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def make(family: Family) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(family.config).eval()
    assert isinstance(model, nn.Module)
    with torch.no_grad():  # larger weights than the usual 0.02, so that every matrix matters to the logits
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(5.0)
    return model


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    attention_mask = torch.ones(4, 11, dtype=torch.long)
    attention_mask[1, 7:] = 0
    return {
        "input_ids": torch.randint(3, 50, (4, 11), generator=generator) * attention_mask,
        "attention_mask": attention_mask,
        "labels": torch.tensor([0, 1, 2, 1]),
    }


def at(value: float | None) -> SchedulePoint:
    return SchedulePoint(value=value, progress=1.0, penalty_lambda=0.0, is_final=True)


def topk(kind: str = "uniform") -> TopKPruning:
    scale = 0.0 if kind == "constant" else 1.0
    return TopKPruning.model_validate({"method": "topk", "score_initialization": {"kind": kind, "scale": scale}})


def test_the_right_layers_are_pruned_and_density_one_changes_nothing(family: Family) -> None:
    model = make(family)
    dense = model(**batch()).logits
    pruner = Pruner(model, topk())
    assert sorted(pruner.layers) == sorted(family.names)
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert sorted(linear) == sorted(family.spared)
    pruner.refresh(at(1.0))
    assert torch.equal(model(**batch()).logits, dense)
    pruner.refresh(at(0.3))
    assert (model(**batch()).logits - dense).abs().max() > 1e-3


def test_one_training_step_reaches_every_score_and_weight(family: Family) -> None:
    model = make(family).train()
    pruner = Pruner(model, topk())
    pruner.refresh(at(0.5))
    torch.manual_seed(0)
    model(**batch()).loss.backward()
    for name, scores in pruner.scores():
        gradient, weight = scores.grad, pruner.layers[name].weight.grad
        assert gradient is not None
        assert weight is not None
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0, name
        assert (weight[~pruner.layers[name].mask] == 0).all()
        assert weight.abs().max() > 0, name


@pytest.mark.parametrize(
    "settings",
    [
        topk(),
        topk("constant"),
        MagnitudePruning(method="magnitude"),
        L0Pruning(method="l0", score_initialization=ScoreInitialization(kind="uniform", scale=4.0)),
    ],
    ids=["topk", "ties", "magnitude", "l0"],
)
def test_the_folded_model_is_plain_and_reloads_with_the_same_logits(
    family: Family, settings: PruningSettings, tmp_path: Path
) -> None:
    model = make(family)
    state_names, modules = set(model.state_dict()), {name: type(module) for name, module in model.named_modules()}
    pruner = Pruner(model, settings)
    pruner.refresh(at(None if isinstance(settings, L0Pruning) else 0.2))
    masked, before = model(**batch()).logits, pruner.density()
    if not isinstance(settings, L0Pruning):
        assert all(layer.kept == int(0.2 * layer.total) for layer in before.layers)
    assert before.linear < 0.9

    folded = pruner.fold()
    assert pruner.density() == before
    assert set(folded.state_dict()) == state_names
    assert {name: type(module) for name, module in folded.named_modules()} == modules
    torch.testing.assert_close(folded(**batch()).logits, masked, atol=1e-6, rtol=0)

    folded.save_pretrained(tmp_path)  # type: ignore[operator]
    assert AutoConfig.from_pretrained(tmp_path).model_type == family.config.model_type
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert not any(isinstance(module, MaskedLinear) for module in reloaded.modules())
    assert torch.equal(reloaded(**batch()).logits, folded(**batch()).logits)
