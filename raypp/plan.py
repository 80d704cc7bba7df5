"""Plans a run: finds, reads and hashes its inputs, and checks its settings, before any worker starts.

All problems are collected in one `ConfigError`. Nothing is written.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from raypp.config import Experiment
from raypp.data.batches import batch_counter
from raypp.data.raw import RawData
from raypp.data.sources import open_source
from raypp.defaults import fill_in, micro_batches, teacher_experiment
from raypp.distillation.teacher import HiddenStateTerm, hidden_state_terms
from raypp.errors import Problems
from raypp.identity import identity_hash, run_identity, run_name
from raypp.kinds import TaskKind, kind_of
from raypp.models.model_input import ModelInput, find_student, find_teacher
from raypp.plan_checks import check_kind_settings, check_sections, check_start, check_tokens
from raypp.pruning.schedule import PruningSchedule
from raypp.storage import Location
from raypp.store import Artifact, Store
from raypp.tasks import Task, resolve_task
from raypp.training.steps import StepPlan, plan_steps
from raypp.training.training_rows import Lengths, TrainingRows


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """The parts of a run that are known once its experiment is checked; a draft and a plan of the run have them."""

    experiment: Experiment
    """The experiment, with all defaults that depend on other settings filled in, and the commits of hub models."""
    task: Task
    raw: RawData
    student: ModelInput
    teacher: ModelInput | None
    """A teacher that is fine-tuned already."""
    hidden_state_terms: Mapping[str, HiddenStateTerm]
    """The loss terms on both models' hidden states, by name."""
    micro_batches: int


@dataclass(frozen=True, kw_only=True)
class Plan(CheckedRun):
    """A run that is checked and has a name."""

    teacher_plan: Plan | None
    """A teacher that must be trained first: a dense run of its own."""
    steps: StepPlan
    digest: str
    """The hash of the run's identity."""
    run: Location
    """The run's folder."""
    store: Store

    @contextlib.contextmanager
    def trained_model(self) -> Iterator[ModelInput]:
        """The model of the finished run, in a local folder that is deleted afterwards. The run's digest is its
        fingerprint."""
        with tempfile.TemporaryDirectory(prefix="raypp-") as scratch:
            folder = (self.run / "model").download(Path(scratch))
            yield replace(self.student, folder=folder, fingerprint=self.digest)

    @property
    def kind(self) -> TaskKind:
        """The task's kind."""
        return kind_of(self.task, self.experiment.data, self.experiment.evaluation)

    @property
    def teacher_identity(self) -> str | None:
        """The fingerprint of a given teacher, or the digest of the run that trains it; None without a teacher."""
        return _teacher_identity(self.teacher, self.teacher_plan)

    @property
    def trained_teacher(self) -> Location | None:
        """The (future) folder of the model of a teacher that is trained first; None for any other teacher."""
        return self.teacher_plan.run / "model" if self.teacher_plan else None

    def features_key(self, split: str, tokenizer: str) -> str:
        """Content key of the features of a split, for a tokenizer."""
        return self.kind.features_key(raw_fingerprint=self.raw.fingerprint(split), tokenizer_fingerprint=tokenizer)


Prepare = Callable[[RawData, str, TaskKind, ModelInput, Store], Artifact]
"""Makes the features of a split with a model's tokenizer, if the store lacks them."""


@dataclass(frozen=True, kw_only=True)
class Draft(CheckedRun):
    """A run that is checked, except for what depends on its number of steps, which may not be known yet."""

    teacher_draft: Draft | None
    """A teacher that must be trained first."""
    rows: TrainingRows
    steps: StepPlan | None
    """None if the number of steps depends on features that must be made first."""
    runs: Location
    """The folder that will contain the run's folder."""

    def to_plan(self, prepare: Prepare | None = None) -> Plan:
        """The plan of the run.

        Args:
            prepare: makes the features of a split, if the number of batches depends on them. None: the features are
                only counted, in this process.

        Raises:
            ConfigError: lists every problem.
        """
        problems = Problems()
        kind, store = self.rows.kind, self.rows.store

        def make(split: str) -> Artifact:
            assert prepare is not None
            return prepare(self.raw, split, kind, self.student, store)

        def count_steps() -> StepPlan:
            return _steps(self.experiment, self.rows.make(None if prepare is None else make))

        steps = self.steps or problems.attempt(count_steps)
        teacher_plan = None
        with problems.collect():
            teacher_plan = self.teacher_draft.to_plan(prepare) if self.teacher_draft else None
        problems.stop()
        assert steps is not None

        inputs = {split: self.raw.fingerprint(split) for split in self.task.run_splits}
        inputs["student"] = self.student.fingerprint
        teacher = _teacher_identity(self.teacher, teacher_plan)
        digest = identity_hash(run_identity(self.experiment, inputs, self.micro_batches, teacher))
        return Plan(
            **{each.name: getattr(self, each.name) for each in fields(CheckedRun)},
            teacher_plan=teacher_plan,
            steps=steps,
            digest=digest,
            run=self.runs / (self.experiment.run or run_name(self.experiment, digest)),
            store=store,
        )


