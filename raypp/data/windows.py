"""Cuts long contexts into windows for question answering, and keeps the position of each token in the context.

The pair of question and context is tokenized once, as a whole. Each window has the special tokens, the question and a
part of the context. The question takes at most half of a window's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ANSWER_TYPE = pa.struct([("text", pa.string()), ("start", pa.int64())])
"""An answer, and the position in the context where it starts, in characters."""

WINDOW_FIELDS = (
    pa.field("label_end", pa.int64()),
    pa.field("window", pa.int32(), nullable=False),
    pa.field("token_starts", pa.list_(pa.int32())),
    pa.field("token_ends", pa.list_(pa.int32())),
    pa.field("id", pa.string()),
    pa.field("context", pa.string()),
    pa.field("answers", pa.list_(ANSWER_TYPE)),
)
"""Additional columns of features that are windows.

`label` is the first and `label_end` the last token of the answer; both are 0 if the answer is not in the window.
`token_starts` and `token_ends` give each token's position in the context, in characters; -1 for tokens outside of it.
Only the first window of an example has id, context and answers.
"""

NOWHERE = -1
CONTEXT = 1  # number of the second sequence of a pair


def window_rows(example: Mapping[str, Any], encoding: Any, max_length: int, stride: int) -> Iterator[dict[str, Any]]:
    """The windows of one example as rows of features.

    Args:
        example: row, id, context and label (the answers; None where they are unknown).
        encoding: the tokenizer's encoding of the pair of question and context, not cut.
        max_length: maximum number of tokens in a window, special tokens included.
        stride: number of tokens from one window's start to the next; less if a window holds fewer tokens of the
            context, so that no token is left out.
    """
    ids, types = np.array(encoding.ids), np.array(encoding.type_ids)
    part = np.array([NOWHERE if number is None else number for number in encoding.sequence_ids])
    offsets = np.array(encoding.offsets).reshape(-1, 2)
    context = np.flatnonzero(part == CONTEXT)
    begin, end = (int(context[0]), int(context[-1]) + 1) if len(context) else (len(ids) - 1, len(ids) - 1)
    question = np.flatnonzero(part == 0)
    before = np.setdiff1d(np.arange(begin), question[(max_length - np.count_nonzero(part == NOWHERE)) // 2 :])
    after = np.arange(end, len(ids))
    capacity = max_length - len(before) - len(after)
    answer, labelled = _answer_tokens(example["label"], offsets[begin:end]), example["label"] is not None
    stride = min(stride, capacity)
    for window, start in enumerate(range(begin, max(begin + 1, end - capacity + stride), stride)):
        kept = np.arange(start, min(start + capacity, end))
        tokens = np.concatenate([before, kept, after])
        positions = np.full((len(tokens), 2), NOWHERE)
        positions[len(before) : len(before) + len(kept)] = offsets[kept]
        inside = answer is not None and start - begin <= answer[0] and answer[1] < start - begin + len(kept)
        first, last = (number + len(before) - (start - begin) for number in answer) if inside and answer else (0, 0)
        yield {
            "row": example["row"],
            "window": window,
            "label": first if labelled else None,
            "label_end": last if labelled else None,
            "input_ids": ids[tokens],
            "token_type_ids": types[tokens],
            "token_starts": positions[:, 0],
            "token_ends": positions[:, 1],
            "id": example["id"] if window == 0 else None,
            "context": example["context"] if window == 0 else None,
            "answers": example["label"] if window == 0 else None,
        }


def _answer_tokens(answers: Any, offsets: npt.NDArray[Any]) -> tuple[int, int] | None:
    """The first and last token of the first answer, counted from the first token of the context; None if there is no
    answer."""
    if not answers:
        return None
    start, end = answers[0]["start"], answers[0]["start"] + len(answers[0]["text"])
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (first, last) if first <= last else None
