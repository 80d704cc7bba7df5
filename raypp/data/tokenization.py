"""Token ids of texts, by any tokenizer of transformers, cut to a maximum length and not padded."""

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

# Settings of a tokenizer that change no ids: its origin, and a maximum length that raypp replaces by its own.
_WITHOUT_EFFECT = ("name_or_path", "is_local", "local_files_only", "model_max_length")

Encoded = dict[str, list[list[int]]]
"""input_ids and, if the model reads them, token_type_ids: a list for each text or pair."""


@dataclass(frozen=True)
class Vocabulary:
    """What training needs of a tokenizer, so that workers need not load it, which takes about a second."""

    size: int
    """Number of tokens, including added ones."""
    special_ids: tuple[int, ...]
    pad_id: int
    """0 if there is none, as in GPT-2: a language model does not attend to padding, and other tasks refuse such a
    tokenizer."""
    mask_id: int | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """A tokenizer's vocabulary."""
        special_ids = tuple(tokenizer.all_special_ids)
        return cls(len(tokenizer), special_ids, tokenizer.pad_token_id or 0, tokenizer.mask_token_id)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of everything that determines the ids of a text. It does not depend on the tokenizer's origin."""
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
    """Whether the tokenizer's models read token types, which mark the sentences of a pair."""
    return "token_type_ids" in tokenizer.model_input_names


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[str]], max_length: int | None) -> Encoded:
    """The ids of texts or pairs, with special tokens.

    Args:
        texts: one list of texts, or a list of first and a list of second sentences.
        max_length: maximum number of tokens, special tokens included. A pair loses tokens of its longer sentence first.
            None for no limit.
    """
    if not texts[0]:
        return {"input_ids": [], "token_type_ids": []}
    return (_encode_fast if tokenizer.is_fast else _encode_slow)(tokenizer, texts, max_length)


def encode_keeping_second(
    tokenizer: PreTrainedTokenizerBase, firsts: list[str], seconds: list[str], max_length: int
) -> Encoded:
    """The ids of pairs, cut so that the second sentence survives.

    A pair that is too long loses the end of its first sentence; if the second sentence alone is too long, it loses its
    beginning.
    """
    encoded = encode(tokenizer, [firsts, seconds], None)
    cut = _cut_pair_fast if tokenizer.is_fast else _cut_pair_slow
    for index, ids in enumerate(encoded["input_ids"]):
        if len(ids) > max_length:
            for name, values in cut(tokenizer, firsts[index], seconds[index], max_length).items():
                if name in encoded:
                    encoded[name][index] = values
    return encoded


def _encode_fast(tokenizer: Any, texts: Sequence[list[str]], max_length: int | None) -> Encoded:
    """The same as calling the tokenizer, in half the time: its Rust part is called without offsets and copies."""
    backend = backend_of(tokenizer, max_length)
    encodings = backend.encode_batch_fast(texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
    encoded = {"input_ids": [encoding.ids for encoding in encodings]}
    if has_token_types(tokenizer):
        encoded["token_type_ids"] = [encoding.type_ids for encoding in encodings]
    return encoded


def backend_of(tokenizer: Any, max_length: int | None) -> Any:
    """The Rust part of a fast tokenizer, set to no padding and to cut at `max_length` (None: not to cut)."""
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
    available = max_length - backend.num_special_tokens_to_add(True)
    head, tail = (backend.encode(text, add_special_tokens=False) for text in (first, second))
    tail.truncate(available, direction="left")
    head.truncate(available - len(tail))
    pair = backend.post_process(head, tail, True)
    return {"input_ids": pair.ids, "token_type_ids": pair.type_ids}


def _cut_pair_slow(tokenizer: Any, first: str, second: str, max_length: int) -> dict[str, list[int]]:
    available = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    head, tail = (tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in (first, second))
    tail = tail[max(0, len(tail) - available) :]
    pair: dict[str, list[int]] = tokenizer.prepare_for_model(head[: available - len(tail)], tail, verbose=False)
    return pair
