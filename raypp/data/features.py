"""Features: tokenized examples as ragged columns, and the padded batches that a model reads.

`TaskKind.tokenize` makes them, a function from Arrow table to Arrow table. Padding is added when the rows of a
share are known (`Features.collate`).
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
        label: type of the column `label`, whose values are null in a split without labels.
        has_token_types: whether the model reads token types.
        several_sequences: whether a row has several sequences, as in multiple choice. Then `input_ids` has one sequence
            after the other, and `sequence_lengths` has the number of tokens of each.
        windows: whether a row is a window of an example, which adds the columns `WINDOW_FIELDS`.
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
    """The columns of a features table with several sequences per row.

    Args:
        encoded: all sequences, in the order of their rows.
        sequences: number of sequences in each row.
    """
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
    """A split in memory, as flat arrays. Every worker reads the whole split from the store."""

    rows: npt.NDArray[np.int64]
    """[n]: position of each example in the source, rising. The windows of an example have the same position."""
    offsets: npt.NDArray[np.int64]
    """[n * sequences + 1]: sequence i is input_ids[offsets[i]:offsets[i + 1]]."""
    input_ids: npt.NDArray[np.int32]
    """[tokens]."""
    token_type_ids: npt.NDArray[np.int8] | None
    """[tokens]; None for a model that reads none."""
    labels: npt.NDArray[Any]
    """[n], int64 class numbers or float32 values; question answering: [n, 2], int64, the first and last token. 0 where
    `labelled` is False."""
    labelled: npt.NDArray[np.bool_]
    """[n]: whether each example has a label."""
    sequences: int = 1
    """Number of sequences per example: 1, or the number of choices."""
    reference: pa.Table | None = None
    """[n] rows of `WINDOW_FIELDS`, from which answers are read; None for tasks other than question answering."""
    teacher_logits: npt.NDArray[np.float32] | None = None
    """[n, outputs] or, with `logits_per_token`, [tokens, outputs]; None without a teacher."""
    logits_per_token: bool = False
    """Whether the teacher gives outputs for each token."""

    @classmethod
    def from_table(cls, table: pa.Table) -> Features:
        """Reads a features table that is sorted by `row`, as from `Artifact.read_table`."""
        rows, label, reference = table.column("row").to_numpy(), table.column("label"), None
        labels = label.fill_null(0).to_numpy()
        rises = np.diff(rows) > 0
        if "window" in table.schema.names:
            reference = table.select([field.name for field in WINDOW_FIELDS])
            rises |= (np.diff(rows) == 0) & (np.diff(table.column("window").to_numpy()) == 1)
            labels = np.stack([labels, table.column("label_end").fill_null(0).to_numpy()], axis=1)
        assert rises.all(), "rows are sorted and unique"
        ids, lengths = flatten(table.column("input_ids"), np.int32)
        sequences = 1
        if "sequence_lengths" in table.schema.names:
            lengths, counts = flatten(table.column("sequence_lengths"), np.int32)
            sequences = int(counts[0]) if len(counts) else 1
            assert (counts == sequences).all(), "all rows have the same number of sequences"
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
        """Number of tokens of each example, int64 [n]."""
        return np.diff(self.offsets[:: self.sequences])

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Size of each example when batches are planned, in tokens, int64 [n]. Several sequences of an example count as
        padded."""
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
        """A copy of these features with a teacher's logits.

        Args:
            table: columns row and logits (a list), sorted by `row`.
            per_token: whether each list has the logits of one token after the other.
        """
        assert np.array_equal(table.column("row").to_numpy(), self.rows), "the logits belong to these rows"
        logits, widths = flatten(table.column("logits"), np.float32)
        outputs = self.tokens if per_token else np.ones(len(self), np.int64)
        assert (widths * outputs[0] == widths[0] * outputs).all(), "all rows, or all tokens, have as many logits"
        logits = logits.reshape(outputs.sum(), -1)
        return replace(self, teacher_logits=logits, logits_per_token=per_token)

    def output_indices(self, indices: npt.NDArray[np.int64], per_token: bool) -> npt.NDArray[np.int64]:
        """Positions of the outputs for the examples at `indices` among the outputs for all examples.

        Args:
            per_token: whether the model gives an output for each token. Then these are the positions of all tokens of
                the examples, one example after the other; otherwise they are the indices themselves.
        """
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
        """The examples at `indices` (at least one) as one padded batch.

        Args:
            pad_id: the padding token.
            multiple_of: the width is the length of the longest sequence, rounded up to a multiple of this.
            max_padded: maximum width, the number of the model's positions; None for no limit.

        Returns:
            input_ids, attention_mask and, if the model reads them, token_type_ids: int64 [rows, width], with several
            sequences [rows, sequences, width]; labels [rows] or [rows, 2] if the whole split is labelled;
            teacher_logits [rows, outputs] or [rows, width, outputs] if there is a teacher.
        """
        import torch  # here, because processes that only tokenize do not need it

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
            assert longest <= max_padded, (
                f"an example has {longest} tokens, but the model at most {max_padded} positions"
            )
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
    """The values and the lengths of a list column.

    Returns:
        All values, [sum of lengths], and the length of each list, int64 [rows]. They are read chunk by chunk, because
        all values together may be more than 32-bit offsets can count. `dtype` is the values' type if there is no row.
    """
    values = [chunk.flatten().to_numpy() for chunk in column.chunks]
    lengths = [chunk.value_lengths().to_numpy() for chunk in column.chunks]
    return np.concatenate([np.empty(0, dtype), *values]), np.concatenate([np.empty(0, np.int64), *lengths])
