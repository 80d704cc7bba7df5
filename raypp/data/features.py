"""Features: tokenized examples as ragged columns, and the padded batches that a model reads.

Tokenization is a function from an Arrow table to an Arrow table, so that it can run anywhere; nothing is padded until
the rows of a share are known (`Features.collate`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypp.store import content_key

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from raypp.tasks import Task

# Raised when the same input would give other features than before.
FEATURES_FORMAT = 1
# Settings of a tokenizer that change no id: where it was loaded from, and a length in whose place we give our own.
_WITHOUT_EFFECT = ("name_or_path", "is_local", "local_files_only", "model_max_length")


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


def features_key(*, raw_fingerprint: str, tokenizer_fingerprint: str, task: Task, max_length: int) -> str:
    """Content key of a split's features: everything that determines them. The raw one says how many rows are read."""
    return content_key(
        format=FEATURES_FORMAT,
        raw=raw_fingerprint,
        tokenizer=tokenizer_fingerprint,
        kind=task.kind,
        pair=task.pair,
        labels=list(task.labels),
        max_length=max_length,
    )


def has_token_types(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's models tell the first sentence from the second by token types."""
    return "token_type_ids" in tokenizer.model_input_names


def features_schema(task: Task, has_token_types: bool) -> pa.Schema:
    """Columns of a features table; label is null where there is none."""
    label = pa.int64() if task.kind == "classification" else pa.float32()
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("label", label),
        pa.field("input_ids", pa.list_(pa.int32())),
    ]
    if has_token_types:
        fields.append(pa.field("token_type_ids", pa.list_(pa.int8())))
    return pa.schema(fields)


def tokenize_batch(
    batch: pa.RecordBatch | pa.Table, tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int
) -> pa.Table:
    """Raw examples (row, sentence1, sentence2 of pairs, label) as features, not padded.

    More than `max_length` tokens, special ones included, are cut: of a pair, from the longer sentence first.
    """
    schema = features_schema(task, has_token_types(tokenizer))
    texts = [batch.column("sentence1").to_pylist()]
    if task.pair:
        texts.append(batch.column("sentence2").to_pylist())
    assert all(text is not None for column in texts for text in column), "a source never yields a missing sentence"
    encoded: dict[str, list[list[int]]] = {"input_ids": [], "token_type_ids": []}
    if batch.num_rows:
        encode = _encode_fast if tokenizer.is_fast else _encode_slow
        encoded = encode(tokenizer, texts, max_length, "token_type_ids" in schema.names)
    columns = {"row": batch.column("row"), "label": batch.column("label").cast(schema.field("label").type)}
    columns |= {name: pa.array(encoded[name], schema.field(name).type) for name in schema.names if name not in columns}
    return pa.table(columns, schema=schema)


