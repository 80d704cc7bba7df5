"""From an experiment to everything that must hold before a worker starts: inputs found, read and hashed, settings
that fit.

All problems are collected into one `ConfigError`. Nothing is written here but the probe for a writable storage.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from raypp.config import (
    DistillationSettings,
    EvaluationSettings,
    Experiment,
    Settings,
    StudentSettings,
    TeacherSettings,
)
from raypp.data.batches import batch_counter
from raypp.data.features import Features
from raypp.data.sources import RawData, open_source
from raypp.data.tokenization import tokenizer_fingerprint
from raypp.distillation.teacher import LayerPairs, layer_pairs
from raypp.errors import ConfigError
from raypp.identity import identity_hash, run_identity, run_name
from raypp.kinds import TaskKind, kind_of
from raypp.kinds.kind import KIND_SETTINGS
from raypp.models import (
    check_fit,
    load_finetuned,
    load_model_config,
    load_tokenizer,
    model_fingerprint,
    resolve_model,
)
from raypp.pruning.pruner import select_layers
from raypp.pruning.schedule import PruningSchedule
from raypp.runs import check_writable
from raypp.steps import StepPlan, plan_steps
from raypp.storage import Location
from raypp.store import Store
from raypp.tasks import Task, default_source, resolve_task

Value = TypeVar("Value")
Section = TypeVar("Section", bound=Settings)
TRAIN_SPLIT = "train"


@dataclass(frozen=True)
class ModelInput:
    """A pretrained or fine-tuned model, found and hashed."""

    folder: Path
    fingerprint: str
    tokenizer: str
    """Fingerprint of its tokenizer: models that share it share features."""


@dataclass(frozen=True)
class Plan:
    """One run, checked and named."""

    experiment: Experiment
    """With every default filled in that depends on something else."""
    task: Task
    raw: RawData
    student: ModelInput
    teacher: ModelInput | None
    """A teacher that is fine-tuned already."""
    teacher_plan: Plan | None
    """A teacher that must be trained first: a dense run of its own."""
    hidden_pairs: LayerPairs
    """Layers of student and teacher that the hidden loss compares; empty without one."""
    micro_batches: int
    steps: StepPlan
    digest: str
    run: Location
    store: Store

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that a run reads: training and evaluation."""
        return (TRAIN_SPLIT, *self.task.eval_splits)

    @contextlib.contextmanager
    def trained_model(self) -> Iterator[ModelInput]:
        """The model that the finished run left, known by what it was made from; on this machine while it is needed."""
        with tempfile.TemporaryDirectory(prefix="raypp-") as scratch:
            folder = (self.run / "model").download(Path(scratch))
            yield ModelInput(folder, self.digest, self.student.tokenizer)

    @property
    def kind(self) -> TaskKind:
        """The task's kind."""
        return kind_of(self.task, self.experiment.data, self.experiment.evaluation)

    def features_key(self, split: str, tokenizer: str) -> str:
        """Content key of a split's features under a tokenizer."""
        return self.kind.features_key(raw_fingerprint=self.raw.fingerprint(split), tokenizer_fingerprint=tokenizer)