def _teacher_identity(teacher: ModelInput | None, teacher_plan: Plan | None) -> str | None:
    if teacher is not None:
        return teacher.fingerprint
    return None if teacher_plan is None else teacher_plan.digest


def make_plan(experiment: Experiment, prepare: Prepare | None = None) -> Plan:
    """Checks an experiment with its inputs and plans its run; `prepare`: as in `Draft.to_plan`.

    Raises:
        ConfigError: lists every problem.
    """
    return draft_plan(experiment).to_plan(prepare)


def draft_plan(experiment: Experiment, runs: Location | None = None) -> Draft:
    """Checks an experiment with its inputs.

    Args:
        runs: the folder that will contain the run's folder; None: `<storage>/<name>`.

    Raises:
        ConfigError: lists every problem.
    """
    problems = Problems()
    task = problems.attempt(lambda: resolve_task(experiment.task, experiment.data.source))
    storage = Location.of(experiment.cluster.storage, "cluster.storage")
    store = Location.of(experiment.cluster.store, "cluster.store") if experiment.cluster.store else storage / "store"
    with problems.collect():
        check_sections(experiment, task)
    if task is not None and task.train_split is None:
        problems.found.append(
            f"task: {task.name} is only a test set; train another task and evaluate it on this one with "
            "`raypp evaluate`"
        )
    if task is None or task.train_split is None:
        problems.stop()
        raise AssertionError("a task that cannot be trained is one of the problems")
    experiment = problems.attempt(lambda: fill_in(experiment, task)) or experiment
    problems.stop()
    assert experiment.data.source is not None
    source = experiment.data.source
    kind = kind_of(task, experiment.data, experiment.evaluation)
    raw = problems.attempt(lambda: open_source(kind, source, max_train_rows=experiment.data.max_train_rows))
    with problems.collect():
        check_kind_settings(experiment, kind)
    student = problems.attempt(lambda: find_student(experiment, kind))
    teacher = problems.attempt(lambda: find_teacher(experiment, kind))
    problems.stop()
    assert raw is not None
    assert student is not None
    experiment = _with_commits(experiment, student, teacher)

    by_tokens = experiment.train.batch_tokens is not None
    rows = TrainingRows(raw, kind, student.folder, student.tokenizer, Store(store), by_tokens)
    lengths = rows.known()
    steps = None if lengths is None else problems.attempt(lambda: _steps(experiment, lengths))
    teacher_draft = problems.attempt(lambda: _teacher_draft(experiment, store))
    teacher_model = teacher_draft.student if teacher_draft else teacher
    compared: Mapping[str, HiddenStateTerm] | None = {}
    if teacher_model is not None:
        if experiment.distillation is not None:
            settings, configs = experiment.distillation, (student.config, teacher_model.config)
            compared = problems.attempt(lambda: hidden_state_terms(settings, *configs))
        with problems.collect():
            check_tokens(experiment, kind, student, teacher_model)
        if experiment.student.start == "teacher":
            with problems.collect():
                check_start(kind, student, teacher_model, given=teacher is not None)
    problems.stop()
    assert compared is not None
    return Draft(
        experiment=experiment,
        task=task,
        raw=raw,
        student=student,
        teacher=teacher,
        teacher_draft=teacher_draft,
        hidden_state_terms=compared,
        micro_batches=micro_batches(experiment),
        rows=rows,
        steps=steps,
        runs=runs or storage / experiment.name,
    )


def _with_commits(experiment: Experiment, student: ModelInput, teacher: ModelInput | None) -> Experiment:
    """The experiment with the commits that were found in place of branches and tags, for whatever loads these models
    later: a branch may move meanwhile."""
    pinned: dict[str, Any] = {"student": experiment.student.model_copy(update={"revision": student.revision})}
    if teacher is not None:
        assert experiment.teacher is not None
        pinned["teacher"] = experiment.teacher.model_copy(update={"revision": teacher.revision})
    return experiment.model_copy(update=pinned)


def _steps(experiment: Experiment, lengths: Lengths) -> StepPlan:
    """The run's steps; ConfigError if they are too few for the warmup or the pruning schedule."""
    batches_of = batch_counter(experiment.train, lengths)
    between = experiment.cluster.checkpoint_every_steps
    steps = plan_steps(experiment.train, experiment.evaluation, batches_of, between)
    if experiment.pruning is not None:
        PruningSchedule(experiment.pruning, steps.total, steps.warmup)
    return steps


def _teacher_draft(experiment: Experiment, store: Location) -> Draft | None:
    """The draft of the run that trains the teacher; None if no teacher is trained first."""
    settings = experiment.teacher
    if settings is None or settings.train is None:
        return None
    return draft_plan(teacher_experiment(experiment, settings), runs=store / "teachers")
