"""Blocks: a corpus as sequences of tokens, cut as the original distiller did.

A text that is longer than a block is cut into several blocks, each with the tokenizer's special tokens around it.
Blocks are dropped and counted if they have fewer than `SHORTEST` tokens or if half of their tokens are unknown (another
script, noise), because a model learns little from them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypp.data.batches import padded_length
from raypp.data.features import flatten
from raypp.data.tokenization import backend_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Must be raised when the same text would be cut into other blocks than before.
BLOCKS_FORMAT = 1
SHORTEST = 12
"""Minimum number of tokens in a block, special tokens included."""
TOKEN_COUNTS = "token_counts.json"
"""Name of the file next to the blocks in the store, with the number of occurrences of each token, by id."""
MOST_UNKNOWN = 0.5
"""A block is dropped if this part of its tokens, or more, is unknown."""

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("piece", pa.int32(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32())),
    ]
)
"""Columns of a table of blocks: the text's position in the source, the block's number in the text, its tokens."""


@dataclass(frozen=True)
class CutReport:
    """Number of texts, blocks and tokens. The reports of parts can be added."""

    texts: int = 0
    cut_texts: int = 0
    """Texts longer than a block."""
    blocks: int = 0
    """Kept blocks."""
    tokens: int = 0
    """Tokens in the kept blocks, special tokens included."""
    short_blocks: int = 0
    """Blocks dropped because they are short."""
    unknown_blocks: int = 0
    """Blocks dropped because of their unknown tokens."""

    def __add__(self, other: CutReport) -> CutReport:
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return CutReport(*(one + another for one, another in zip(mine, others, strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.texts} texts ({self.cut_texts} cut) gave {self.blocks} blocks of {self.tokens} tokens; dropped: "
            f"{self.short_blocks} with fewer than {SHORTEST} tokens, {self.unknown_blocks} with {MOST_UNKNOWN:.0%} or "
            "more unknown"
        )


def special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and after each block: those that the tokenizer puts around a text or, if it puts none
    (as GPT-2's), its tokens for the beginning and the end of a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    if len(whole) == len(bare):
        first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
        return [] if first is None else [first], [] if last is None else [last]
    start = next(index for index in range(len(whole)) if whole[index : index + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def cut_texts(
    batch: pa.RecordBatch | pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[pa.Table, CutReport]:
    """Cuts texts into blocks.

    Args:
        batch: columns row and text.
        max_length: maximum number of tokens in a block, special tokens included.

    Returns:
        A table of blocks (`SCHEMA`), and the report.
    """
    prefix, suffix = special_frame(tokenizer)
    capacity = max_length - len(prefix) - len(suffix)
    ids, lengths = _encode(tokenizer, batch.column("text").to_pylist())
    pieces = np.maximum(1, -(-lengths // capacity))  # an empty text has one, which is too short
    texts = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(texts)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = (np.cumsum(lengths) - lengths)[texts] + number * capacity
    inner = np.minimum(lengths[texts] - number * capacity, capacity)

    framed = inner + len(prefix) + len(suffix)
    begins = np.cumsum(framed) - framed
    owner = np.repeat(np.arange(len(texts)), framed)
    offset = np.arange(len(owner)) - begins[owner] - len(prefix)  # from the block's first token of text
    is_inner = (offset >= 0) & (offset < inner[owner])
    flat = np.empty(len(owner), np.int32)
    flat[is_inner] = ids[(starts[owner] + offset)[is_inner]]
    for index, token in enumerate(prefix):
        flat[begins + index] = token
    for index, token in enumerate(suffix):
        flat[begins + len(prefix) + inner + index] = token

    unknown_id = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    unknown = np.bincount(owner[flat == unknown_id], minlength=len(texts))
    is_short = framed < SHORTEST
    is_unknown = ~is_short & (unknown >= MOST_UNKNOWN * framed)
    kept = ~is_short & ~is_unknown
    offsets = np.concatenate([[0], np.cumsum(framed[kept])]).astype(np.int32)
    rows = batch.column("row").to_numpy()
    table = pa.table(
        {
            "row": rows[texts[kept]],
            "piece": number[kept].astype(np.int32),
            "input_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat[kept[owner]])),
        },
        schema=SCHEMA,
    )
    report = CutReport(
        texts=len(lengths),
        cut_texts=int((pieces > 1).sum()),
        blocks=int(kept.sum()),
        tokens=int(framed[kept].sum()),
        short_blocks=int(is_short.sum()),
        unknown_blocks=int(is_unknown.sum()),
    )
    return table, report


def _encode(tokenizer: Any, texts: list[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The tokens of all texts, one text after the other, without special tokens, and the number of tokens of each."""
    if tokenizer.is_fast:
        encoded = [each.ids for each in backend_of(tokenizer, None).encode_batch_fast(texts, add_special_tokens=False)]
    else:
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    lengths = np.array([len(each) for each in encoded], np.int64)
    return np.concatenate([np.empty(0, np.int32), *(np.array(each, np.int32) for each in encoded)]), lengths


def count_tokens(table: pa.Table, vocabulary: int) -> npt.NDArray[np.int64]:
    """Number of occurrences of each token in a table of blocks, int64 [vocabulary]."""
    return np.bincount(flatten(table.column("input_ids"), np.int32)[0], minlength=vocabulary)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks in memory, as flat arrays."""

    rows: npt.NDArray[np.int64]
    """[n]: position of each block's text in the source."""
    pieces: npt.NDArray[np.int64]
    """[n]: number of each block in its text."""
    offsets: npt.NDArray[np.int64]
    """[n + 1]: block i is input_ids[offsets[i]:offsets[i + 1]]."""
    input_ids: npt.NDArray[np.int32]
    """[tokens]."""

    @classmethod
    def from_table(cls, table: pa.Table) -> Blocks:
        """The blocks of a table (`SCHEMA`), in the table's order."""
        ids, lengths = flatten(table.column("input_ids"), np.int32)
        return cls(
            rows=table.column("row").to_numpy(),
            pieces=table.column("piece").to_numpy().astype(np.int64),
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            input_ids=ids,
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each block, int64 [n]."""
        return np.diff(self.offsets)

    def padded(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The blocks at `indices` (at least one), padded to the longest block's length, rounded up.

        Returns:
            Tokens, int64 [rows, width], 0 at padding; and whether each is real, bool [rows, width].
        """
        starts, lengths = self.offsets[indices], self.lengths[indices]
        width = int(padded_length(lengths.max()))
        is_real = np.arange(width) < lengths[:, None]
        ids = np.zeros(is_real.shape, np.int64)
        ids[is_real] = self.input_ids[(starts[:, None] + np.arange(width))[is_real]]
        return ids, is_real
