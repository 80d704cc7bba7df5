"""Settings of the task and of where its examples come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raypp.config.base import Fraction, Name, Names, Settings

Quotes = Annotated[
    Literal["csv", "plain"],
    Field(
        description="How double quotes in CSV and TSV are read. csv: a quoted field may contain separators and line "
        "ends (RFC 4180); plain: quotes are ordinary characters, as in GLUE's own files."
    ),
]
Kind = Literal["classification", "regression", "multiple_choice", "question_answering"]


class OwnTask(Settings):
    """A user-defined task, for `data.source.kind: files`."""

    name: Name
    """Name of the task in folders and tables."""
    kind: Kind = "classification"
    """What is predicted. classification: one of several classes; regression: a real number; multiple_choice: the right
    one of several endings; question_answering: a span of the context."""
    pair: bool = False
    """Classification and regression: whether each example is a pair of sentences."""
    labels: Names = ()
    """Classification: the label names, at least two, in the order of the model's outputs. Empty for other kinds."""
    unanswerable: bool = False
    """Question answering: whether some questions have no answer in their context."""

    @model_validator(mode="after")
    def _labels_fit_the_kind(self) -> OwnTask:
        if self.kind == "classification" and len(self.labels) < 2:
            raise ValueError(f"labels: a classification task needs at least 2 label names, got {list(self.labels)}")
        if self.kind != "classification" and self.labels:
            raise ValueError(f"labels: a {self.kind} task has no label names; leave them out")
        if self.pair and self.kind not in ("classification", "regression"):
            raise ValueError(f"pair: a {self.kind} task has no pairs of sentences; leave it out")
        if self.unanswerable and self.kind != "question_answering":
            raise ValueError(f"unanswerable: a {self.kind} task has no questions; leave it out")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels: label names must be unique, got {list(self.labels)}")
        return self


