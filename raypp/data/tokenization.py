"""Token ids of texts, by any tokenizer of transformers: nothing is padded, and what is too long is cut."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypp.store import content_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Settings of a tokenizer that change no id: where it was loaded from, and a length in whose place we give our own.
_WITHOUT_EFFECT = ("name_or_path", "is_local", "local_files_only", "model_max_length")

Encoded = dict[str, list[list[int]]]
"""input_ids and, where they are asked for, token_type_ids: of each text, or of each pair."""


@dataclass(frozen=True)
class Vocabulary:
    """What training needs to know of a tokenizer once the features are made: loading it takes a worker about a
    second."""

    size: int
    """Tokens, the added ones included."""
    special_ids: tuple[int, ...]
    pad_id: int
    """0 if there is no such token, as in GPT-2: a language model does not look there, and other tasks refuse it."""
    mask_id: int | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """A tokenizer's vocabulary."""
        special_ids = tuple(tokenizer.all_special_ids)
        return cls(len(tokenizer), special_ids, tokenizer.pad_token_id or 0, tokenizer.mask_token_id)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 (hex) of all that decides which ids a text gets; the same wherever the tokenizer was loaded from."""
    parts: dict[str, Any] = {
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "added_tokens": tokenizer.get_added_vocab(),
        "truncation_side": tokenizer.truncation_side,
        "split_special_tokens": tokenizer.split_special_tokens,
        "model_inputs": list(tokenizer.model_input_names),
    }
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        # These two only remember the last call; ours sets its own.
        parts["backend"] = {name: value for name, value in backend.items() if name not in ("truncation", "padding")}
    else:
        parts |= {"class": type(tokenizer).__name__, "vocabulary": _vocabulary_hashes(tokenizer)}
        parts["settings"] = {
            name: value
            for name, value in tokenizer.init_kwargs.items()
            if isinstance(value, bool | int | float | str)
            and not name.endswith("_file")
            and name not in _WITHOUT_EFFECT
        }
    return content_key(**parts)


def _vocabulary_hashes(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        files = sorted(Path(folder).iterdir())
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def has_token_types(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's models tell the first sentence from the second by token types."""
    return "token_type_ids" in tokenizer.model_input_names


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[str]], max_length: int | None) -> Encoded:
    """The ids of texts, or of pairs, with special tokens.

    Args:
        texts: one list, or the first and the second sentence of every pair.
        max_length: more tokens, special ones included, are cut: of a pair, from the longer sentence first. None: none
            are.
    """
    if not texts[0]:
        return {"input_ids": [], "token_type_ids": []}
    return (_encode_fast if tokenizer.is_fast else _encode_slow)(tokenizer, texts, max_length)


def encode_keeping_second(
    tokenizer: PreTrainedTokenizerBase, firsts: list[str], seconds: list[str], max_length: int
) -> Encoded:
    """The ids of pairs of which the second sentence matters: the first one's end is cut, and only where the second
    alone is too long, its beginning."""
    encoded = encode(tokenizer, [firsts, seconds], None)
    cut = _cut_pair_fast if tokenizer.is_fast else _cut_pair_slow
    for index, ids in enumerate(encoded["input_ids"]):
        if len(ids) > max_length:
            for name, values in cut(tokenizer, firsts[index], seconds[index], max_length).items():
                if name in encoded:
                    encoded[name][index] = values
    return encoded


def _encode_fast(tokenizer: Any, texts: Sequence[list[str]], max_length: int | None) -> Encoded:
    """What calling the tokenizer gives, in half the time: straight from its Rust part, without offsets and copies."""
    backend = backend_of(tokenizer, max_length)
    encodings = backend.encode_batch_fast(texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
    encoded = {"input_ids": [encoding.ids for encoding in encodings]}
    if has_token_types(tokenizer):
        encoded["token_type_ids"] = [encoding.type_ids for encoding in encodings]
    return encoded


def backend_of(tokenizer: Any, max_length: int | None) -> Any:
    """The Rust part of a fast tokenizer, set to pad nothing and to cut at `max_length`, if there is one."""
    from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

    tokenizer.set_truncation_and_padding(
        padding_strategy=PaddingStrategy.DO_NOT_PAD,
        truncation_strategy=TruncationStrategy.DO_NOT_TRUNCATE
        if max_length is None
        else TruncationStrategy.LONGEST_FIRST,
        max_length=max_length,
        stride=0,
        pad_to_multiple_of=None,
        padding_side=None,
    )
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def _encode_slow(tokenizer: Any, texts: Sequence[list[str]], max_length: int | None) -> Encoded:
    encoded: Encoded = tokenizer(
        *texts,
        truncation=False if max_length is None else "longest_first",
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=has_token_types(tokenizer),
        verbose=False,
    )
    return encoded


def _cut_pair_fast(tokenizer: Any, first: str, second: str, max_length: int) -> dict[str, list[int]]:
    backend = backend_of(tokenizer, None)
    room = max_length - backend.num_special_tokens_to_add(True)
    head, tail = (backend.encode(text, add_special_tokens=False) for text in (first, second))
    tail.truncate(room, direction="left")
    head.truncate(room - len(tail))
    pair = backend.post_process(head, tail, True)
    return {"input_ids": pair.ids, "token_type_ids": pair.type_ids}


def _cut_pair_slow(tokenizer: Any, first: str, second: str, max_length: int) -> dict[str, list[int]]:
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    head, tail = (tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in (first, second))
    tail = tail[max(0, len(tail) - room) :]
    pair: dict[str, list[int]] = tokenizer.prepare_for_model(head[: room - len(tail)], tail, verbose=False)
    return pair
