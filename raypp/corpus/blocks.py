"""Blocks: a corpus as sequences of tokens, as the original distiller cut it.

A text that is longer than a block is cut into several, each with the tokenizer's special tokens around it. Blocks of
fewer than `SHORTEST` tokens teach little, and those that are half unknown tokens (another script, noise) teach
nothing: both are dropped and counted.
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

# Raised when the same text would be cut into other blocks than before.
BLOCKS_FORMAT = 1
SHORTEST = 12
"""Tokens that a block has at least, special ones included."""
TOKEN_COUNTS = "token_counts.json"
"""Beside the blocks in the store: how often each token stands in them, by id."""
MOST_UNKNOWN = 0.5
"""A block whose part of unknown tokens is not below this is dropped."""

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("piece", pa.int32(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32())),
    ]
)
"""Columns of a table of blocks: the text's row in the source, the block's number in the text, its tokens."""


@dataclass(frozen=True)
class CutReport:
    """What became of the texts; reports of parts add up."""

    texts: int = 0
    cut_texts: int = 0
    """Texts longer than a block."""
    blocks: int = 0
    """Blocks that are kept."""
    tokens: int = 0
    """Tokens in them, special ones included."""
    short_blocks: int = 0
    """Dropped for being short."""
    unknown_blocks: int = 0
    """Dropped for their unknown tokens."""

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
    """The ids before and after each block: those that the tokenizer itself puts around a text; where it puts none
    (GPT-2's), its tokens for the beginning and the end of a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    if len(whole) == len(bare):
        first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
        return [] if first is None else [first], [] if last is None else [last]
    start = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def cut_texts(
    batch: pa.RecordBatch | pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[pa.Table, CutReport]:
    """Texts (row, text) as blocks of at most `max_length` tokens, special ones included, and what was dropped."""
    prefix, suffix = special_frame(tokenizer)
    room = max_length - len(prefix) - len(suffix)
    ids, lengths = _encode(tokenizer, batch.column("text").to_pylist())
    pieces = np.maximum(1, -(-lengths // room))  # an empty text has one, which is too short
    texts = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(texts)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = (np.cumsum(lengths) - lengths)[texts] + number * room
    inner = np.minimum(lengths[texts] - number * room, room)

    framed = inner + len(prefix) + len(suffix)
    begins = np.cumsum(framed) - framed
    owner = np.repeat(np.arange(len(texts)), framed)
    place = np.arange(len(owner)) - begins[owner] - len(prefix)
    is_inner = (place >= 0) & (place < inner[owner])
    flat = np.empty(len(owner), np.int32)
    flat[is_inner] = ids[(starts[owner] + place)[is_inner]]
    for offset, token in enumerate(prefix):
        flat[begins + offset] = token
    for offset, token in enumerate(suffix):
        flat[begins + len(prefix) + inner + offset] = token

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
    """All tokens of all texts in a row, without special ones and whole, and how many each has."""
    if tokenizer.is_fast:
        encoded = [each.ids for each in backend_of(tokenizer, None).encode_batch_fast(texts, add_special_tokens=False)]
    else:
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    lengths = np.array([len(each) for each in encoded], np.int64)
    return np.concatenate([np.empty(0, np.int32), *(np.array(each, np.int32) for each in encoded)]), lengths


def count_tokens(table: pa.Table, vocabulary: int) -> npt.NDArray[np.int64]:
    """How often each token stands in a table of blocks, int64 [vocabulary]."""
    return np.bincount(flatten(table.column("input_ids"), np.int32)[0], minlength=vocabulary)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks in memory: flat arrays."""

    rows: npt.NDArray[np.int64]
    """[n]: the text's position in the source."""
    pieces: npt.NDArray[np.int64]
    """[n]: the block's number in its text."""
    offsets: npt.NDArray[np.int64]
    """[n + 1]: block i is input_ids[offsets[i]:offsets[i + 1]]."""
    input_ids: npt.NDArray[np.int32]
    """[tokens]."""

    @classmethod
    def from_table(cls, table: pa.Table) -> Blocks:
        """The blocks of a table, in its order."""
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
        """Tokens of each block, int64 [n]."""
        return np.diff(self.offsets)

    def padded(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The blocks at `indices` (at least one): tokens, 0 after the end, and which of them are real; int64 and bool
        [rows, width], the longest block's length rounded up."""
        starts, lengths = self.offsets[indices], self.lengths[indices]
        width = int(padded_length(lengths.max()))
        is_real = np.arange(width) < lengths[:, None]
        ids = np.zeros(is_real.shape, np.int64)
        ids[is_real] = self.input_ids[(starts[:, None] + np.arange(width))[is_real]]
        return ids, is_real
