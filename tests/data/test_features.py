"""Features: the tokenizer's own ids, ragged, and padded exactly as transformers' collator pads."""

from __future__ import annotations

import pickle
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raypp.config import DataSettings
from raypp.data.features import Features, features_schema
from raypp.data.tokenization import has_token_types, tokenizer_fingerprint
from raypp.kinds import kind_of
from raypp.tasks import Task, find_task

PAIR, SINGLE, REGRESSION = find_task("mrpc"), find_task("sst2"), find_task("stsb")


@pytest.fixture(scope="module")
def tokenizer(minilm_dir: Path) -> Any:
    return load(minilm_dir)


def tokenize_batch(batch: Any, tokenizer: Any, task: Task, max_length: int) -> pa.Table:
    return kind_of(task, DataSettings(max_length=max_length)).tokenize(batch, tokenizer)


def features_key(task: Task, max_length: int, **fingerprints: str) -> str:
    return kind_of(task, DataSettings(max_length=max_length)).features_key(**fingerprints)


def load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def mrpc_dev(glue_dir: Path) -> pa.Table:
    lines = (glue_dir / "MRPC" / "dev.tsv").read_text("utf-8-sig").splitlines()[1:]
    fields = [line.split("\t") for line in lines]
    return pa.table(
        {
            "row": pa.array(range(len(fields)), pa.int64()),
            "sentence1": [field[3] for field in fields],
            "sentence2": [field[4] for field in fields],
            "label": pa.array([int(field[0]) for field in fields], pa.int64()),
        }
    )


def raw(texts: list[str], pairs: list[str] | None = None, label: Any = None) -> pa.RecordBatch:
    columns: dict[str, Any] = {
        "row": pa.array(range(len(texts)), pa.int64()),
        "sentence1": pa.array(texts, pa.string()),
    }
    if pairs is not None:
        columns["sentence2"] = pa.array(pairs, pa.string())
    columns["label"] = pa.nulls(len(texts)) if label is None else label
    return pa.RecordBatch.from_pydict(columns)


@pytest.mark.parametrize("max_length", [128, 48, 16])
def test_ids_are_those_of_the_tokenizer_one_by_one(mrpc_dev: pa.Table, tokenizer: Any, max_length: int) -> None:
    table = tokenize_batch(mrpc_dev, tokenizer, PAIR, max_length)
    rows = mrpc_dev.to_pylist()
    one_by_one = [
        tokenizer(row["sentence1"], row["sentence2"], truncation="longest_first", max_length=max_length) for row in rows
    ]
    assert table.column("input_ids").to_pylist() == [encoded["input_ids"] for encoded in one_by_one]
    assert table.column("token_type_ids").to_pylist() == [encoded["token_type_ids"] for encoded in one_by_one]
    assert table.column("row").to_pylist() == list(range(len(rows)))
    assert table.column("label").to_pylist() == [row["label"] for row in rows]
    longest = max(len(tokenizer(row["sentence1"], row["sentence2"])["input_ids"]) for row in rows)
    assert 48 < longest < 128, "the three lengths cut nothing, some pairs and most pairs"
    assert max(map(len, table.column("input_ids").to_pylist())) == min(max_length, longest)


def test_features_are_ragged_and_not_padded(mrpc_dev: pa.Table, tokenizer: Any) -> None:
    table = tokenize_batch(mrpc_dev, tokenizer, PAIR, 128)
    assert table.schema == features_schema(pa.int64(), has_token_types=True)
    ids = table.column("input_ids").to_pylist()
    assert len({len(row) for row in ids}) > 30
    assert all(row[0] == tokenizer.cls_token_id and row[-1] == tokenizer.sep_token_id for row in ids)
    assert not any(tokenizer.pad_token_id in row for row in ids)


def test_single_sentences_and_missing_labels(tokenizer: Any) -> None:
    texts = ["a fine film", "", "x " * 50]
    table = tokenize_batch(raw(texts), tokenizer, SINGLE, 8)
    assert table.column("input_ids").to_pylist() == [
        tokenizer(text, truncation=True, max_length=8)["input_ids"] for text in texts
    ]
    assert table.column("label").to_pylist() == [None] * 3
    assert table.schema.field("label").type == pa.int64()


def test_empty_second_sentence_is_still_a_pair(tokenizer: Any) -> None:
    table = tokenize_batch(raw(["a"], [""]), tokenizer, PAIR, 8)
    cls, sep, a = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.convert_tokens_to_ids("a")
    assert table.column("input_ids").to_pylist() == [[cls, a, sep, sep]]
    assert table.column("token_type_ids").to_pylist() == [[0, 0, 0, 1]]


def test_regression_labels_are_float32(tokenizer: Any) -> None:
    table = tokenize_batch(raw(["a", "b"], ["c", "d"], pa.array([3.8, None])), tokenizer, REGRESSION, 16)
    assert table.column("label").type == pa.float32()
    features = Features.from_table(table)
    assert features.labels.dtype == np.float32
    assert features.labels.tolist() == [np.float32(3.8), 0.0]
    assert features.labelled.tolist() == [True, False]


