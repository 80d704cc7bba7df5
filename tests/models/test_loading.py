"""Models that are refused before they are loaded, compared with what their forward pass accepts; and the nodes whose
copies are."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hub_copy import hub_models
from safetensors.torch import save_file

from raypp.errors import ConfigError, WorkersLost
from raypp.kinds import kind_of
from raypp.models.loading import (
    POSITIONS_FROM_PADDING,
    check_fit,
    hub_commit,
    load_model_config,
    load_tokenizer,
    max_positions,
    model_fingerprint,
    model_inputs,
    resolve_model,
    resolve_planned,
)
from raypp.tasks import find_task

SMALL = {
    **{"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    **{"vocab_size": 50, "max_position_embeddings": 20},
}
OWN: dict[str, dict[str, Any]] = {
    "longformer": {"attention_window": [4]},
    "luke": {"entity_vocab_size": 5, "entity_emb_size": 8},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "markuplm": {"max_depth": 2, "xpath_unit_hidden_size": 4},
}


@pytest.mark.parametrize("padding", [1, 3])
@pytest.mark.parametrize("family", [*POSITIONS_FROM_PADDING, "mpnet", "bert", "electra", "nystromformer", "yoso"])
def test_the_longest_allowed_text_is_the_longest_that_a_model_can_read(family: str, padding: int) -> None:
    config = transformers.AutoConfig.for_model(family, pad_token_id=padding, **SMALL, **OWN.get(family, {}))
    model = transformers.AutoModel.from_config(config).eval()
    longest = max_positions(config)
    with torch.no_grad():
        states = model(torch.full((1, longest), 7)).last_hidden_state
        assert states.shape[:2] == (1, longest)
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, longest + 1), 7))


@pytest.mark.parametrize("loads", [load_model_config, load_tokenizer])
def test_no_python_file_of_a_model_is_run(
    loads: Callable[[Path, str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "was-run"
    (tmp_path / "own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoTokenizer": ["own.Tokenizer", None]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "OwnTokenizer"}))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask on a terminal
    with pytest.raises(ConfigError, match=r"^student\.model: .* Python code of its own, which raypp does not run"):
        loads(tmp_path, "student.model")
    assert not marker.exists()


def test_weights_that_are_not_complete_are_refused_by_their_file(tmp_path: Path) -> None:
    model = transformers.BertModel(transformers.BertConfig(**SMALL))
    model.save_pretrained(tmp_path)
    resolve_model(str(tmp_path), None, "student.model")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for damaged in (whole[:-1], whole[:100], b"version https://git-lfs.github.com/spec/v1\n", b""):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"^student\.model: the weights in .*model\.safetensors cannot be read: "):
            resolve_model(str(tmp_path), None, "student.model")
    sharded = tmp_path / "sharded"
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "gone.safetensors"}}')
    (tmp_path / "adapter.safetensors").write_bytes(b"")
    resolve_model(str(tmp_path), None, "student.model")  # transformers reads neither
    model.save_pretrained(sharded, max_shard_size=10_000)
    resolve_model(str(sharded), None, "student.model")
    next(sharded.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(ConfigError, match=r"^student\.model: the weights in .*model-00002-of-.* cannot be read: "):
        resolve_model(str(sharded), None, "student.model")


@pytest.mark.parametrize("types", [1, 2])
def test_a_model_of_one_token_type_is_not_given_a_second_one(types: int) -> None:
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**SMALL, type_vocab_size=types)
    model = transformers.RobertaForSequenceClassification(config).eval()
    first, second = (torch.full((1, 4), number) for number in (0, 1))
    answers = []
    for kinds in (first, second):
        with torch.no_grad():
            inputs = model_inputs(model, {"input_ids": torch.full((1, 4), 7), "token_type_ids": kinds})
            answers.append(model(**inputs).logits)
    assert torch.equal(*answers) == (types == 1)


@pytest.mark.parametrize("task", ["mrpc", "squad", "swag"])
def test_xlnet_is_refused_by_its_name(task: str, tmp_path: Path) -> None:
    transformers.XLNetConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"^student\.model: model_type 'xlnet' needs texts that are padded on the left"
    ):
        load_model_config(tmp_path, "student.model", kind_of(find_task(task)))


@pytest.mark.parametrize("family", ["canine", "convbert", "fnet", "nystromformer", "yoso"])
def test_families_whose_outputs_depend_on_padding_are_refused(family: str, tmp_path: Path) -> None:
    # With more layers, padding at the end reaches the beginning.
    longer = {"max_position_embeddings": 64, "num_hidden_layers": 3}
    config = transformers.AutoConfig.for_model(family, pad_token_id=0, **SMALL | longer)
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"model_type '{family}' reads padding as text"):
        load_model_config(tmp_path, "student.model", kind_of(find_task("mrpc")))
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():  # as far from 0 as trained parameters are
        torch.nn.init.normal_(parameter, std=0.2)
    ids, mask = torch.randint(3, 50, (4, 13)), torch.ones(4, 13, dtype=torch.long)
    with torch.no_grad():
        alone = model(input_ids=ids, attention_mask=mask).logits
        padded = model(
            input_ids=torch.nn.functional.pad(ids, (0, 11)), attention_mask=torch.nn.functional.pad(mask, (0, 11))
        ).logits
    assert not torch.allclose(alone, padded, rtol=1e-3, atol=1e-4), "it may be read then"


def test_big_birds_attention_must_not_change_with_the_batch(minilm_dir: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_dir)
    sparse = transformers.BigBirdConfig(vocab_size=40_000)
    check_fit(sparse, tokenizer, 704, "student.model")
    with pytest.raises(
        ConfigError, match=r"data\.max_length: 705 is more than the 704 tokens up to which student\.model"
    ):
        check_fit(sparse, tokenizer, 705, "student.model")
    check_fit(transformers.BigBirdConfig(vocab_size=40_000, attention_type="original_full"), tokenizer, 4096, "student")


def test_a_model_that_was_written_again_has_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"first")
    first = model_fingerprint(tmp_path)
    assert model_fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"later")
    assert model_fingerprint(tmp_path) != first


def a_model(folder: Path, tensor: str) -> Path:
    """A folder that looks like a model's, with a tensor of this name."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({tensor: torch.zeros(1)}, folder / "model.safetensors")
    return folder


