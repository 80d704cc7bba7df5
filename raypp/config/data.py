"""Settings of the task and of where its examples come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raypp.config.base import Fraction, Name, Names, Settings

Quotes = Literal["csv", "plain"]
Kind = Literal["classification", "regression", "multiple_choice", "question_answering"]


class OwnTask(Settings):
    """A task of the user's own, for `data.source.kind: files`."""

    name: Name
    """What the task is called in folders and tables."""
    kind: Kind = "classification"
    """What is predicted: one of several classes, a real number, the right one of several endings, or words of a
    context."""
    pair: bool = False
    """Whether each example of a classification or regression is a pair of sentences."""
    labels: Names = ()
    """Label names of a classification, two at least, in the order of the model's outputs; empty for the other kinds."""
    unanswerable: bool = False
    """Whether some questions have no answer in their context; of question answering alone."""

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
            raise ValueError(f"labels: every label name may stand once, got {list(self.labels)}")
        return self


class MaskingSettings(Settings):
    """Which tokens a masked language model is to predict, and what stands in their place; anew in each epoch."""

    proportion: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Part of a block's tokens that is predicted."""
    mask_fraction: Fraction = 0.8
    """Part of those that is replaced by the mask token."""
    keep_fraction: Fraction = 0.1
    """Part that is left as it is."""
    random_fraction: Fraction = 0.1
    """Part that is replaced by any other token; the three are 1 together."""
    smoothing: Annotated[float, Field(ge=0)] = 0.7
    """Rare tokens are predicted more often: a token's chance is its count in the corpus to the power of minus this. 0:
    all alike."""

    @model_validator(mode="after")
    def _fractions_are_all(self) -> MaskingSettings:
        total = self.mask_fraction + self.keep_fraction + self.random_fraction
        if abs(total - 1) > 1e-6:
            raise ValueError(f"mask_fraction, keep_fraction and random_fraction must be 1 together, got {total:g}")
        return self


class LanguageModelingTask(Settings):
    """Language modelling on plain text, for `data.source.kind: text`, `hub_text` or `glue_text`: what DistilBERT is
    made by."""

    name: Name
    """What the task is called in folders and tables."""
    kind: Literal["language_modeling"]
    """Text without labels."""
    objective: Literal["masked", "causal"] = "masked"
    """masked: some tokens are to be found again (MLM); causal: each next one (CLM)."""
    masking: MaskingSettings | None = None
    """Which tokens are masked; null: the defaults. Not with `objective: causal`."""

    @model_validator(mode="after")
    def _masking_is_meant(self) -> LanguageModelingTask:
        if self.objective == "causal" and self.masking is not None:
            raise ValueError("masking: nothing is masked with objective: causal; leave it out")
        return self


class OfficialSource(Settings):
    """The files of a task as they are published (GLUE: `train.tsv`, `dev.tsv`, …; SWAG: `train.csv`, …)."""

    kind: Literal["official"]
    directory: str
    """Folder that holds the files, by their published names; a local path or a URI (s3://, gs://)."""


class HubSource(Settings):
    """A data set of the Hugging Face hub, read with `datasets.load_dataset`."""

    kind: Literal["hub"]
    repository: str | None = None
    """Name of the data set repository; null: where the task is published (`nyu-mll/glue`, `allenai/swag`, …)."""
    revision: str | None = None
    """Branch, tag or commit; null for the default branch."""


class Columns(Settings):
    """Which column of a user's file holds what: sentence1 and sentence2 for classification and regression; sent1, sent2
    and endings for multiple choice; id, question, context and answers for question answering."""

    sentence1: str = "sentence1"
    """The sentence, or the first of a pair."""
    sentence2: str = "sentence2"
    """The second sentence of a pair."""
    sent1: str = "sent1"
    """The context of a multiple choice."""
    sent2: str = "sent2"
    """What every ending of a multiple choice begins with."""
    endings: Annotated[Names, Field(min_length=2)] = ("ending0", "ending1", "ending2", "ending3")
    """The choices, in the order of their numbers."""
    id: str = "id"
    """What a question is known by in the files of predictions."""
    question: str = "question"
    """The question."""
    context: str = "context"
    """The text in which its answer stands."""
    answers: str = "answers"
    """The right answers, texts with their places in the context (`answer_start`, in characters), as in SQuAD."""
    label: str = "label"
    """Label name, or its number from 0 where no name is a number itself (classification), value (regression) or number
    of the right ending (multiple choice)."""


