"""Question answering: which words of a context, if any, answer a question (SQuAD, Rajpurkar et al. 2016, 2018).

A context that is too long for the model is read in windows, `[CLS] question [SEP] part of the context [SEP]`. Each
window is a row of features. The model gives each token two logits, as the start and as the end of the answer; the first
token means "no answer in this window" (Devlin et al. 2019, sections 4.2 and 4.3).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raypp.data.features import features_schema
from raypp.data.tokenization import backend_of, has_token_types
from raypp.data.values import BadValueError, text_of
from raypp.data.windows import ANSWER_TYPE, window_rows
from raypp.errors import ConfigError
from raypp.evaluation.answer_metrics import answer_metrics
from raypp.evaluation.metrics import require_finite
from raypp.kinds.answers import Answer, best_answers
from raypp.kinds.kind import TaskKind

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from raypp.evaluation.predictions import Predictions

START, END = 0, 1  # positions of a token's two outputs
NO_LOGIT = -1e30  # for padding: its probability is 0, and so is 0 times the logarithm of it


@dataclass(frozen=True)
class QuestionAnswering(TaskKind):
    """The model gives two logits for each token: as the start and as the end of the answer."""

    auto_class = "AutoModelForQuestionAnswering"
    label_column = "answers"
    label_type = pa.list_(ANSWER_TYPE)
    outputs_per_token = True
    rows_are_examples = False
    all_are_trainable = False
    usual_max_length = 384
    own_settings = frozenset({"data.stride", "evaluation.answers"})

    @property
    def columns(self) -> tuple[str, ...]:
        return ("id", "question", "context")

    @property
    def column_settings(self) -> tuple[str, ...]:
        return self.columns

    def texts(self, values: Sequence[object], columns: Sequence[object]) -> tuple[str | None, ...]:
        """Id, question and context, unchanged; only the question may be empty."""
        texts = tuple(text_of(value, column) for value, column in zip(values, columns, strict=True))
        for index in (0, 2):
            if not texts[index].strip():
                raise BadValueError(f"{columns[index]} is {texts[index]!r}; allowed: a text")
        return texts

    def label(self, value: object, column: object, spellings: Mapping[str, int]) -> list[dict[str, object]]:
        """The answers, each with text and start.

        SQuAD's files have a list of objects with text and answer_start; the hub has one object with two lists.
        """
        answers = value
        if isinstance(value, Mapping) and set(value) == {"text", "answer_start"}:
            texts, starts = value["text"], value["answer_start"]
            if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
                answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        if not isinstance(answers, list) or not all(map(_is_answer, answers)):
            raise BadValueError(
                f"{column} is {str(value)[:100]!r}; allowed: texts, each with its answer_start in the context"
            )
        if not answers and not self.task.unanswerable:
            raise BadValueError(
                f"{column} is empty; allowed: at least one answer, because {self.task.name} has one for every question"
            )
        return [{"text": answer["text"], "start": answer["answer_start"]} for answer in answers]

    def is_trainable(self, example: Sequence[Any]) -> bool:
        """Whether the first answer is at its stated position in the context."""
        *_, context, answers = example
        return not answers or context.startswith(answers[0]["text"], answers[0]["start"])

    def problems_with(self, tokenizer: PreTrainedTokenizerBase, field: str) -> list[str]:
        problems = super().problems_with(tokenizer, field)
        if not tokenizer.is_fast:
            problems.append(
                f"{field}: {type(tokenizer).__name__} does not give the positions of tokens in a text, which question "
                "answering needs; allowed: a model with a fast tokenizer (tokenizer.json)"
            )
        return problems

    def features_settings(self) -> dict[str, Any]:
        return {**super().features_settings(), "stride": self.data.stride}

    def tokenize(self, batch: pa.RecordBatch | pa.Table, tokenizer: PreTrainedTokenizerBase) -> pa.Table:
        """One row per window, with the columns that `data.windows.WINDOW_FIELDS` describes."""
        examples = batch.to_pylist()
        pairs = [(example["question"], example["context"]) for example in examples]
        encodings = backend_of(tokenizer, None).encode_batch(pairs) if pairs else []
        rows = [
            row
            for example, encoding in zip(examples, encodings, strict=True)
            for row in window_rows(example, encoding, self.data.max_length, self.data.stride)
        ]
        schema = features_schema(pa.int64(), has_token_types(tokenizer), windows=True)
        return pa.Table.from_pydict({name: [row[name] for row in rows] for name in schema.names}, schema=schema)

    def head_settings(self) -> dict[str, Any]:
        return {"num_labels": 2}

    def keeps_head(self, config: Any) -> bool:
        """Any question-answering head is kept."""
        return any(name.endswith("ForQuestionAnswering") for name in config.architectures or ())

    def output_order(self, config: Any, field: str) -> list[int]:
        """Start, then end, in every model."""
        return [START, END]

    def outputs(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits [rows, width, 2]; meaningless at padding."""
        import torch

        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def hard_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The mean of two cross entropies, of the start and of the end over a window's tokens, summed over rows."""
        from raypp.distillation.losses import hard_cross_entropy_sum

        logits, labels = _only_real(outputs, batch), batch["labels"]
        start, end = (hard_cross_entropy_sum(logits[..., side], labels[:, side]) for side in (START, END))
        return (start + end) / 2

    def soft_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor], temperature: float) -> Tensor:
        """The mean of two soft losses, of the start and of the end over a window's tokens, summed over rows."""
        from raypp.distillation.losses import soft_cross_entropy_sum

        logits, teacher = _only_real(outputs, batch), _only_real(batch["teacher_logits"], batch)
        start, end = (
            soft_cross_entropy_sum(logits[..., side], teacher[..., side], temperature) for side in (START, END)
        )
        return (start + end) / 2

    def logits_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Squared error, its mean over the logits of a window's real tokens, summed over rows."""
        from raypp.distillation.losses import hidden_mse_sum

        return hidden_mse_sum(outputs, batch["teacher_logits"], batch["attention_mask"])

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        answers = [answer for answer in self.answers(predictions) if answer.gold is not None]
        texts, gold = [answer.text for answer in answers], [answer.gold or () for answer in answers]
        return answer_metrics(texts, gold, self.task.unanswerable)

    def answers(self, predictions: Predictions) -> Iterator[Answer]:
        """The best answer to each question over its windows.

        Raises:
            FloatingPointError: a logit is not finite.
        """
        require_finite(predictions.logits)
        return best_answers(predictions, self.evaluation.answers, self.task.unanswerable)

    def table(self, predictions: Mapping[str, Predictions]) -> str:
        lines = ["split\trow\tid\tlabel\tprediction\tscore\tno_answer_score"]
        for split, part in predictions.items():
            for answer in self.answers(part):
                texts = [" ".join(text.split()) for text in (answer.id, next(iter(answer.gold or ()), ""), answer.text)]
                scores = [f"{score:.6g}" for score in (answer.score, answer.no_answer_score)]
                lines.append("\t".join([split, str(answer.row), *texts, *scores]))
        return "\n".join(lines) + "\n"

    def write(self, split: str, predictions: Predictions, folder: Path) -> list[Path]:
        """Writes the files that SQuAD's evaluation script reads, and the best candidates.

        The script reads answers by id and, if questions may have no answer, the probability that there is none.

        Raises:
            ConfigError: an id occurs twice.
            FloatingPointError: a logit is not finite.
        """
        answers = list(self.answers(predictions))
        if len({answer.id for answer in answers}) < len(answers):
            raise ConfigError(
                f"data.source: an id occurs twice in {split}; allowed: unique ids, by which answers are written"
            )
        content: dict[str, dict[str, Any]] = {
            "predictions.json": {answer.id: answer.text for answer in answers},
            "nbest_predictions.json": {answer.id: answer.candidate_records() for answer in answers},
        }
        if self.task.unanswerable:
            content["na_prob.json"] = {answer.id: answer.no_answer_probability for answer in answers}
        for name, values in content.items():
            (folder / name).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return [folder / name for name in content]


def _is_answer(value: object) -> bool:
    return (
        isinstance(value, Mapping) and isinstance(value.get("text"), str) and isinstance(value.get("answer_start"), int)
    )


def _only_real(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits [rows, width, 2] in float32, with no probability left for padding."""
    return logits.float().masked_fill(batch["attention_mask"][..., None] == 0, NO_LOGIT)
