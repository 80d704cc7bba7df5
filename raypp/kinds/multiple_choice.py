"""Multiple choice: which of several endings continues a context (SWAG, Zellers et al. 2018).

A row has one sequence per choice, `[CLS] context [SEP] start ending [SEP]`. The model gives each sequence one logit. A
softmax over a row's logits makes the row a classification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raypp.data.features import features_schema, joined_sequences
from raypp.data.tokenization import encode_keeping_second, has_token_types
from raypp.data.values import BadValueError, text_of
from raypp.kinds.classification import Classification

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class MultipleChoice(Classification):
    """The model gives a logit for each choice; the label is the number of the right one."""

    auto_class = "AutoModelForMultipleChoice"

    @property
    def endings(self) -> tuple[str, ...]:
        """Names of the choices' columns."""
        return tuple(f"ending{index}" for index in range(len(self.task.labels)))

    @property
    def columns(self) -> tuple[str, ...]:
        return ("sent1", "sent2", *self.endings)

    @property
    def column_settings(self) -> tuple[str, ...]:
        return ("sent1", "sent2", "endings")

    def texts(self, values: Sequence[object], columns: Sequence[object]) -> tuple[str | None, ...]:
        """Context, start and endings, unchanged. Context or start may be empty, but not both; no ending may."""
        texts = tuple(text_of(value, column) for value, column in zip(values, columns, strict=True))
        if not any(text.strip() for text in texts[:2]):
            named = " and ".join(map(str, columns[:2]))
            raise BadValueError(
                f"{named}: no text, got {list(texts[:2])}; allowed: a context, or a start of the endings"
            )
        for text, column in zip(texts[2:], columns[2:], strict=True):
            if not text.strip():
                raise BadValueError(f"{column} is {text!r}; allowed: a text")
        return texts

    def tokenize(self, batch: pa.RecordBatch | pa.Table, tokenizer: PreTrainedTokenizerBase) -> pa.Table:
        """A sequence of more than `max_length` tokens loses tokens of its context, so that its ending survives."""
        contexts, starts = (batch.column(name).to_pylist() for name in ("sent1", "sent2"))
        choices = zip(*(batch.column(name).to_pylist() for name in self.endings), strict=True)
        firsts = [context for context in contexts for _ in self.endings]
        seconds = [
            f"{start} {ending}" if start else ending
            for start, endings in zip(starts, choices, strict=True)
            for ending in endings
        ]
        encoded = encode_keeping_second(tokenizer, firsts, seconds, self.data.max_length)
        schema = features_schema(self.label_type, has_token_types(tokenizer), several_sequences=True)
        columns = {"row": batch.column("row"), "label": batch.column("label").cast(self.label_type)}
        columns |= joined_sequences(encoded, len(self.endings), schema)
        return pa.table(columns, schema=schema)

    def head_settings(self) -> dict[str, Any]:
        return {}

    def keeps_head(self, config: Any) -> bool:
        """Any multiple-choice head is kept: it computes one logit per choice, so their number does not matter."""
        return any(name.endswith("ForMultipleChoice") for name in config.architectures or ())

    def output_order(self, config: Any, field: str) -> list[int]:
        """The order of the endings."""
        return list(range(len(self.endings)))
