"""The interface of a task's kind, and what all kinds have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from raypp.config import Columns, DataSettings, EvaluationSettings
from raypp.store import content_key
from raypp.tasks import Task

# torch and transformers are imported where they are used: processes that only read or tokenize do without them.
if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from raypp.config import Experiment
    from raypp.data.examples import EvaluationExamples
    from raypp.data.tokenization import Vocabulary
    from raypp.data.training import TrainingData
    from raypp.evaluation.predictions import Predictions
    from raypp.store import Artifact

# Settings of an experiment that only some kinds read.
KIND_SETTINGS = frozenset({"data.stride", "data.window_blocks", "distillation.soft_tokens", "evaluation.answers"})
# Raised when the same input would give other features than before.
FEATURES_FORMAT = 1


@dataclass(frozen=True)
class TaskKind(ABC):
    """One task as its kind has it. Pickles, so that it travels to workers."""

    task: Task
    data: DataSettings
    """How examples are read."""
    evaluation: EvaluationSettings
    """How predictions are."""

    auto_class: ClassVar[str]
    """The class of transformers that opens a model of this kind."""
    usual_max_length: ClassVar[int] = 128
    """Tokens of an example where nothing is said: of a model that is only evaluated."""
    own_settings: ClassVar[frozenset[str]] = frozenset()
    """Of KIND_SETTINGS, those that matter."""

    stores_teacher_logits: ClassVar[bool] = True
    """Whether a teacher's logits are computed once and kept; else it runs beside the student."""

    cuts_texts: ClassVar[bool] = False
    """Whether a row of the source gives several examples or none, so that their number follows from `tokenize`."""

    def misfit_of(self, config: Any) -> str | None:
        """What makes models of this configuration unfit for the task, though the Auto class opens them."""
        return None

    def problems_with(self, tokenizer: PreTrainedTokenizerBase, field: str) -> list[str]:
        """What of a tokenizer, that of `field`, and of the settings does not suit the task."""
        if tokenizer.pad_token_id is None:
            return [f"{field}: the tokenizer has no padding token, so it cannot make batches; allowed: one that has"]
        return []

    # --- raw examples: a value for each of `columns`, then the label ---

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Columns of a raw example's texts."""

    @property
    @abstractmethod
    def column_settings(self) -> tuple[str, ...]:
        """The fields of `data.source.columns` that say where the user's own files keep the texts."""

    label_column: ClassVar[str] = "label"
    """The column of the label where the task is published, and the field of `data.source.columns` for it."""
    label_type: ClassVar[pa.DataType] = pa.int64()
    """Of a raw example's label."""

    def schema(self) -> pa.Schema:
        """The columns of raw examples: `row` counts from 0; a label is null in a split without labels."""
        texts = [pa.field(name, pa.string(), nullable=False) for name in self.columns]
        return pa.schema([pa.field("row", pa.int64(), nullable=False), *texts, pa.field("label", self.label_type)])

    def file_columns(self, columns: Columns) -> tuple[str, ...]:
        """The columns of the user's own files that hold the texts."""
        values = [getattr(columns, name) for name in self.column_settings]
        return tuple(name for value in values for name in ([value] if isinstance(value, str) else value))

    @abstractmethod
    def texts(self, values: Sequence[object], columns: Sequence[object]) -> tuple[str | None, ...]:
        """The texts of a raw example as a source gives them; `columns` are the source's names, for messages.

        Raises:
            BadValueError: no text where one is needed.
        """

    @abstractmethod
    def label(self, value: object, column: object, spellings: Mapping[str, int]) -> Any:
        """The label of a raw example.

        Args:
            spellings: how the source writes each of `task.labels`, to its number.

        Raises:
            BadValueError: no such label.
        """

    all_are_trainable: ClassVar[bool] = True
    """Whether every raw example can be trained on."""

    def is_trainable(self, example: Sequence[Any]) -> bool:
        """Whether this one can; those that cannot are left out of the training split and counted."""
        return True

    # --- features ---

    rows_are_examples: ClassVar[bool] = True
    """Whether each example makes one row of features."""

    def features_key(self, *, raw_fingerprint: str, tokenizer_fingerprint: str) -> str:
        """Content key of a split's features: everything that determines them. The raw one says how many rows are
        read."""
        return content_key(
            format=FEATURES_FORMAT, raw=raw_fingerprint, tokenizer=tokenizer_fingerprint, **self.features_settings()
        )

    def features_settings(self) -> dict[str, Any]:
        """What of task and settings determines features."""
        task = self.task
        return {
            "kind": task.kind,
            "pair": task.pair,
            "labels": list(task.labels),
            "max_length": self.data.max_length,
        }

    @abstractmethod
    def tokenize(self, batch: pa.RecordBatch | pa.Table, tokenizer: PreTrainedTokenizerBase) -> pa.Table:
        """Raw examples as features (`raypp.data.features`), not padded."""

    # --- a run's data ---

    def training_data(
        self,
        experiment: Experiment,
        micro_batches: int,
        vocabulary: Vocabulary,
        train: Artifact,
        teacher_logits: Artifact | None,
    ) -> TrainingData:
        """The training split, from the store: in memory, with the teacher's logits beside each row if there are any."""
        from raypp.data.features import Features
        from raypp.data.training import InMemory

        features = replace(Features.from_table(train.read_table()), reference=None)  # nobody reads answers in training
        if teacher_logits is not None:
            features = features.with_teacher_logits(teacher_logits.read_table(), self.outputs_per_token)
        return InMemory(features, experiment.train, micro_batches)

    def evaluation_data(self, table: pa.Table, vocabulary: Vocabulary) -> EvaluationExamples:
        """A split to evaluate, from the table that `tokenize` made of it, sorted by row."""
        from raypp.data.features import Features

        return Features.from_table(table)

    # --- the model ---

    def auto_model(self) -> Any:
        """The class of `auto_class`."""
        import transformers

        return getattr(transformers, self.auto_class)

    @abstractmethod
    def head_settings(self) -> dict[str, Any]:
        """What the model's configuration says of its head."""

    @abstractmethod
    def keeps_head(self, config: Any) -> bool:
        """Whether a head that stands in the folder of this configuration was trained for this task."""

    @abstractmethod
    def output_order(self, config: Any, field: str) -> list[int]:
        """Where the task's outputs stand among those of a fine-tuned model: `outputs[..., order]` is in task order.

        Raises:
            ConfigError: naming `field`, if the model has other outputs.
        """

    outputs_per_token: ClassVar[bool] = False
    """Whether a model answers token by token."""

    def run(self, model: Any, batch: Mapping[str, Tensor], **asked: Any) -> Any:
        """A model's answer to a batch, of which it reads what it knows."""
        from raypp.models.loading import model_inputs

        return model(**model_inputs(model, batch), **asked)

    @abstractmethod
    def outputs(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """What is kept of a model's answer to a batch: logits [rows, outputs]; token by token, [rows, width, outputs];
        of a language model, [targets, vocabulary]."""

    def predicted(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """What is kept of outputs as the batch's predictions: the same, or numbers for each row, [rows, numbers]."""
        return outputs

    # --- losses: sums over rows, of a language model over targets; float32 scalars ---

    @abstractmethod
    def hard_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Of outputs and the batch's labels."""

    @abstractmethod
    def soft_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor], temperature: float) -> Tensor:
        """Of outputs and the batch's teacher logits."""

    def logits_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Of outputs and the batch's teacher logits, whatever the temperature."""
        from raypp.distillation.losses import logits_mse_sum

        return logits_mse_sum(outputs, batch["teacher_logits"])

    # --- predictions ---

    @abstractmethod
    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """The task's metrics over the labelled rows of a split, the headline first; all of them finite.

        Raises:
            ValueError: there are no labelled rows.
            FloatingPointError: a prediction is not finite.
        """

    @abstractmethod
    def table(self, predictions: Mapping[str, Predictions]) -> str:
        """Tab-separated text with a line for every row: split, row, label, prediction and what it follows from."""

    @abstractmethod
    def write(self, split: str, predictions: Predictions, folder: Path) -> list[Path]:
        """Writes one split's predictions, without labels as the task's leaderboard takes them; returns the files."""