class FilesSource(Settings):
    """The user's own Parquet, CSV, TSV or JSON-lines files."""

    kind: Literal["files"]
    train: str
    """Training file, a local path or a URI; the ending names the format (.parquet, .csv, .tsv, .jsonl)."""
    dev: str
    """File that is evaluated on."""
    test: str | None = None
    """File to predict; it needs no labels."""
    columns: Columns = Columns()
    """Which column holds what."""
    quotes: Quotes = "csv"
    """Double quotes in CSV and TSV. csv: a field in quotes may hold separators and line ends (RFC 4180); plain: they
    are characters like others, as in GLUE's own files."""


class SyntheticSource(Settings):
    """Examples written by raypp's own seeded grammar: offline, free, and the same everywhere."""

    kind: Literal["synthetic"]
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the grammar."""
    train_rows: Annotated[int, Field(ge=1)] = 8000
    """Rows of the training split."""
    dev_rows: Annotated[int, Field(ge=1)] = 1000
    """Rows of the dev split (and of the test split)."""


class Texts(Settings):
    """What the sources of plain text share."""

    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Part of the texts that is kept for evaluation, where there is no split for it; chosen by position alone."""


class TextSource(Texts):
    """Plain text in the user's own files: a text a line, or a column."""

    kind: Literal["text"]
    files: Annotated[Names, Field(min_length=1)]
    """Files of the training split, local paths or URIs, one after the other; the ending names the format (.txt,
    .parquet, .csv, .tsv, .jsonl)."""
    dev_files: Names = ()
    """Files that are evaluated on; none: a part of the others is held out."""
    column: str = "text"
    """Column of the text in a table."""
    quotes: Quotes = "csv"
    """Double quotes in CSV and TSV. csv: a field in quotes may hold separators and line ends (RFC 4180); plain: they
    are characters like others, as in GLUE's own files."""


class HubTextSource(Texts):
    """Plain text of a data set of the Hugging Face hub."""

    kind: Literal["hub_text"]
    repository: str
    """Name of the data set repository."""
    configuration: str | None = None
    """Which of its configurations, where it has several."""
    revision: str | None = None
    """Branch, tag or commit; null for the default branch."""
    split: str = "train"
    """Split to train on."""
    dev_split: str | None = None
    """Split to evaluate on; null: a part of the other is held out."""
    column: str = "text"
    """Column of the text."""


class GlueTextSource(Texts):
    """Every sentence of the training splits of GLUE tasks, without labels."""

    kind: Literal["glue_text"]
    directory: str
    """Folder that holds a folder of official files for each task, by its published name (SST-2, MRPC)."""
    tasks: Annotated[Names, Field(min_length=1)]
    """Names of the tasks."""


Source = Annotated[
    OfficialSource | HubSource | FilesSource | SyntheticSource | TextSource | HubTextSource | GlueTextSource,
    Field(discriminator="kind"),
]


class DataSettings(Settings):
    """Where the examples come from and how much of each is read."""

    source: Source | None = None
    """Labelled examples: official, hub, files or synthetic. Plain text, for language modelling: text, hub_text or
    glue_text. null: raypp's own grammar for a synthetic task, the hub for any other of the table. A task of one's own
    needs files."""
    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    """Tokens kept of an example (of each choice, of each window), special tokens included."""
    stride: Annotated[int, Field(ge=1)] = 128
    """Question answering: tokens from the start of one window of a long context to the start of the next."""
    max_train_rows: Annotated[int, Field(ge=1)] | None = None
    """Use only the first so many training rows (of plain text, the first texts); null for all."""
    window_blocks: Annotated[int, Field(ge=1)] = 65_536
    """Of plain text: sequences in memory at a time, among which those of a batch are chosen."""
