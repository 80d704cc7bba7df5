"""Blocks: texts are cut as the original distiller did, and everything that is dropped is in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from raypp.corpus.blocks import SHORTEST, Blocks, count_tokens, cut_texts, special_frame

TEXT = "the quick brown fox jumps over the lazy dog while seven wizards watch from a distant hill"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def tokenizer(minilm_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(minilm_dir)


def texts_of(*texts: str, first_row: int = 0) -> pa.Table:
    return pa.table({"row": np.arange(first_row, first_row + len(texts)), "text": pa.array(texts, pa.string())})


def reference(tokenizer: Any, text: str, max_length: int) -> list[list[int]]:
    """The original's `lm_seqs_dataset.py`, in a loop: long sequences cut, each piece with [CLS] and [SEP]; those of
    fewer than 12 tokens or with half unknown ones dropped."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    room = max_length - 2
    pieces = [ids[start : start + room] for start in range(0, len(ids), room)]
    framed = [[tokenizer.cls_token_id, *piece, tokenizer.sep_token_id] for piece in pieces]
    return [ids for ids in framed if len(ids) > 11 and ids.count(tokenizer.unk_token_id) / len(ids) < 0.5]


def test_texts_are_cut_as_the_original_did(tokenizer: Any) -> None:
    chance = np.random.default_rng(0)
    texts = [" ".join(chance.choice([*WORDS, "🙂"], chance.integers(0, 90))) for _ in range(200)]
    texts += ["", "🙂 " * 30, "a " * 14, "b " * 15, "c " * 28, "d " * 29]
    table, report = cut_texts(texts_of(*texts), tokenizer, 16)
    expected = [(row, ids) for row, text in enumerate(texts) for ids in reference(tokenizer, text, 16)]
    assert list(zip(table["row"].to_pylist(), table["input_ids"].to_pylist(), strict=True)) == expected
    assert report.blocks == len(expected)
    assert report.tokens == sum(len(ids) for _, ids in expected)
    whole = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert report.blocks + report.short_blocks + report.unknown_blocks == sum(
        max(1, -(-length // 14)) for length in whole
    )
    assert report.cut_texts == sum(length > 14 for length in whole)
    assert (report.texts, report.unknown_blocks) == (206, 2)


def test_the_report_says_what_was_dropped_and_adds_up(tokenizer: Any) -> None:
    one = cut_texts(texts_of("too short", "🙂 " * 12), tokenizer, 64)[1]
    other = cut_texts(texts_of(" ".join(WORDS)), tokenizer, 64)[1]
    both = cut_texts(texts_of("too short", "🙂 " * 12, " ".join(WORDS)), tokenizer, 64)[1]
    assert one + other == both
    assert (both.blocks, both.short_blocks, both.unknown_blocks) == (1, 1, 1)
    assert f"1 with fewer than {SHORTEST} tokens, 1 with 50% or more unknown" in str(both)


def test_a_piece_keeps_its_position_in_the_source(tokenizer: Any) -> None:
    table, _ = cut_texts(texts_of(" ".join(WORDS * 3), " ".join(WORDS), first_row=40), tokenizer, 20)
    assert table["row"].to_pylist() == [40, 40, 40, 41]
    assert table["piece"].to_pylist() == [0, 1, 2, 0]


def test_a_tokenizer_without_special_tokens_of_its_own_marks_begin_and_end() -> None:
    """For GPT-2's tokenizer, the original put its end-of-text token around every sequence."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    assert special_frame(plain) == ([0], [0])
    table, _ = cut_texts(texts_of("b " * 12), plain, 14)
    assert table["input_ids"].to_pylist() == [[0, *[2] * 12, 0]]


def test_counts_and_padded_rows_are_those_of_the_blocks(tokenizer: Any) -> None:
    table, _ = cut_texts(texts_of(" ".join(WORDS), " ".join(WORDS[:11])), tokenizer, 64)
    first, second = table["input_ids"].to_pylist()
    counts = count_tokens(table, len(tokenizer))
    assert {token: int(counts[token]) for token in set(first)} == {t: (first + second).count(t) for t in set(first)}
    assert counts.sum() == len(first) + len(second)
    ids, is_real = Blocks.from_table(table).padded(np.array([1, 0]))
    assert ids.shape == (2, -(-len(first) // 8) * 8)
    assert [row[real].tolist() for row, real in zip(ids, is_real, strict=True)] == [second, first]
    assert (ids[~is_real] == 0).all()
