"""The student before training: chosen layers keep their weights, a new model follows its configuration and seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from raypp.config import StudentSettings
from raypp.errors import ConfigError
from raypp.kinds import kind_of
from raypp.models.loading import load_pretrained
from raypp.models.student import check_layers, keep_layers, layer_stack, student_config
from raypp.tasks import TASKS

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
NAMES = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "electra": "encoder.layer",
    "distilbert": "transformer.layer",
    "deberta-v2": "encoder.layer",
    "gpt2": "h",
    "opt": "decoder.layers",
}


def a_model(family: str, task: str = "ForSequenceClassification", layers: int = 6) -> Any:
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(family, num_hidden_layers=layers, pad_token_id=0, **SMALL)
    prefix = {"deberta-v2": "DebertaV2", "distilbert": "DistilBert", "gpt2": "GPT2", "opt": "OPT", "roberta": "Roberta"}
    return getattr(transformers, prefix.get(family, family.title()) + task)(config).eval()


@pytest.mark.parametrize("family", NAMES)
def test_kept_layers_and_everything_else_keep_their_weights(family: str) -> None:
    model = a_model(family)
    smaller = keep_layers(model, (0, 2, 5))
    check_layers(model, smaller, (0, 2, 5))
    stack = layer_stack(model)
    assert stack.endswith(NAMES[family])
    before, after = model.state_dict(), smaller.state_dict()
    assert len(smaller.get_submodule(stack)) == smaller.config.num_hidden_layers == 3
    for name, value in after.items():
        if name.startswith(f"{stack}."):
            layer, _, rest = name.removeprefix(f"{stack}.").partition(".")
            name = f"{stack}.{(0, 2, 5)[int(layer)]}.{rest}"
        assert torch.equal(value, before[name]), name
    assert len(before) - len(after) == 3 * sum(name.startswith(f"{stack}.0.") for name in before)


def test_keeping_all_layers_keeps_the_model(minilm_dir: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(minilm_dir).eval()
    ids = torch.randint(1000, 2000, (2, 9))
    with torch.no_grad():
        assert torch.equal(keep_layers(model, range(6)).eval()(ids).logits, model(ids).logits)
        # Without the upper layers, the state below them is the same as in the whole model.
        below = model(ids, output_hidden_states=True).hidden_states[3]
        lower = keep_layers(model, range(3)).eval()
        assert torch.equal(lower(ids, output_hidden_states=True).hidden_states[3], below)


def test_a_language_model_keeps_its_head_and_its_tied_weights() -> None:
    model = a_model("bert", "ForMaskedLM")
    smaller = keep_layers(model, (1,))
    assert smaller.cls.predictions.decoder.weight is smaller.bert.embeddings.word_embeddings.weight
    assert torch.equal(smaller.cls.predictions.bias, model.cls.predictions.bias)


@pytest.mark.parametrize("family", ["albert", "t5"])
def test_models_without_a_stack_of_layers_are_refused(family: str) -> None:
    config = transformers.AutoConfig.for_model(family, num_hidden_layers=6, num_layers=6, d_model=16, **SMALL)
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ConfigError, match=f"student.layers: a {family} has no single stack of 6 layers"):
        keep_layers(model, (0, 1))


@pytest.mark.parametrize(("family", "said"), [("modernbert", "not alike, so"), ("gpt_neo", "(attention_layers in its")])
def test_layers_that_differ_are_refused_before_training(family: str, said: str) -> None:
    """ModernBERT's first layer lacks a norm, and GPT-Neo's layers alternate between local and global attention."""
    kinds = {"attention_types": [[["global", "local"], 3]], "num_layers": 6} if family == "gpt_neo" else {}
    config = transformers.AutoConfig.for_model(
        family, num_hidden_layers=6, pad_token_id=0, bos_token_id=1, eos_token_id=2, sep_token_id=2, **SMALL | kinds
    )
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ConfigError) as caught:
        check_layers(model, AutoModelForSequenceClassification.from_config(small_of(config, (1, 3, 5))), (1, 3, 5))
    assert f"student.layers: the layers of a {family} are not alike" in str(caught.value)
    assert said in str(caught.value)


def small_of(config: Any, layers: tuple[int, ...]) -> Any:
    smaller = student_config(config, settings(layers=layers))
    if config.model_type == "gpt_neo":  # as it would be if it could
        smaller.attention_types, smaller.attention_layers = [[["local"], 3]], ["local"] * 3
    return smaller


def settings(**changes: Any) -> StudentSettings:
    return StudentSettings.model_validate({"model": "some", **changes})


def test_a_configuration_is_changed_or_replaced() -> None:
    bert = a_model("bert").config
    assert student_config(bert, settings()) is bert
    assert student_config(bert, settings(layers=[0, 3])).num_hidden_layers == 2
    changed = student_config(bert, settings(config={"num_hidden_layers": 2, "hidden_size": 8}))
    assert (changed.num_hidden_layers, changed.hidden_size, changed.vocab_size) == (2, 8, 50)
    other = student_config(bert, settings(config={"model_type": "distilbert", "n_layers": 3}))
    assert (type(other).__name__, other.num_hidden_layers, other.vocab_size) == ("DistilBertConfig", 3, 30522)
    assert bert.num_hidden_layers == 6, "what is given is not changed"
    assert len(AutoModelForMaskedLM.from_config(changed).bert.encoder.layer) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [0, 6]}, "student.layers: 6 is no layer of some; allowed: 0 to 5"),
        ({"config": {"num_hiden_layers": 2}}, "student.config: a bert has no setting 'num_hiden_layers'"),
        ({"config": {"model_type": "brt"}}, "student.config: transformers cannot use it"),
    ],
)
def test_a_student_that_cannot_be_made_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        student_config(a_model("bert").config, settings(**changes))


@pytest.mark.parametrize("changes", [{"layers": [2, 1]}, {"layers": [1, 1]}, {"layers": [1], "config": {}}])
def test_settings_that_exclude_each_other_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be unique and ascending|give layers or config, not both"):
        settings(**changes)


def test_weights_of_another_configuration_are_refused_and_not_initialised_again(
    minilm_dir: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(minilm_dir, tmp_path / "edited")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    with pytest.raises(
        ConfigError, match=r"position_embeddings.weight has shape \[512, 384\] in the weights, but \[256, 384\]"
    ):
        load_pretrained(folder, kind_of(TASKS["mrpc"]), seed=0)