class _Problems:
    """Collects what is wrong, so that one message can say it all."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            self.found += error.problems

    def attempt(self, make: Callable[[], Value]) -> Value | None:
        with self.collect():
            return make()
        return None

    def stop(self) -> None:
        if self.found:
            raise ConfigError(self.found)


def make_plan(experiment: Experiment, *, runs: Location | None = None) -> Plan:
    """Checks an experiment against the world and lays its run out.

    Args:
        runs: folder that holds the run; `<storage>/<name>` unless it is a teacher's.

    Raises:
        ConfigError: with every problem found.
    """
    problems = _Problems()
    task = problems.attempt(lambda: resolve_task(experiment.task, experiment.data.source))
    storage = Location.of(experiment.cluster.storage, "cluster.storage")
    store = Location.of(experiment.cluster.store, "cluster.store") if experiment.cluster.store else storage / "store"
    with problems.collect():
        _check_sections(experiment)
    with problems.collect():
        check_writable(storage, "cluster.storage")
    if task is not None and task.train_split is None:
        problems.found.append(
            f"task: {task.name} is only a test set; train another task and `raypp evaluate` it on this"
        )
    if task is None or task.train_split is None:
        problems.stop()
        raise AssertionError("a task that cannot be trained is a problem")
    experiment = _fill_in(experiment, task)
    assert experiment.data.source is not None
    source = experiment.data.source
    raw = problems.attempt(lambda: open_source(task, source, max_train_rows=experiment.data.max_train_rows))
    kind = kind_of(task, experiment.data, experiment.evaluation)
    with problems.collect():
        _check_kind_settings(experiment, kind)
    student = problems.attempt(lambda: _student(experiment, kind))
    teacher = problems.attempt(lambda: _given_teacher(experiment, kind))
    problems.stop()
    assert raw is not None
    assert student is not None

    lengths = _train_lengths(raw, kind, experiment, student, Store(store), problems)
    micro_batches = _micro_batches(experiment)
    steps = problems.attempt(
        lambda: plan_steps(
            experiment.train,
            experiment.evaluation,
            batch_counter(experiment.train, lengths),
            experiment.cluster.checkpoint_every_steps,
        )
    )
    if steps is not None and experiment.pruning is not None:
        pruning = experiment.pruning
        problems.attempt(lambda: PruningSchedule(pruning, steps.total, steps.warmup))
    teacher_plan = problems.attempt(lambda: _teacher_plan(experiment, store))
    teacher_model = teacher_plan.student if teacher_plan else teacher
    hidden_pairs = problems.attempt(lambda: _hidden_pairs(experiment, student, teacher_model))
    problems.stop()
    assert steps is not None
    assert hidden_pairs is not None

    inputs = {split: raw.fingerprint(split) for split in (TRAIN_SPLIT, *task.eval_splits)}
    followed = teacher.fingerprint if teacher else teacher_plan.digest if teacher_plan else None
    digest = identity_hash(
        run_identity(experiment, {**inputs, "student": student.fingerprint}, micro_batches, followed)
    )
    name = experiment.run or run_name(experiment, digest)
    run = (runs or storage / experiment.name) / name
    return Plan(
        experiment=experiment,
        task=task,
        raw=raw,
        student=student,
        teacher=teacher,
        teacher_plan=teacher_plan,
        hidden_pairs=hidden_pairs,
        micro_batches=micro_batches,
        steps=steps,
        digest=digest,
        run=run,
        store=Store(store),
    )


def _check_sections(experiment: Experiment) -> None:
    """What one section says about another."""
    problems = []
    if experiment.sweep is not None:
        problems.append("sweep: an experiment with a sweep is run by `raypp sweep`; for one run, leave sweep out")
    if experiment.distillation is not None and experiment.teacher is None:
        problems.append("distillation: needs a teacher, but teacher is null; give one, or set distillation to null")
    if problems:
        raise ConfigError(problems)


def _check_kind_settings(experiment: Experiment, kind: TaskKind) -> None:
    """Refuses what is set for another kind of task."""
    problems = []
    for name in sorted(KIND_SETTINGS - kind.own_settings):
        section, field = name.split(".")
        if field in getattr(experiment, section).model_fields_set:
            problems.append(
                f"{name}: {kind.task.name} is a {kind.task.kind} task, which has no use for it; leave it out"
            )
    if problems:
        raise ConfigError(problems)


def _fill_in(experiment: Experiment, task: Task) -> Experiment:
    """Fills in the defaults that depend on another section."""
    changes: dict[str, Any] = {}
    if experiment.data.source is None:
        changes["data"] = experiment.data.model_copy(update={"source": default_source(task)})
    if experiment.teacher is not None and experiment.distillation is None:
        changes["distillation"] = DistillationSettings()
    return _with_absolute_paths(experiment.model_copy(update=changes))


def _with_absolute_paths(experiment: Experiment) -> Experiment:
    """Local paths from the root: Ray's workers start in folders of their own."""

    def file(text: str | None) -> str | None:
        return text if text is None or "://" in text else os.path.abspath(text)

    def model(text: str | None) -> str | None:  # what is no folder is the name of a model
        return file(text) if text is not None and Path(text).is_dir() else text

    def changed(section: Section, make: Callable[[str | None], str | None], *names: str) -> Section:
        present = [name for name in names if hasattr(section, name)]
        return section.model_copy(update={name: make(getattr(section, name)) for name in present})

    source = experiment.data.source
    assert source is not None, "filled in before"
    teacher = experiment.teacher
    return experiment.model_copy(
        update={
            "data": experiment.data.model_copy(
                update={"source": changed(source, file, "directory", "train", "dev", "test")}
            ),
            "student": changed(experiment.student, model, "model"),
            "teacher": None if teacher is None else changed(teacher, model, "model"),
            "cluster": changed(experiment.cluster, file, "storage", "store"),
        }
    )