class MaskingSettings(Settings):
    """Which tokens a masked language model predicts, and what replaces them in its input. They are chosen again in each
    epoch."""

    proportion: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Fraction of each block's tokens that the model must predict. What replaces these tokens is decided by the next
    three settings, so the fraction of mask tokens in the input is proportion times mask_fraction."""
    mask_fraction: Fraction = 0.8
    """Fraction of the predicted tokens that are replaced by the mask token."""
    keep_fraction: Fraction = 0.1
    """Fraction of the predicted tokens that are left unchanged in the input."""
    random_fraction: Fraction = 0.1
    """Fraction of the predicted tokens that are replaced by a random token. The three fractions must sum to 1."""
    smoothing: Annotated[float, Field(ge=0)] = 0.7
    """How much more often rare tokens are predicted: a token is chosen with a weight of its count in the corpus to the
    power of -smoothing. 0: all tokens are equally likely."""

    @model_validator(mode="after")
    def _fractions_are_all(self) -> MaskingSettings:
        total = self.mask_fraction + self.keep_fraction + self.random_fraction
        if abs(total - 1) > 1e-6:
            raise ValueError(f"mask_fraction, keep_fraction and random_fraction must sum to 1, got {total:g}")
        return self


class LanguageModelingTask(Settings):
    """Language modelling on plain text, for `data.source.kind: text`, `hub_text` or `glue_text`, as in the training of
    DistilBERT."""

    name: Name
    """Name of the task in folders and tables."""
    kind: Literal["language_modeling"]
    """Language modelling reads text without labels."""
    objective: Literal["masked", "causal"] = "masked"
    """masked: predict masked tokens (MLM); causal: predict the next token (CLM)."""
    masking: MaskingSettings | None = None
    """Which tokens are masked; null: the defaults of that section. Not allowed with `objective: causal`."""

    @model_validator(mode="after")
    def _masking_is_meant(self) -> LanguageModelingTask:
        if self.objective == "causal" and self.masking is not None:
            raise ValueError("masking: objective: causal masks no tokens; leave it out")
        return self


class OfficialSource(Settings):
    """The files of a task as they are published (GLUE: `train.tsv`, `dev.tsv`, …; SWAG: `train.csv`, …)."""

    kind: Literal["official"]
    directory: str
    """Folder that holds the files under their published names: a local path or a URI (s3://, gs://)."""


class HubSource(Settings):
    """A data set of the Hugging Face hub, read with `datasets.load_dataset`."""

    kind: Literal["hub"]
    repository: str | None = None
    """Name of the data set repository; null: the one where the task is published (`nyu-mll/glue`, `allenai/swag`,
    …)."""
    revision: str | None = None
    """Branch, tag or commit; null: the default branch."""


class Columns(Settings):
    """The names of the columns in the user's files. Classification and regression read sentence1, sentence2 and label;
    multiple choice reads sent1, sent2, endings and label; question answering reads id, question, context and
    answers."""

    sentence1: str = "sentence1"
    """Column of the sentence, or of the first sentence of a pair."""
    sentence2: str = "sentence2"
    """Column of the second sentence of a pair."""
    sent1: str = "sent1"
    """Multiple choice: column of the context."""
    sent2: str = "sent2"
    """Multiple choice: column of the words that every ending begins with."""
    endings: Annotated[Names, Field(min_length=2)] = ("ending0", "ending1", "ending2", "ending3")
    """Multiple choice: columns of the endings, in the order of their numbers."""
    id: str = "id"
    """Question answering: column of the question's identifier, which the prediction files use."""
    question: str = "question"
    """Question answering: column of the question."""
    context: str = "context"
    """Question answering: column of the text that contains the answer."""
    answers: str = "answers"
    """Question answering: column of the right answers as in SQuAD: texts, and their positions in the context
    (`answer_start`, in characters)."""
    label: str = "label"
    """Column of the label. Classification: a label's name, or its number from 0 if no name is itself a number;
    regression: the value; multiple choice: the number of the right ending."""


class FilesSource(Settings):
    """The user's own Parquet, CSV, TSV or JSON-lines files."""

    kind: Literal["files"]
    train: str
    """Training file: a local path or a URI. Its ending names the format (.parquet, .csv, .tsv, .jsonl)."""
    dev: str
    """Evaluation file."""
    test: str | None = None
    """File to predict; it needs no labels."""
    columns: Columns = Columns()
    """The names of the columns in these files."""
    quotes: Quotes = "csv"


class SyntheticSource(Settings):
    """Examples generated by raypp's own seeded grammar, offline and identical on every machine."""

    kind: Literal["synthetic"]
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the grammar."""
    train_rows: Annotated[int, Field(ge=1)] = 8000
    """Rows of the training split."""
    dev_rows: Annotated[int, Field(ge=1)] = 1000
    """Rows of the dev split (and of the test split)."""


class Texts(Settings):
    """Settings that all sources of plain text have."""

    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Fraction of the texts that is kept for evaluation if no dev split is given. The texts are chosen by their
    position alone."""


class TextSource(Texts):
    """Plain text in the user's own files: each line of a .txt file, or each row of a table, is a text."""

    kind: Literal["text"]
    files: Annotated[Names, Field(min_length=1)]
    """Training files, read in this order: local paths or URIs. The ending names the format (.txt, .parquet, .csv, .tsv,
    .jsonl)."""
    dev_files: Names = ()
    """Evaluation files. Empty: held_out_fraction of the training texts is evaluated instead."""
    column: str = "text"
    """Column of the text in a table."""
    quotes: Quotes = "csv"


class HubTextSource(Texts):
    """Plain text of a data set of the Hugging Face hub."""

    kind: Literal["hub_text"]
    repository: str
    """Name of the data set repository."""
    configuration: str | None = None
    """The data set's configuration, if it has several."""
    revision: str | None = None
    """Branch, tag or commit; null: the default branch."""
    split: str = "train"
    """Training split."""
    dev_split: str | None = None
    """Evaluation split; null: held_out_fraction of the training texts is evaluated instead."""
    column: str = "text"
    """Column of the text."""


class GlueTextSource(Texts):
    """All sentences of the training splits of some GLUE tasks, without labels."""

    kind: Literal["glue_text"]
    directory: str
    """Folder that contains one folder of official files per task, under its published name (SST-2, MRPC)."""
    tasks: Annotated[Names, Field(min_length=1)]
    """Names of the tasks to read."""


Source = Annotated[
    OfficialSource | HubSource | FilesSource | SyntheticSource | TextSource | HubTextSource | GlueTextSource,
    Field(discriminator="kind"),
]


class DataSettings(Settings):
    """Where the examples come from and how much of each is read."""

    source: Source | None = None
    """The source of the examples. Labelled examples: official, hub, files or synthetic. Plain text, for language
    modelling: text, hub_text or glue_text. null: synthetic for a synthetic task, hub for any other built-in task. A
    user-defined task needs files."""
    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    """Maximum tokens of an example (multiple choice: of each choice; question answering: of each window), special
    tokens included."""
    stride: Annotated[int, Field(ge=1)] = 128
    """Question answering: tokens from the start of one window of a long context to the start of the next. It is not the
    overlap of two windows."""
    max_train_rows: Annotated[int, Field(ge=1)] | None = None
    """Read only the first N training rows (of plain text, the first N texts); null: all."""
    window_blocks: Annotated[int, Field(ge=1)] = 65_536
    """Plain text: size of the shuffle buffer, in blocks (of max_length tokens at most). Batches are drawn at random
    from the blocks that are in memory, at most this many at a time. A larger buffer shuffles better and needs more
    memory; the number also determines the order of the batches and with it the result."""