def test_empty_batch_has_the_same_columns(tokenizer: Any) -> None:
    table = tokenize_batch(raw([], []), tokenizer, PAIR, 16)
    assert table.num_rows == 0
    assert table.schema == features_schema(pa.int64(), has_token_types=True)
    assert len(Features.from_table(table)) == 0


def test_token_types_only_where_the_models_use_them(minilm_dir: Path) -> None:
    tokenizer = load(minilm_dir)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # as RoBERTa's
    assert not has_token_types(tokenizer)
    table = tokenize_batch(raw(["a"], ["b"]), tokenizer, PAIR, 16)
    assert table.schema.names == ["row", "label", "input_ids"]
    assert "token_type_ids" not in Features.from_table(table).collate([0], 0)


def test_tokenizers_written_in_python_work_too() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    texts, pairs = ["abc", "ü"], ["defgh", "x"]
    table = tokenize_batch(raw(texts, pairs), tokenizer, PAIR, 9)
    one_by_one = [
        tokenizer(first, second, truncation="longest_first", max_length=9)["input_ids"]
        for first, second in zip(texts, pairs, strict=True)
    ]
    assert table.column("input_ids").to_pylist() == one_by_one


def test_fingerprint_is_of_the_content(minilm_dir: Path, tmp_path: Path) -> None:
    tokenizer = load(minilm_dir)
    fingerprint = tokenizer_fingerprint(tokenizer)
    shutil.copytree(minilm_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    assert tokenizer_fingerprint(load(tmp_path / "copy")) == fingerprint
    # Earlier calls of the tokenizer do not change it.
    tokenizer(["a", "b c"], padding="max_length", truncation=True, max_length=7)
    assert tokenizer_fingerprint(tokenizer) == fingerprint
    assert tokenizer_fingerprint(pickle.loads(pickle.dumps(tokenizer))) == fingerprint


def test_fingerprint_changes_with_whatever_changes_ids(minilm_dir: Path) -> None:
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import WhitespaceSplit

    def cased(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.normalizer = BertNormalizer(lowercase=False)

    def split_otherwise(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()

    def more_tokens(tokenizer: Any) -> None:
        tokenizer.add_tokens(["raypp"])

    def cut_left(tokenizer: Any) -> None:
        tokenizer.truncation_side = "left"

    def other_pad(tokenizer: Any) -> None:
        tokenizer.pad_token = "[MASK]"

    def no_token_types(tokenizer: Any) -> None:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]

    fingerprints = [tokenizer_fingerprint(load(minilm_dir))]
    for change in (cased, split_otherwise, more_tokens, cut_left, other_pad, no_token_types):
        tokenizer = load(minilm_dir)
        change(tokenizer)
        fingerprints.append(tokenizer_fingerprint(tokenizer))
    assert len(set(fingerprints)) == len(fingerprints)


def test_fingerprint_of_tokenizers_written_in_python(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer, CanineTokenizer

    first = ByT5Tokenizer()
    first.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(ByT5Tokenizer()) == tokenizer_fingerprint(first)
    assert tokenizer_fingerprint(ByT5Tokenizer.from_pretrained(tmp_path)) == tokenizer_fingerprint(first)
    assert tokenizer_fingerprint(ByT5Tokenizer(extra_ids=10)) != tokenizer_fingerprint(first)
    assert tokenizer_fingerprint(CanineTokenizer()) != tokenizer_fingerprint(first)


def test_key_changes_with_each_of_its_parts() -> None:
    parts: dict[str, Any] = {"raw_fingerprint": "r", "tokenizer_fingerprint": "t", "task": PAIR, "max_length": 128}
    others: list[dict[str, Any]] = [
        parts | {"raw_fingerprint": "x"},
        parts | {"tokenizer_fingerprint": "x"},
        parts | {"task": replace(PAIR, labels=PAIR.labels[::-1])},
        parts | {"task": replace(PAIR, pair=False)},
        parts | {"task": REGRESSION},
        parts | {"max_length": 64},
    ]
    keys = [features_key(**parts), *(features_key(**other) for other in others)]
    assert len(set(keys)) == len(keys)
    assert features_key(**parts | {"task": replace(PAIR, name="other")}) == keys[0]


def test_features_in_memory_have_the_content_of_the_table(mrpc_dev: pa.Table, tokenizer: Any) -> None:
    table = tokenize_batch(mrpc_dev, tokenizer, PAIR, 64)
    chunked = pa.concat_tables([table.slice(0, 7), table.slice(7, 0), table.slice(7, 200), table.slice(207)])
    features = Features.from_table(chunked)
    assert len(features) == table.num_rows
    ids, types = table.column("input_ids").to_pylist(), table.column("token_type_ids").to_pylist()
    assert features.lengths.tolist() == [len(row) for row in ids]
    assert features.token_type_ids is not None
    for index, (start, end) in enumerate(zip(features.offsets[:-1], features.offsets[1:], strict=True)):
        assert features.input_ids[start:end].tolist() == ids[index]
        assert features.token_type_ids[start:end].tolist() == types[index]
    assert features.labels.tolist() == table.column("label").to_pylist()
    assert features.is_labelled


def test_rows_that_are_out_of_order_or_repeated_are_a_bug(mrpc_dev: pa.Table, tokenizer: Any) -> None:
    table = tokenize_batch(mrpc_dev.slice(0, 3), tokenizer, PAIR, 64)
    for order in ([0, 2, 1], [0, 1, 1]):
        with pytest.raises(AssertionError, match="sorted"):
            Features.from_table(table.take(order))


def test_collate_pads_as_transformers_does(mrpc_dev: pa.Table, tokenizer: Any) -> None:
    from transformers import DataCollatorWithPadding

    table = tokenize_batch(mrpc_dev, tokenizer, PAIR, 64)
    features, examples = Features.from_table(table), table.to_pylist()
    reference = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)
    generator = np.random.default_rng(0)
    for size in (1, 2, 8, 33):
        indices = generator.permutation(len(features))[:size]
        batch = features.collate(indices, tokenizer.pad_token_id)
        expected = reference(
            [
                {name: examples[index][name] for name in ("input_ids", "token_type_ids", "label")}
                | {"attention_mask": [1] * len(examples[index]["input_ids"])}
                for index in indices
            ]
        )
        assert batch.keys() == expected.keys()
        for name, tensor in expected.items():
            assert batch[name].dtype == tensor.dtype
            assert torch.equal(batch[name], tensor), name


def test_width_follows_the_longest_row_and_is_limited_by_the_model(tokenizer: Any) -> None:
    texts = ["a", "a " * 5, "a " * 9, "a " * 17]  # 3, 7, 11 and 19 tokens
    features = Features.from_table(tokenize_batch(raw(texts), tokenizer, SINGLE, 32))
    assert features.collate([0, 1], 0)["input_ids"].shape == (2, 8)
    assert features.collate([2, 0], 0)["input_ids"].shape == (2, 16)
    assert features.collate([3], 0)["input_ids"].shape == (1, 24)
    assert features.collate([3], 0, multiple_of=32)["input_ids"].shape == (1, 32)
    assert features.collate([3], 0, max_padded=20)["input_ids"].shape == (1, 20)
    assert features.collate([0], 0, max_padded=20)["input_ids"].shape == (1, 8)
    with pytest.raises(AssertionError, match="at most 18 positions"):
        features.collate([3], 0, max_padded=18)


def test_padding_has_the_given_token_and_zeros(tokenizer: Any) -> None:
    features = Features.from_table(tokenize_batch(raw(["a"], ["b"]), tokenizer, PAIR, 32))
    batch = features.collate([0], 7)
    assert batch["input_ids"][0, 5:].tolist() == [7, 7, 7]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]


def test_labels_only_of_a_split_that_has_them_all(tokenizer: Any) -> None:
    for labels, expected in (([1, 0], True), ([1, None], False), ([None, None], False)):
        table = tokenize_batch(raw(["a", "b"], label=pa.array(labels, pa.int64())), tokenizer, SINGLE, 16)
        features = Features.from_table(table)
        assert features.is_labelled is expected
        assert ("labels" in features.collate([0], 0)) is expected


def test_teacher_logits_go_with_their_rows(mrpc_dev: pa.Table, tokenizer: Any) -> None:
    features = Features.from_table(tokenize_batch(mrpc_dev, tokenizer, PAIR, 64))
    logits = np.random.default_rng(0).normal(size=(len(features), 2)).astype(np.float32)
    table = pa.table({"row": features.rows, "logits": list(logits)})
    batch = features.with_teacher_logits(table).collate([5, 3], 0)
    assert torch.equal(batch["teacher_logits"], torch.from_numpy(logits[[5, 3]]))
    with pytest.raises(AssertionError):
        features.with_teacher_logits(table.slice(1))


def test_shared_memory_is_read_and_never_written(mrpc_dev: pa.Table, tokenizer: Any) -> None:
    """Ray gives read-only views of one copy per node; batches made from them are the reader's own."""
    features = Features.from_table(tokenize_batch(mrpc_dev, tokenizer, PAIR, 64))
    arrays = {name: value.copy() for name, value in vars(features).items() if isinstance(value, np.ndarray)}
    for array in arrays.values():
        array.setflags(write=False)
    shared = replace(features, **arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = shared.collate([1, 2], 0)
    for tensor in batch.values():
        tensor.zero_()
    assert torch.equal(shared.collate([1, 2], 0)["input_ids"], features.collate([1, 2], 0)["input_ids"])