def _micro_batches(experiment: Experiment) -> int:
    chosen = experiment.train.micro_batches
    return max(1, experiment.cluster.max_workers) if chosen == "auto" else int(chosen)


def _model_input(reference: str, revision: str | None, kind: TaskKind, field: str) -> ModelInput:
    folder = resolve_model(reference, revision, field)
    config = load_model_config(folder, field, kind)
    tokenizer = load_tokenizer(folder, field)
    check_fit(config, tokenizer, kind.data.max_length, field)
    return ModelInput(folder, model_fingerprint(folder), tokenizer_fingerprint(tokenizer))


def _student(experiment: Experiment, kind: TaskKind) -> ModelInput:
    settings = experiment.student
    student = _model_input(settings.model, settings.revision, kind, "student.model")
    if experiment.pruning is not None:
        select_layers(meta_model(student.folder, kind), experiment.pruning.layers)
    return student


def meta_model(folder: Path, kind: TaskKind) -> Any:
    """The model of a folder without its weights: enough to see which layers it has."""
    import torch

    with torch.device("meta"):
        return kind.auto_model().from_config(load_model_config(folder, "student.model", kind))


def _given_teacher(experiment: Experiment, kind: TaskKind) -> ModelInput | None:
    settings = experiment.teacher
    if settings is None or settings.model is None or settings.train is not None:
        return None
    teacher = _model_input(settings.model, settings.revision, kind, "teacher.model")
    load_finetuned(teacher.folder, kind, "teacher.model")
    return teacher


def _teacher_plan(experiment: Experiment, store: Location) -> Plan | None:
    settings = experiment.teacher
    if settings is None or settings.train is None:
        return None
    return make_plan(teacher_experiment(experiment, settings), runs=store / "teachers")


def _hidden_pairs(experiment: Experiment, student: ModelInput, teacher: ModelInput | None) -> LayerPairs:
    """The pairs of layers that the hidden loss compares; none without one. Refuses models that cannot be compared."""
    settings = experiment.distillation
    if settings is None or not settings.hidden_weight or teacher is None:
        return ()
    if teacher.tokenizer != student.tokenizer:
        raise ConfigError(
            f"distillation.hidden_weight: {settings.hidden_weight:g} compares states token by token, but the teacher "
            f"in {teacher.folder} has another tokenizer than the student in {student.folder}; allowed: 0, or a teacher "
            "with the student's tokenizer"
        )
    return layer_pairs(
        settings, load_model_config(student.folder, "student.model"), load_model_config(teacher.folder, "teacher.model")
    )


def teacher_experiment(experiment: Experiment, settings: TeacherSettings) -> Experiment:
    """The dense run that makes the teacher."""
    assert settings.train is not None
    model = settings.model or experiment.student.model
    revision = settings.revision if settings.model else experiment.student.revision
    return experiment.model_copy(
        update={
            "name": "teachers",
            "run": None,
            "student": StudentSettings(model=model, revision=revision),
            "teacher": None,
            "pruning": None,
            "distillation": None,
            "train": settings.train,
            "evaluation": EvaluationSettings.model_validate({}),
        }
    )


def _train_lengths(
    raw: RawData, kind: TaskKind, experiment: Experiment, student: ModelInput, store: Store, problems: _Problems
) -> np.ndarray:
    """Tokens of each row of the training split's features; all 0 where batches are cut by rows and each is an example,
    since nobody asks then.

    Reads every split once, so that a bad row is found now; what is in the store was read.
    """
    lengths: dict[str, np.ndarray] = {}
    for split in (TRAIN_SPLIT, *kind.task.eval_splits):
        with problems.collect():
            key = kind.features_key(raw_fingerprint=raw.fingerprint(split), tokenizer_fingerprint=student.tokenizer)
            artifact = store.find("features", key)
            if split != TRAIN_SPLIT or (experiment.train.batch_tokens is None and kind.rows_are_examples):
                rows = artifact.rows if artifact else sum(batch.num_rows for batch in raw.read(split))
                lengths[split] = np.zeros(rows, np.int64)
            elif artifact is not None:
                lengths[split] = Features.from_table(artifact.read_table()).lengths
            else:
                tokenizer = load_tokenizer(student.folder, "student.model")
                tables = [kind.tokenize(batch, tokenizer) for batch in raw.read(split)]
                lengths[split] = Features.from_table(pa.concat_tables(tables)).lengths
    problems.stop()
    return lengths[TRAIN_SPLIT]
