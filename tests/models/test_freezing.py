"""The parameters that a run freezes, in model families that keep their embeddings in different modules."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from raypp.config import Experiment
from raypp.errors import ConfigError
from raypp.models.freezing import freeze, freezes_embeddings

PRUNING = {"method": "magnitude", "final_density": 0.5}


def experiment(**sections: Any) -> Experiment:
    return Experiment.model_validate({"name": "any", "task": "mrpc", "student": {"model": "any"}} | sections)


@pytest.mark.parametrize(
    ("sections", "frozen"),
    [
        ({}, False),
        ({"pruning": PRUNING}, True),
        ({"pruning": PRUNING, "student": {"model": "any", "layers": [0, 2]}}, True),
        ({"pruning": PRUNING, "student": {"model": "any", "config": {"num_hidden_layers": 2}}}, False),
        ({"pruning": PRUNING, "train": {"freeze_embeddings": False}}, False),
        (
            {
                "student": {"model": "any", "config": {"num_hidden_layers": 2}},
                "train": {"freeze_embeddings": True},
            },
            True,
        ),
    ],
)
def test_embeddings_are_frozen_by_default_if_a_pretrained_student_is_pruned(
    sections: dict[str, Any], frozen: bool
) -> None:
    assert freezes_embeddings(experiment(**sections)) is frozen


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
SIDES = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
SIDES |= {name.replace("encoder", "decoder"): value for name, value in SIDES.items()}
SIZES: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "gpt2": SMALL,
    "openai-gpt": SMALL,
    "bloom": SMALL,
    "opt": SMALL | {"word_embed_proj_dim": 16, "ffn_dim": 16},
    "bart": {"d_model": 16, "vocab_size": 50} | SIDES,
    "xlm": {"emb_dim": 16, "n_layers": 1, "n_heads": 2, "n_words": 50, "n_langs": 1},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 50},
}
BERT = ["word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"]
EMBEDDINGS = {
    "bert": [f"embeddings.{name}" for name in BERT],
    "gpt2": ["wte", "wpe"],
    "openai-gpt": ["tokens_embed", "positions_embed"],
    "bloom": ["word_embeddings", "word_embeddings_layernorm"],
    "opt": ["decoder.embed_tokens", "decoder.embed_positions"],
    "bart": [
        "shared",
        *(f"{side}.{name}" for side in ("encoder", "decoder") for name in ("embed_positions", "layernorm_embedding")),
    ],
    "xlm": ["embeddings", "position_embeddings", "layer_norm_emb"],
    "t5": ["shared"],
}


def frozen_by(family: str, setting: str, **changes: Any) -> set[str]:
    """The modules of a small model of the family that have parameters, and whose parameters are all frozen."""
    config = transformers.AutoConfig.for_model(family, pad_token_id=0, **SIZES[family], **changes)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    freeze(model, experiment(train={setting: True}))
    trained: dict[str, set[bool]] = {}
    for name, parameter in model.base_model.named_parameters():
        trained.setdefault(name.rpartition(".")[0], set()).add(parameter.requires_grad)
    assert {True} in trained.values(), "all else is trained"
    return {module for module, states in trained.items() if states != {True}}


@pytest.mark.parametrize("family", EMBEDDINGS)
def test_all_embeddings_of_a_family_are_frozen_and_nothing_else(family: str) -> None:
    assert frozen_by(family, "freeze_embeddings") == set(EMBEDDINGS[family])


def test_token_embeddings_of_encoder_and_decoder_are_frozen() -> None:
    own = {"encoder.embed_tokens", "decoder.embed_tokens"}
    assert frozen_by("bart", "freeze_embeddings", tie_word_embeddings=False) == {*EMBEDDINGS["bart"], *own}


@pytest.mark.parametrize("family", ["bert", "gpt2", "openai-gpt", "opt", "bart", "xlm"])
def test_only_position_embeddings_are_frozen(family: str) -> None:
    positions = {name for name in EMBEDDINGS[family] if "pos" in name or name == "wpe"}
    assert frozen_by(family, "freeze_position_embeddings") == positions


def test_a_model_without_embeddings_of_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.freeze_position_embeddings: a bloom has no such embeddings"):
        frozen_by("bloom", "freeze_position_embeddings")
