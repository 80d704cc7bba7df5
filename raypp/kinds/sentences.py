"""What classification and regression share: an example is one sentence or a pair, and the model gives one vector."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypp.data.features import features_schema
from raypp.data.tokenization import encode, has_token_types
from raypp.data.values import BadValueError, text_of
from raypp.kinds.kind import TaskKind

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from raypp.evaluation.predictions import Predictions


VISIBLE = "[!-~]"  # a text with such a character is not blank; one without it may be a sentence all the same


@dataclass(frozen=True)
class Sentences(TaskKind):
    """An example is one sentence or a pair; the model gives one vector of outputs."""

    auto_class = "AutoModelForSequenceClassification"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("sentence1", "sentence2") if self.task.pair else ("sentence1",)

    @property
    def column_settings(self) -> tuple[str, ...]:
        return self.columns

    def texts(self, values: Sequence[object], columns: Sequence[object]) -> tuple[str | None, ...]:
        """The two sentences, unchanged; the second is None if the task has only one.

        One sentence of a pair may be empty (as two questions in QQP's training file are), but not both.
        """
        texts = [text_of(value, column) for value, column in zip(values, columns, strict=True)]
        if not any(text.strip() for text in texts):
            raise BadValueError(f"{' and '.join(map(str, columns))}: no text, got {texts}; allowed: a sentence")
        return texts[0], texts[1] if len(texts) == 2 else None

    def whole_columns(
        self, texts: Sequence[pa.Array], label: pa.Array, label_name: str, spellings: Mapping[str, int]
    ) -> dict[str, pa.Array] | None:
        if any(column.null_count for column in (*texts, label)) or any(c.type != pa.string() for c in texts):
            return None
        visible = functools.reduce(pc.or_, (pc.match_substring_regex(column, VISIBLE) for column in texts))
        if not pc.all(visible).as_py():
            return None
        encoded = label.dictionary_encode()
        try:
            labels = [self.label(value, label_name, spellings) for value in encoded.dictionary.to_pylist()]
        except BadValueError:
            return None
        numbers = pa.array(labels, self.schema().field("label").type).take(encoded.indices)
        return {"label": numbers, **dict(zip(self.columns, texts, strict=True))}

    def tokenize(self, batch: pa.RecordBatch | pa.Table, tokenizer: PreTrainedTokenizerBase) -> pa.Table:
        """Examples are cut to `max_length` tokens, special tokens included; a pair loses tokens of its longer sentence
        first."""
        schema = features_schema(self.label_type, has_token_types(tokenizer))
        texts = [batch.column(name).to_pylist() for name in self.columns]
        assert all(text is not None for column in texts for text in column), "a source yields no missing sentence"
        encoded = encode(tokenizer, texts, self.data.max_length)
        columns = {"row": batch.column("row"), "label": batch.column("label").cast(self.label_type)}
        columns |= {n: pa.array(encoded[n], schema.field(n).type) for n in schema.names if n not in columns}
        return pa.table(columns, schema=schema)

    def outputs(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = output.logits
        return logits

    def table(self, predictions: Mapping[str, Predictions]) -> str:
        width = max(part.logits.shape[1] for part in predictions.values())
        lines = ["\t".join(["split", "row", "label", "prediction", *(f"logit_{index}" for index in range(width))])]
        for split, part in predictions.items():
            for row, labelled, label, logits in zip(part.rows, part.labelled, part.labels, part.logits, strict=True):
                label_text = self.format_label(label) if labelled else ""
                numbers = [f"{value:.6g}" for value in logits]
                lines.append("\t".join([split, str(row), label_text, self.format_prediction(logits), *numbers]))
        return "\n".join(lines) + "\n"

    def write(self, split: str, predictions: Predictions, folder: Path) -> list[Path]:
        if predictions.labelled.any():
            path = folder / f"predictions-{split}.tsv"
            text = self.table({split: predictions})
        else:
            path = folder / self.task.submission_file(split)
            text = self.submission(predictions.logits)
        path.write_text(text, encoding="utf-8")
        return [path]

    @abstractmethod
    def format_label(self, label: np.generic) -> str:
        """A label as the table of predictions shows it."""

    @abstractmethod
    def format_prediction(self, logits: np.ndarray) -> str:
        """The prediction of logits [outputs], as the table of predictions shows it."""

    @abstractmethod
    def submission(self, logits: np.ndarray) -> str:
        """The text of a GLUE submission file.

        Args:
            logits: [rows, outputs], for all rows of a test split in the source's order.

        Raises:
            FloatingPointError: a prediction is not finite.
        """


def submission_text(predictions: Sequence[object]) -> str:
    """Predictions in the format of GLUE's sample submissions: numbered, tab-separated."""
    return "index\tprediction\n" + "".join(f"{index}\t{value}\n" for index, value in enumerate(predictions))
