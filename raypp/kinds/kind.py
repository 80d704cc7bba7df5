"""`TaskKind`: the interface of all kinds of tasks, with the parts that most of them share."""

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

# torch and transformers are imported where they are used, because processes that only read or tokenize need neither.
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
# Must be raised when the same input would give other features than before.
FEATURES_FORMAT = 1


@dataclass(frozen=True)
class TaskKind(ABC):
    """A task together with the settings of its data and evaluation. It can be pickled and sent to workers."""

    task: Task
    data: DataSettings
    """How examples are read."""
    evaluation: EvaluationSettings
    """How predictions are read."""

    auto_class: ClassVar[str]
    """Name of the transformers class that opens a model of this kind."""
    usual_max_length: ClassVar[int] = 128
    """Maximum length, in tokens, for a model that is only evaluated and has no experiment."""
    own_settings: ClassVar[frozenset[str]] = frozenset()
    """The settings in KIND_SETTINGS that this kind reads."""

    stores_teacher_logits: ClassVar[bool] = True
    """Whether the teacher's logits are computed once and stored. If not, the teacher runs during training."""

    cuts_texts: ClassVar[bool] = False
    """Whether a row of the source gives any number of examples, so that it is only known after `tokenize`."""

    def misfit_of(self, config: Any) -> str | None:
        """Why a model of this configuration cannot learn the task although the Auto class opens it; None if it can."""
        return None

    def problems_with(self, tokenizer: PreTrainedTokenizerBase, field: str) -> list[str]:
        """Why a tokenizer or the settings do not suit the task, as messages.

        Args:
            field: the setting that names the tokenizer's model.
        """
        if tokenizer.pad_token_id is None:
            return [
                f"{field}: the tokenizer has no padding token, which batches need; allowed: a tokenizer that has one"
            ]
        return []

    # --- raw examples: one value for each of `columns`, then the label ---

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Names of a raw example's texts."""

    @property
    @abstractmethod
    def column_settings(self) -> tuple[str, ...]:
        """The fields of `data.source.columns` that name the columns of the user's files with the texts."""

    label_column: ClassVar[str] = "label"
    """The label's column in the published data set, and the field of `data.source.columns` for it."""
    label_type: ClassVar[pa.DataType] = pa.int64()
    """Type of a raw example's label."""

    def schema(self) -> pa.Schema:
        """The columns of raw examples. `row` counts from 0; the label is null in a split without labels."""
        texts = [pa.field(name, pa.string(), nullable=False) for name in self.columns]
        return pa.schema([pa.field("row", pa.int64(), nullable=False), *texts, pa.field("label", self.label_type)])

    def file_columns(self, columns: Columns) -> tuple[str, ...]:
        """The columns of the user's files with the texts."""
        values = [getattr(columns, name) for name in self.column_settings]
        return tuple(name for value in values for name in ([value] if isinstance(value, str) else value))

    @abstractmethod
    def texts(self, values: Sequence[object], columns: Sequence[object]) -> tuple[str | None, ...]:
        """The texts of a raw example.

        Args:
            values: the texts as the source has them.
            columns: the source's names of these columns, for messages.

        Raises:
            BadValueError: a value is not a text, or a required text is empty.
        """

    @abstractmethod
    def label(self, value: object, column: object, spellings: Mapping[str, int]) -> Any:
        """The label of a raw example.

        Args:
            value: the label as the source has it.
            column: the source's name of its column, for messages.
            spellings: the number of each label, by the text that the source writes for it.

        Raises:
            BadValueError: the value is not a label of this task.
        """

    def whole_columns(
        self, texts: Sequence[pa.Array], label: pa.Array, label_name: str, spellings: Mapping[str, int]
    ) -> dict[str, pa.Array] | None:
        """The columns of `schema`, without the row numbers, of many raw examples at once: what `texts` and `label` give
        for each of them.

        Args:
            texts: a column for each of `columns`, as the source has it.
            label: the labels as the source has them.
            label_name: the source's name of their column.
            spellings: as those of `label`.

        Returns:
            None if the examples have to be converted one by one, because a value is missing, wrong or unusual.
        """
        return None

    all_are_trainable: ClassVar[bool] = True
    """Whether every labelled raw example can be trained on."""

    def is_trainable(self, example: Sequence[Any]) -> bool:
        """Whether this raw example can be trained on. The training split skips and counts those that cannot."""
        return True

    # --- features ---

    rows_are_examples: ClassVar[bool] = True
    """Whether each example makes one row of features."""

    def features_key(self, *, raw_fingerprint: str, tokenizer_fingerprint: str) -> str:
        """Content key of a split's features, from everything that determines them.

        Args:
            raw_fingerprint: `RawData.fingerprint` of the split, which includes the number of rows that are read.
            tokenizer_fingerprint: see `data.tokenization`.
        """
        return content_key(
            format=FEATURES_FORMAT, raw=raw_fingerprint, tokenizer=tokenizer_fingerprint, **self.features_settings()
        )

    def features_settings(self) -> dict[str, Any]:
        """The parts of the task and the settings that determine features."""
        task = self.task
        return {
            "kind": task.kind,
            "pair": task.pair,
            "labels": list(task.labels),
            "max_length": self.data.max_length,
        }

    @abstractmethod
    def tokenize(self, batch: pa.RecordBatch | pa.Table, tokenizer: PreTrainedTokenizerBase) -> pa.Table:
        """Raw examples as a table of features (`data.features.features_schema`), not padded."""

    # --- a run's data ---

    def training_data(
        self,
        experiment: Experiment,
        micro_batches: int,
        vocabulary: Vocabulary,
        train: Artifact,
        teacher_logits: Artifact | None,
    ) -> TrainingData:
        """The training split, read from the store into memory, with the teacher's logits if they are stored."""
        from raypp.data.features import Features
        from raypp.data.training import InMemory

        features = replace(Features.from_table(train.read_table()), reference=None)  # only evaluation reads answers
        if teacher_logits is not None:
            features = features.with_teacher_logits(teacher_logits.read_table(), self.outputs_per_token)
        return InMemory(features, experiment.train, micro_batches)

    def evaluation_data(self, table: pa.Table, vocabulary: Vocabulary) -> EvaluationExamples:
        """A split for evaluation, from its table of features, sorted by row."""
        from raypp.data.features import Features

        return Features.from_table(table)

    # --- the model ---

    def auto_model(self) -> Any:
        """The transformers class that opens a model of this kind."""
        import transformers

        return getattr(transformers, self.auto_class)

    @abstractmethod
    def head_settings(self) -> dict[str, Any]:
        """Fields of the model's configuration that describe its head."""

    @abstractmethod
    def keeps_head(self, config: Any) -> bool:
        """Whether the head of a saved model with this configuration was trained for this task."""

    @abstractmethod
    def output_order(self, config: Any, field: str) -> list[int]:
        """Positions of the task's outputs among a fine-tuned model's: `outputs[..., order]` is in the task's order.

        Raises:
            ConfigError: the model has other outputs; names `field`.
        """

    outputs_per_token: ClassVar[bool] = False
    """Whether the model gives an output for each token."""

    def run(self, model: Any, batch: Mapping[str, Tensor], **asked: Any) -> Any:
        """Runs a model on those tensors of a batch that its `forward` accepts.

        Args:
            batch: from `Examples.collate`.
            asked: further arguments of `forward`, such as `output_hidden_states=True`.

        Returns:
            transformers' output object.
        """
        from raypp.models.loading import model_inputs

        return model(**model_inputs(model, batch), **asked)

    @abstractmethod
    def outputs(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits in a model's answer to a batch, from `run`.

        Returns:
            [rows, outputs]; question answering: [rows, width, 2]; language modeling: [chosen tokens, vocabulary].
        """

    def predicted(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The batch's predictions, which evaluation keeps.

        Args:
            outputs: from `outputs`.

        Returns:
            The outputs themselves; language modeling: [rows, 2].
        """
        return outputs

    # --- losses: float32 scalars with gradient; `outputs` comes from `outputs`, and `batch` from `Examples.collate` ---

    @abstractmethod
    def hard_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Loss of the outputs on the labels, summed over rows or, for a language model, over targets.

        Args:
            outputs: [rows, outputs]; question answering: [rows, width, 2]; language modeling: [chosen tokens,
                vocabulary].
            batch: `labels`: [rows], class numbers or values; question answering: [rows, 2], the first and last token;
                language modeling: [rows, width], token ids. Question answering also reads `attention_mask` [rows,
                width], and language modeling `chosen` [rows, width].
        """

    @abstractmethod
    def soft_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor], temperature: float) -> Tensor:
        """Loss of the outputs on the softened teacher logits, summed over rows or, for a language model, over tokens.

        Args:
            outputs: as in `hard_loss_sum`.
            batch: `teacher_logits`, shaped as the outputs; question answering also reads `attention_mask`.
            temperature: above 0; regression does not use it.
        """

    def logits_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Squared error of the outputs to the teacher logits, its mean over a row's outputs, summed over rows.

        Args:
            outputs: as in `hard_loss_sum`.
            batch: as in `soft_loss_sum`.
        """
        from raypp.distillation.losses import logits_mse_sum

        return logits_mse_sum(outputs, batch["teacher_logits"])

    # --- predictions ---

    @abstractmethod
    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """The task's metrics over the labelled rows of a split, the headline metric first. All are finite.

        Raises:
            ValueError: no row has a label.
            FloatingPointError: a prediction is not finite.
        """

    @abstractmethod
    def table(self, predictions: Mapping[str, Predictions]) -> str:
        """The predictions of some splits as tab-separated text with a header and one line per row: split, row, label,
        prediction and the numbers that it follows from."""

    @abstractmethod
    def write(self, split: str, predictions: Predictions, folder: Path) -> list[Path]:
        """Writes the predictions of one split; those of an unlabelled split in the format of the task's leaderboard.

        Returns:
            The files.

        Raises:
            ConfigError: the split does not fit the format (question answering: an id occurs twice).
            FloatingPointError: a prediction is not finite.
        """
