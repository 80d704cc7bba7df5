"""The table of built-in tasks: the examples, labels, files and metrics of each. To add a task, add a row.

The table has the nine GLUE tasks (Wang et al. 2019), GLUE's diagnostic set AX, SWAG, SQuAD, and three synthetic tasks.
`resolve_task` makes a `Task` of an experiment's `task` (the name of a built-in task, or a user-defined task) and its
source.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any, Literal

from raypp.config import (
    FilesSource,
    HubSource,
    Kind,
    LanguageModelingTask,
    MaskingSettings,
    OwnTask,
    Source,
    SyntheticSource,
    Texts,
)
from raypp.errors import ConfigError

LanguageModelingKind = Literal["masked_language_modeling", "causal_language_modeling"]


@dataclass(frozen=True)
class OfficialFile:
    """One official file (tab-separated, CSV or SQuAD's JSON). Columns are given by name, or by position (from 0) if the
    file has no header."""

    split: str
    name: str
    sentences: tuple[str | int, ...]
    label: str | int | None = None
    other_name: str | None = None
    """Another name under which the file is published."""

    @property
    def has_header(self) -> bool:
        """Whether the first line names the columns."""
        return isinstance(self.sentences[0], str)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: its examples, labels, metrics, splits and files."""

    name: str
    """Name in experiments, folders and tables."""
    title: str
    """Name under which it is published, which submission files have."""
    kind: Kind | LanguageModelingKind = "classification"
    """The kind of task (`raypp.kinds`), which determines examples, models, losses and predictions."""
    pair: bool = False
    """Whether each example is a pair of sentences."""
    labels: tuple[str, ...] = ()
    """Label names in the order of the model's outputs (the hub's order), or the numbers of the endings; empty for
    regression."""
    metrics: tuple[str, ...]
    """Names of its metrics, the headline metric first: from `metrics.METRICS`; for question answering from
    `answer_metrics.ANSWER_METRICS`; for language modelling `perplexity`."""
    train_split: str | None = "train"
    """The training split; None for a diagnostic set, which is only evaluated."""
    eval_splits: tuple[str, ...] = ("dev",)
    """Labelled splits on which a model is evaluated."""
    test_splits: tuple[str, ...] = ("test",)
    """Splits to predict; GLUE publishes them without labels."""
    official: tuple[OfficialFile, ...] = ()
    """The official files, one for each split; empty if there are none."""
    digit_labels: bool = False
    """Whether official files and submissions write a label as its number instead of its name."""
    skips_cut_rows: bool = False
    """Whether labelled official files are known to contain rows that lack fields; raypp skips and counts them."""
    hub_repository: str = "nyu-mll/glue"
    """Its repository on the hub."""
    hub_config: str | None = None
    """Its configuration in that repository; None if the repository has none."""
    hub_columns: tuple[str, ...] = ()
    """The columns of the texts on the hub."""
    value_range: tuple[float, float] | None = None
    """Range of a regression task's values; submissions are clipped to it."""
    unanswerable: bool = False
    """Whether some questions have no answer in their context."""
    synthetic: bool = False
    """Whether raypp's own grammar generates the examples."""
    masking: MaskingSettings | None = None
    """Which tokens a masked language model predicts; None for other kinds."""

    @property
    def headline(self) -> str:
        """The headline metric: tables show it and `select: best` compares it, on the first evaluation split."""
        return self.metrics[0]

    @property
    def run_splits(self) -> tuple[str, ...]:
        """The splits that a run reads: the training and evaluation splits."""
        return (*((self.train_split,) if self.train_split else ()), *self.eval_splits)

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits: training, evaluation and test."""
        return (*self.run_splits, *self.test_splits)

    def official_file(self, split: str) -> OfficialFile:
        """The official file of a split of this task."""
        return next(file for file in self.official if file.split == split)

    def submission_file(self, split: str) -> str:
        """Name of the submission file of a test split: `MRPC.tsv`, `MNLI-mm.tsv`."""
        part = {"test_matched": "-m", "test_mismatched": "-mm"}.get(split, "")
        return f"{self.title}{part}.tsv"


_PAIR = ("sentence1", "sentence2")
_SENTIMENT = ("negative", "positive")
_EQUIVALENCE = ("not_equivalent", "equivalent")
_ENTAILMENT = ("entailment", "not_entailment")
# The hub's order. Older versions of transformers used contradiction, entailment, neutral: models fine-tuned with them
# have their outputs in that order and must be matched by label name.
_INFERENCE = ("entailment", "neutral", "contradiction")
_ACCURACY = ("accuracy",)
_ACCURACY_F1 = ("accuracy", "f1")
_CORRELATIONS = ("pearson", "spearman")


def _glue(title: str, label: str | int, *sentences: str | int, test: tuple[str, ...] = (), **rest: Any) -> Task:
    """A GLUE task of three files with these columns. `test` gives the names of the sentence columns if train and dev
    have no header."""
    name = title.lower().replace("-", "")
    columns = test or tuple(str(sentence) for sentence in sentences)
    files = (
        OfficialFile("train", "train.tsv", sentences, label),
        OfficialFile("dev", "dev.tsv", sentences, label),
        OfficialFile("test", "test.tsv", columns),
    )
    defaults: dict[str, Any] = {
        "pair": len(sentences) == 2,
        "official": files,
        "hub_config": name,
        "hub_columns": columns,
    }
    return Task(name=name, title=title, **defaults | rest)


def _squad(name: str, version: str, hub_config: str, unanswerable: bool = False) -> Task:
    """A version of SQuAD. Its test set is not published."""
    columns = ("id", "question", "context")
    return Task(
        name=name,
        title=f"SQuAD-v{version}",
        kind="question_answering",
        metrics=("f1", "exact_match"),
        test_splits=(),
        official=tuple(
            OfficialFile(split, f"{split}-v{version}.json", columns, "answers") for split in ("train", "dev")
        ),
        hub_repository=f"rajpurkar/{name}",
        hub_config=hub_config,
        hub_columns=columns,
        unanswerable=unanswerable,
    )


def _synthetic(name: str, **rest: Any) -> Task:
    """A task of raypp's own grammar."""
    return Task(name=name, title=name, synthetic=True, **rest)


_MNLI_FILES = (
    OfficialFile("train", "train.tsv", _PAIR, "gold_label"),
    OfficialFile("dev_matched", "dev_matched.tsv", _PAIR, "gold_label"),
    OfficialFile("dev_mismatched", "dev_mismatched.tsv", _PAIR, "gold_label"),
    OfficialFile("test_matched", "test_matched.tsv", _PAIR),
    OfficialFile("test_mismatched", "test_mismatched.tsv", _PAIR),
)

# The names of the four endings, of which one is right.
_CHOICES = ("0", "1", "2", "3")
_SWAG_TEXTS = ("sent1", "sent2", *(f"ending{choice}" for choice in _CHOICES))

_ROWS = (
    _glue(
        "CoLA",
        *(1, 3),
        test=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        digit_labels=True,
    ),
    _glue("SST-2", "label", "sentence", labels=_SENTIMENT, metrics=_ACCURACY, digit_labels=True),
    _glue(
        "MRPC",
        *("Quality", "#1 String", "#2 String"),
        hub_columns=_PAIR,
        labels=_EQUIVALENCE,
        metrics=_ACCURACY_F1,
        digit_labels=True,
    ),
    _glue(
        "QQP",
        *("is_duplicate", "question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metrics=_ACCURACY_F1,
        digit_labels=True,
        skips_cut_rows=True,
    ),
    _glue("STS-B", "score", *_PAIR, kind="regression", metrics=_CORRELATIONS, value_range=(0.0, 5.0)),
    Task(
        name="mnli",
        title="MNLI",
        pair=True,
        labels=_INFERENCE,
        metrics=_ACCURACY,
        eval_splits=("dev_matched", "dev_mismatched"),
        test_splits=("test_matched", "test_mismatched"),
        official=_MNLI_FILES,
        hub_config="mnli",
        hub_columns=("premise", "hypothesis"),
    ),
    _glue("QNLI", "label", "question", "sentence", labels=_ENTAILMENT, metrics=_ACCURACY),
    _glue("RTE", "label", *_PAIR, labels=_ENTAILMENT, metrics=_ACCURACY),
    _glue("WNLI", "label", *_PAIR, labels=("not_entailment", "entailment"), metrics=_ACCURACY, digit_labels=True),
    Task(
        # It is predicted with a model of MNLI. GLUE does not publish the labels; its server computes Matthews'
        # correlation over three classes.
        name="ax",
        title="AX",
        pair=True,
        labels=_INFERENCE,
        metrics=("matthews",),
        train_split=None,
        eval_splits=(),
        official=(OfficialFile("test", "diagnostic.tsv", _PAIR, other_name="AX.tsv"),),
        hub_config="ax",
        hub_columns=("premise", "hypothesis"),
    ),
    Task(
        name="swag",
        title="SWAG",
        kind="multiple_choice",
        labels=_CHOICES,
        metrics=_ACCURACY,
        official=(
            OfficialFile("train", "train.csv", _SWAG_TEXTS, "label"),
            OfficialFile("dev", "val.csv", _SWAG_TEXTS, "label"),
            OfficialFile("test", "test.csv", _SWAG_TEXTS),
        ),
        hub_repository="allenai/swag",
        hub_config="regular",
        hub_columns=_SWAG_TEXTS,
    ),
    _squad("squad", "1.1", "plain_text"),
    _squad("squad_v2", "2.0", "squad_v2", unanswerable=True),
    _synthetic("sentiment", labels=_SENTIMENT, metrics=_ACCURACY),
    _synthetic("paraphrase", pair=True, labels=_EQUIVALENCE, metrics=_ACCURACY_F1),
    _synthetic("similarity", pair=True, kind="regression", metrics=_CORRELATIONS, value_range=(0.0, 5.0)),
)

TASKS: dict[str, Task] = {task.name: task for task in _ROWS}
"""Every task by name."""

_SPELLINGS = {
    **{"sst": "sst2", "sts": "stsb", "diagnostic": "ax"},
    **{"squadv1": "squad", "squadv1.1": "squad", "squadv2": "squad_v2", "squadv2.0": "squad_v2", "squad2": "squad_v2"},
}


def find_task(name: str) -> Task:
    """The built-in task of a name, in any usual spelling ('SST-2', 'sts_b'); ConfigError for an unknown name."""
    plain = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    plain = _SPELLINGS.get(plain, plain)
    if plain in TASKS:
        return TASKS[plain]
    near = difflib.get_close_matches(plain, TASKS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"task: there is no task {name!r}; {hint}Allowed: {', '.join(TASKS)}, or a user-defined task: {{name, kind, "
        "pair, labels}"
    )


def resolve_task(task: str | OwnTask | LanguageModelingTask, source: Source | None) -> Task:
    """The task as this source provides it; ConfigError if task and source do not fit together.

    The user's own files have one dev and at most one test split, even for a built-in task that has two.

    Args:
        source: None for the default source.
    """
    if isinstance(task, LanguageModelingTask):
        if not isinstance(source, Texts):
            given = "null" if source is None else f"kind: {source.kind}"
            raise ConfigError(f"data.source: {task.name} needs kind: text, hub_text or glue_text, got {given}")
        return _language_modeling(task)
    if isinstance(source, Texts):
        raise ConfigError(
            f"data.source: kind: {source.kind} is plain text, which needs a task {{name, kind: language_modeling}}; "
            f"got task {task!r}"
        )
    if isinstance(task, OwnTask):
        if not isinstance(source, FilesSource):
            given = "null" if source is None else f"kind: {source.kind}"
            raise ConfigError(f"data.source: the user-defined task {task.name!r} needs kind: files, got {given}")
        return _own(task, source)
    found = find_task(task)
    if found.synthetic and not isinstance(source, SyntheticSource | None):
        raise ConfigError(f"data.source: {found.name} is a synthetic task and needs kind: synthetic, got {source.kind}")
    if not found.synthetic and isinstance(source, SyntheticSource):
        raise ConfigError(f"data.source: got kind: synthetic for {found.name}; allowed: official, hub, files")
    if not isinstance(source, FilesSource):
        return found
    if found.train_split is None:
        raise ConfigError(f"data.source: {found.name} is only a test set; allowed: official, hub; got files")
    if found.kind == "multiple_choice" and (endings := len(source.columns.endings)) != len(found.labels):
        raise ConfigError(
            f"data.source.columns.endings: got {endings} columns, but {found.name} has {len(found.labels)} endings; "
            "for another number define a task of your own: {name, kind: multiple_choice}"
        )
    return replace(found, eval_splits=("dev",), test_splits=("test",))


def default_source(task: Task) -> Source:
    """The source of a task if the experiment gives none: the grammar for a synthetic task, else the hub."""
    return SyntheticSource(kind="synthetic") if task.synthetic else HubSource(kind="hub")


def _language_modeling(task: LanguageModelingTask) -> Task:
    """Language modelling as a `Task`."""
    masked = task.objective == "masked"
    return Task(
        name=task.name,
        title=task.name,
        kind="masked_language_modeling" if masked else "causal_language_modeling",
        metrics=("perplexity",),
        test_splits=(),
        masking=(task.masking or MaskingSettings()) if masked else None,
    )


def _own(task: OwnTask, source: FilesSource) -> Task:
    """A user-defined task as a `Task`."""
    labels = task.labels
    metrics: tuple[str, ...]
    match task.kind:
        case "classification":
            metrics = _ACCURACY_F1 if len(labels) == 2 else ("accuracy", "macro_f1")
        case "regression":
            metrics = _CORRELATIONS
        case "multiple_choice":
            metrics = _ACCURACY
            labels = tuple(str(choice) for choice in range(len(source.columns.endings)))
        case "question_answering":
            metrics = ("f1", "exact_match")
    return Task(
        name=task.name,
        title=task.name,
        kind=task.kind,
        pair=task.pair,
        labels=labels,
        metrics=metrics,
        unanswerable=task.unanswerable,
    )
