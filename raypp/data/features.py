"""Features: tokenized examples as ragged columns, and the padded batches that a model reads.

A task's kind makes them (`TaskKind.tokenize`), a function from an Arrow table to an Arrow table, so that it can run
anywhere; nothing is padded until the rows of a share are known (`Features.collate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypp.data.batches import WIDTH_MULTIPLE, padded_length
from raypp.data.examples import Counts
from raypp.data.tokenization import Encoded
from raypp.data.windows import WINDOW_FIELDS

if TYPE_CHECKING:
    import torch


def features_schema(
    label: pa.DataType, has_token_types: bool, *, several_sequences: bool = False, windows: bool = False
) -> pa.Schema:
    """Columns of a features table.

    Args:
        label: type of the column `label`, which is null where there is none.
        has_token_types: whether the model reads token types.
        several_sequences: whether a row has several sequences (the choices of a multiple choice). Then they stand one
            after the other, and `sequence_lengths` has the tokens of each.
        windows: whether a row is a window of an example, which may have several, with `WINDOW_FIELDS` beside.
    """
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("label", label),
        pa.field("input_ids", pa.list_(pa.int32())),
    ]
    if has_token_types:
        fields.append(pa.field("token_type_ids", pa.list_(pa.int8())))
    if several_sequences:
        fields.append(pa.field("sequence_lengths", pa.list_(pa.int32())))
    return pa.schema([*fields, *(WINDOW_FIELDS if windows else ())])


def joined_sequences(encoded: Encoded, sequences: int, schema: pa.Schema) -> dict[str, pa.Array]:
    """The columns of a features table whose rows have so many sequences each, from all sequences in order."""
    lengths = np.fromiter(map(len, encoded["input_ids"]), np.int32)
    row_ends = np.concatenate([[0], np.cumsum(lengths.reshape(-1, sequences).sum(axis=1))]).astype(np.int32)
    joined = {
        "sequence_lengths": pa.ListArray.from_arrays(np.arange(len(row_ends), dtype=np.int32) * sequences, lengths)
    }
    for name in ("input_ids", "token_type_ids"):
        if name in schema.names:
            values = pa.array(
                chain.from_iterable(encoded[name]), schema.field(name).type.value_type, size=int(row_ends[-1])
            )
            joined[name] = pa.ListArray.from_arrays(row_ends, values)
    return joined


@dataclass(frozen=True, eq=False)
class Features:
    """A split in memory: flat arrays. Every worker reads the whole of it from the store (`TaskKind.training_data`)."""

    rows: npt.NDArray[np.int64]
    """[n]: position of each example in the source, rising; the windows of one example follow each other."""
    offsets: npt.NDArray[np.int64]
    """[n * sequences + 1]: sequence i is input_ids[offsets[i]:offsets[i + 1]]."""
    input_ids: npt.NDArray[np.int32]
    """[tokens]."""
    token_type_ids: npt.NDArray[np.int8] | None
    """[tokens]; None for models that have none."""
    labels: npt.NDArray[Any]
    """[n], int64 (of a class) or float32 (a value), or [n, 2], int64 (first and last token); 0 where `labelled` is
    False."""
    labelled: npt.NDArray[np.bool_]
    """[n]."""
    sequences: int = 1
    """Sequences of each example: 1, or as many as it has choices."""
    reference: pa.Table | None = None
    """[n]: what answers are read from, of tasks that answer in words (`WINDOW_FIELDS`); None for others."""
    teacher_logits: npt.NDArray[np.float32] | None = None
    """[n, outputs], or [tokens, outputs] (`logits_per_token`)."""
    logits_per_token: bool = False
    """Whether the teacher answers token by token."""

    @classmethod
    def from_table(cls, table: pa.Table) -> Features:
        """Reads a features table that is sorted by `row`, as `Artifact.read_table` gives it."""
        rows, label, reference = table.column("row").to_numpy(), table.column("label"), None
        labels = label.fill_null(0).to_numpy()
        rises = np.diff(rows) > 0
        if "window" in table.schema.names:
            reference = table.select([field.name for field in WINDOW_FIELDS])
            rises |= (np.diff(rows) == 0) & (np.diff(table.column("window").to_numpy()) == 1)
            labels = np.stack([labels, table.column("label_end").fill_null(0).to_numpy()], axis=1)
        assert rises.all(), "rows are sorted, and none is there twice"
        ids, lengths = flatten(table.column("input_ids"), np.int32)
        sequences = 1
        if "sequence_lengths" in table.schema.names:
            lengths, counts = flatten(table.column("sequence_lengths"), np.int32)
            sequences = int(counts[0]) if len(counts) else 1
            assert (counts == sequences).all(), "every row has as many sequences"
        token_types = (
            flatten(table.column("token_type_ids"), np.int8)[0] if "token_type_ids" in table.schema.names else None
        )
        return cls(
            rows=rows,
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            input_ids=ids,
            token_type_ids=token_types,
            labels=labels,
            labelled=label.is_valid().to_numpy(),
            sequences=sequences,
            reference=reference,
        )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of each example, int64 [n]."""
        return np.diff(self.offsets[:: self.sequences])

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """What each example counts for where batches are made, int64 [n]: its tokens or, with several sequences, what
        these take as one padded batch."""
        if self.sequences == 1:
            return self.tokens
        longest = np.diff(self.offsets).reshape(-1, self.sequences).max(axis=1)
        return padded_length(longest) * self.sequences

    @cached_property
    def is_labelled(self) -> bool:
        """Whether every example has a label."""
        return bool(self.labelled.all())

    def loss_counts(self, indices: npt.NDArray[np.int64]) -> Counts:
        """Each example counts once in every loss."""
        return Counts(rows=len(indices), targets=len(indices), outputs=len(indices))

    def with_teacher_logits(self, table: pa.Table, per_token: bool = False) -> Features:
        """The same features with a teacher's logits, from a table of row and logits that is sorted by `row`.

        Args:
            per_token: whether these are, row by row, the logits of one token after the other.
        """
        assert np.array_equal(table.column("row").to_numpy(), self.rows), "logits are of the rows they were made from"
        logits, widths = flatten(table.column("logits"), np.float32)
        places = self.tokens if per_token else np.ones(len(self), np.int64)
        assert (widths * places[0] == widths[0] * places).all(), "every row, or every token, has as many logits"
        logits = logits.reshape(places.sum(), -1)
        return replace(self, teacher_logits=logits, logits_per_token=per_token)

    def output_indices(self, indices: npt.NDArray[np.int64], per_token: bool) -> npt.NDArray[np.int64]:
        """Where a model's outputs for the examples at `indices` belong: at these places or, with an output for each
        token, at those of their tokens, one example after the other."""
        if not per_token:
            return indices
        lengths = self.tokens[indices]
        skipped = self.offsets[: -1 : self.sequences][indices] - (np.cumsum(lengths) - lengths)
        return np.repeat(skipped, lengths) + np.arange(lengths.sum())

    def collate(
        self,
        indices: npt.NDArray[np.int64] | Sequence[int],
        pad_id: int,
        *,
        multiple_of: int = WIDTH_MULTIPLE,
        max_padded: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """The examples at `indices` (places in these arrays, at least one) as one padded batch.

        Args:
            multiple_of: width is the longest example's, rounded up to this; matrix units like multiples of 8.
            max_padded: … but no more than this, since the model has no further positions.

        Returns:
            input_ids, attention_mask and, if there are any, token_type_ids: int64 [rows, width], with several sequences
            [rows, sequences, width]; labels [rows] or [rows, 2] if the whole split is labelled; teacher_logits
            [rows, outputs] or, token by token, [rows, width, outputs] if there is a teacher.
        """
        import torch  # here, because processes that only tokenize do without it

        indices = np.asarray(indices, np.int64)
        sequences = indices
        shape: tuple[int, ...] = (len(indices), -1)
        if self.sequences > 1:
            sequences = (indices[:, None] * self.sequences + np.arange(self.sequences)).ravel()
            shape = (len(indices), self.sequences, -1)
        starts = self.offsets[sequences]
        lengths = self.offsets[sequences + 1] - starts
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
            return torch.from_numpy(filled.reshape(shape))

        attention_mask = torch.from_numpy(mask.astype(np.int64).reshape(shape))
        batch = {"input_ids": padded(self.input_ids, pad_id), "attention_mask": attention_mask}
        if self.token_type_ids is not None:
            batch["token_type_ids"] = padded(self.token_type_ids, 0)
        if self.is_labelled:
            batch["labels"] = torch.from_numpy(self.labels[indices])
        if self.teacher_logits is not None and self.logits_per_token:
            logits = np.zeros((*mask.shape, self.teacher_logits.shape[1]), np.float32)
            logits[mask] = self.teacher_logits[tokens]
            batch["teacher_logits"] = torch.from_numpy(logits)
        elif self.teacher_logits is not None:
            batch["teacher_logits"] = torch.from_numpy(self.teacher_logits[indices])
        return batch


def flatten(column: pa.ChunkedArray, dtype: type[np.generic]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Values and lengths of a list column. Chunk by chunk: all together may be more than 32-bit offsets can count."""
    values = [chunk.flatten().to_numpy() for chunk in column.chunks]
    lengths = [chunk.value_lengths().to_numpy() for chunk in column.chunks]
    return np.concatenate([np.empty(0, dtype), *values]), np.concatenate([np.empty(0, np.int64), *lengths])
