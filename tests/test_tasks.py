"""The task table against what GLUE publishes, and which task goes with which source."""

from __future__ import annotations

import pickle

import pytest

from raypp.config import FilesSource, HubSource, OfficialSource, OwnTask, SyntheticSource
from raypp.errors import ConfigError
from raypp.evaluation.answer_metrics import ANSWER_METRICS
from raypp.evaluation.metrics import METRICS
from raypp.kinds import KINDS, kind_of
from raypp.tasks import TASKS, Task, default_source, find_task, resolve_task

OFFICIAL = OfficialSource(kind="official", directory="anywhere")
HUB = HubSource(kind="hub")
FILES = FilesSource(kind="files", train="train.csv", dev="dev.csv")
SYNTHETIC = SyntheticSource(kind="synthetic")

# GLUE, table 1 (Wang et al. 2019): pairs, metrics; the label order of the hub; the names of the sample submissions.
PUBLISHED = {
    "cola": (False, ("unacceptable", "acceptable"), {"matthews"}, ["CoLA.tsv"]),
    "sst2": (False, ("negative", "positive"), {"accuracy"}, ["SST-2.tsv"]),
    "mrpc": (True, ("not_equivalent", "equivalent"), {"accuracy", "f1"}, ["MRPC.tsv"]),
    "qqp": (True, ("not_duplicate", "duplicate"), {"accuracy", "f1"}, ["QQP.tsv"]),
    "stsb": (True, (), {"pearson", "spearman"}, ["STS-B.tsv"]),
    "mnli": (True, ("entailment", "neutral", "contradiction"), {"accuracy"}, ["MNLI-m.tsv", "MNLI-mm.tsv"]),
    "qnli": (True, ("entailment", "not_entailment"), {"accuracy"}, ["QNLI.tsv"]),
    "rte": (True, ("entailment", "not_entailment"), {"accuracy"}, ["RTE.tsv"]),
    "wnli": (True, ("not_entailment", "entailment"), {"accuracy"}, ["WNLI.tsv"]),
    "ax": (True, ("entailment", "neutral", "contradiction"), {"matthews"}, ["AX.tsv"]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_row_is_as_published(name: str) -> None:
    pair, labels, metrics, submissions = PUBLISHED[name]
    task = TASKS[name]
    assert (task.pair, task.labels) == (pair, labels)
    assert metrics <= set(task.metrics)
    assert [task.submission_file(split) for split in task.test_splits] == submissions
    assert (task.kind == "regression") == (not labels)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_every_row_is_whole(task: Task) -> None:
    assert TASKS[task.name] is task
    assert set(task.metrics) <= set(ANSWER_METRICS if task.kind == "question_answering" else METRICS)
    assert type(kind_of(task)) is KINDS[task.kind]
    assert task.headline == task.metrics[0]
    if task.synthetic:
        assert not task.official
        assert task.hub_config is None
        return
    assert [file.split for file in task.official] == list(task.splits)
    columns = kind_of(task).columns
    assert len(task.hub_columns) == len(columns)
    for file in task.official:
        assert len(file.sentences) == len(columns)
        assert (file.label is None) == (file.split in task.test_splits)


def test_only_cola_has_files_without_header_and_only_train_and_dev() -> None:
    headless = {(task.name, file.split) for task in TASKS.values() for file in task.official if not file.has_header}
    assert headless == {("cola", "train"), ("cola", "dev")}


def test_mnli_has_two_evaluation_splits_and_ax_none() -> None:
    assert TASKS["mnli"].splits == ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")
    assert TASKS["ax"].splits == ("test",)
    assert TASKS["ax"].labels == TASKS["mnli"].labels


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("SST-2", "sst2"), ("sts-b", "stsb"), ("STS_B", "stsb"), ("MNLI", "mnli"), ("CoLA", "cola"), ("sst", "sst2")],
)
def test_usual_spellings_are_known(spelling: str, name: str) -> None:
    assert find_task(spelling) is TASKS[name]


def test_unknown_task_is_refused_with_the_nearest_and_all_names() -> None:
    with pytest.raises(ConfigError) as error:
        resolve_task("mrcp", None)
    message = str(error.value)
    assert message.startswith("task: there is no task 'mrcp'; did you mean 'mrpc'?")
    assert all(name in message for name in TASKS)
    with pytest.raises(ConfigError, match="no task 'zzz'; Allowed"):
        find_task("zzz")


def test_sources_by_default() -> None:
    assert default_source(TASKS["sentiment"]) == SYNTHETIC
    assert default_source(TASKS["rte"]) == HUB


@pytest.mark.parametrize("source", [OFFICIAL, HUB, None])
def test_a_task_of_the_table_is_itself(source: OfficialSource | HubSource | None) -> None:
    assert resolve_task("mnli", source) is TASKS["mnli"]


def test_own_files_of_mnli_have_one_dev_split() -> None:
    task = resolve_task("mnli", FILES)
    assert task.splits == ("train", "dev", "test")
    assert task.labels == TASKS["mnli"].labels
    assert task.submission_file("test") == "MNLI.tsv"


@pytest.mark.parametrize(
    ("task", "source", "said"),
    [
        ("mrpc", SYNTHETIC, "data.source: got kind: synthetic for mrpc; allowed: official, hub, files"),
        ("sentiment", HUB, "data.source: sentiment is a synthetic task and needs kind: synthetic, got hub"),
        ("similarity", FILES, "got files"),
        ("ax", FILES, "data.source: ax is only a test set; allowed: official, hub; got files"),
        (OwnTask(name="mine", labels=("a", "b")), None, "the user-defined task 'mine' needs kind: files, got null"),
        (OwnTask(name="mine", labels=("a", "b")), HUB, "needs kind: files, got kind: hub"),
    ],
)
def test_what_does_not_go_together_is_refused(task: str | OwnTask, source: HubSource, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_task(task, source)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("own", "metrics"),
    [
        (OwnTask(name="two", labels=("no", "yes")), ("accuracy", "f1")),
        (OwnTask(name="three", labels=("a", "b", "c"), pair=True), ("accuracy", "macro_f1")),
        (OwnTask(name="number", kind="regression"), ("pearson", "spearman")),
    ],
)
def test_own_task_becomes_a_row(own: OwnTask, metrics: tuple[str, ...]) -> None:
    task = resolve_task(own, FILES)
    assert (task.name, task.kind, task.pair, task.labels, task.metrics) == (
        *(own.name, own.kind, own.pair, own.labels),
        metrics,
    )
    assert task.splits == ("train", "dev", "test")
    assert task.submission_file("test") == f"{own.name}.tsv"


def test_tasks_travel_to_workers() -> None:
    assert pickle.loads(pickle.dumps(TASKS)) == TASKS