def test_a_node_must_have_the_copy_of_a_folder_that_the_command_found(tmp_path: Path) -> None:
    folder, node = a_model(tmp_path / "model", "first"), platform.node()
    fingerprint = model_fingerprint(folder)
    assert resolve_planned(str(folder), None, fingerprint, "student.model") == folder
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(WorkersLost) as differs:
        resolve_planned(str(folder), None, fingerprint, "student.model")
    assert str(differs.value) == (
        f"student.model: the copy of {folder} on node {node} differs from the command's; give every node the same copy"
    )
    shutil.rmtree(folder)
    with pytest.raises(WorkersLost) as lacks:
        resolve_planned(str(folder), None, fingerprint, "student.model")
    assert str(lacks.value).startswith(f"student.model: node {node} does not find {folder}, which the command found; ")
    with pytest.raises(ConfigError, match=r"^student\.model: .* is not a folder$"):
        resolve_model(str(folder), None, "student.model")


def test_a_node_gets_the_commit_that_the_command_found_though_main_has_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, planned, later = "someone/model", "a" * 40, "b" * 40
    cache = tmp_path / "cache"
    hub_models(cache, monkeypatch, name, {planned: a_model(tmp_path / "first", "first")})
    folder = resolve_model(name, None, "teacher.model")
    assert hub_commit(name, folder) == planned
    assert hub_commit(str(folder), folder) is None
    fingerprint = model_fingerprint(folder)
    model = hub_models(cache, monkeypatch, name, {later: a_model(tmp_path / "later", "later")})
    assert hub_commit(name, resolve_model(name, None, "teacher.model")) == later
    assert resolve_planned(name, planned, fingerprint, "teacher.model") == folder

    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WorkersLost, match=rf"^teacher\.model: the copy of {name} on node .*; delete {model} where"):
        resolve_planned(name, planned, fingerprint, "teacher.model")
    shutil.rmtree(folder)  # as on a new node; the hub cannot be reached
    with pytest.raises(WorkersLost, match=rf"^teacher\.model: node .* does not find {name}.*let it reach the hub"):
        resolve_planned(name, planned, fingerprint, "teacher.model")
    with pytest.raises(ConfigError, match="the hub does not provide it"):
        resolve_model(name, planned, "teacher.model")