def _encode_fast(
    tokenizer: Any, texts: Sequence[list[str]], max_length: int, with_types: bool
) -> dict[str, list[list[int]]]:
    """What calling the tokenizer gives, in half the time: straight from its Rust part, without offsets and copies."""
    from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

    tokenizer.set_truncation_and_padding(
        padding_strategy=PaddingStrategy.DO_NOT_PAD,
        truncation_strategy=TruncationStrategy.LONGEST_FIRST,
        max_length=max_length,
        stride=0,
        pad_to_multiple_of=None,
        padding_side=None,
    )
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = tokenizer.split_special_tokens
    encodings = backend.encode_batch_fast(texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
    encoded = {"input_ids": [encoding.ids for encoding in encodings]}
    return encoded | ({"token_type_ids": [encoding.type_ids for encoding in encodings]} if with_types else {})


def _encode_slow(
    tokenizer: Any, texts: Sequence[list[str]], max_length: int, with_types: bool
) -> dict[str, list[list[int]]]:
    encoded: dict[str, list[list[int]]] = tokenizer(
        *texts,
        truncation="longest_first",
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=with_types,
        verbose=False,
    )
    return encoded


@dataclass(frozen=True, eq=False)
class Features:
    """A split in memory: flat arrays, which Ray shares between the processes of a node without copying."""

    rows: npt.NDArray[np.int64]
    """[n]: position of each example in the source, rising."""
    offsets: npt.NDArray[np.int64]
    """[n + 1]: example i is input_ids[offsets[i]:offsets[i + 1]]."""
    input_ids: npt.NDArray[np.int32]
    """[tokens]."""
    token_type_ids: npt.NDArray[np.int8] | None
    """[tokens]; None for models that have none."""
    labels: npt.NDArray[Any]
    """[n], int64 (classification) or float32 (regression); 0 where `labelled` is False."""
    labelled: npt.NDArray[np.bool_]
    """[n]."""
    teacher_logits: npt.NDArray[np.float32] | None = None
    """[n, outputs]."""

    @classmethod
    def from_table(cls, table: pa.Table) -> Features:
        """Reads a features table that is sorted by `row`, as `Artifact.read_table` gives it."""
        rows = table.column("row").to_numpy()
        assert (np.diff(rows) > 0).all(), "rows are sorted, and none is there twice"
        label = table.column("label")
        ids, lengths = _flatten(table.column("input_ids"), np.int32)
        token_types = (
            _flatten(table.column("token_type_ids"), np.int8)[0] if "token_type_ids" in table.schema.names else None
        )
        return cls(
            rows=rows,
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            input_ids=ids,
            token_type_ids=token_types,
            labels=label.fill_null(0).to_numpy(),
            labelled=label.is_valid().to_numpy(),
        )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each example, int64 [n]."""
        return np.diff(self.offsets)

    @cached_property
    def is_labelled(self) -> bool:
        """Whether every example has a label."""
        return bool(self.labelled.all())

    def with_teacher_logits(self, table: pa.Table) -> Features:
        """The same features with a teacher's logits, from a table of row and logits that is sorted by `row`."""
        assert np.array_equal(table.column("row").to_numpy(), self.rows), "logits are of the rows they were made from"
        logits, widths = _flatten(table.column("logits"), np.float32)
        assert (widths == widths[0]).all(), "every row has as many logits"
        return replace(self, teacher_logits=logits.reshape(len(self), -1))

    def collate(
        self,
        indices: npt.NDArray[np.int64] | Sequence[int],
        pad_id: int,
        *,
        multiple_of: int = 8,
        max_padded: int | None = None,
        pad_token_type_id: int = 0,
    ) -> dict[str, torch.Tensor]:
        """The examples at `indices` (places in these arrays, at least one) as one padded batch.

        Args:
            multiple_of: width is the longest example's, rounded up to this; matrix units like multiples of 8.
            max_padded: … but no more than this, since the model has no further positions.

        Returns:
            input_ids, attention_mask and, if there are any, token_type_ids: int64 [rows, width]; labels [rows] if the
            whole split is labelled; teacher_logits [rows, outputs] if there is a teacher.
        """
        import torch  # here, because processes that only tokenize do without it

        indices = np.asarray(indices, np.int64)
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        longest = int(lengths.max())
        width = -(-longest // multiple_of) * multiple_of
        if max_padded is not None:
            assert longest <= max_padded, f"{longest} tokens, but at most {max_padded} fit: truncate to fewer"
            width = min(width, max_padded)
        mask = np.arange(width) < lengths[:, None]
        tokens = (starts[:, None] + np.arange(width))[mask]

        def padded(values: npt.NDArray[Any], padding: int) -> torch.Tensor:
            filled = np.full(mask.shape, padding, np.int64)
            filled[mask] = values[tokens]
            return torch.from_numpy(filled)

        batch = {"input_ids": padded(self.input_ids, pad_id), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
        if self.token_type_ids is not None:
            batch["token_type_ids"] = padded(self.token_type_ids, pad_token_type_id)
        if self.is_labelled:
            batch["labels"] = torch.from_numpy(self.labels[indices])
        if self.teacher_logits is not None:
            batch["teacher_logits"] = torch.from_numpy(self.teacher_logits[indices])
        return batch


def _flatten(column: pa.ChunkedArray, dtype: type[np.generic]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Values and lengths of a list column. Chunk by chunk: all together may be more than 32-bit offsets can count."""
    values = [chunk.flatten().to_numpy() for chunk in column.chunks]
    lengths = [chunk.value_lengths().to_numpy() for chunk in column.chunks]
    return np.concatenate([np.empty(0, dtype), *values]), np.concatenate([np.empty(0, np.int64), *lengths])
