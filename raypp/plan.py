"""From an experiment to everything that must hold before a worker starts: inputs found, read and hashed, settings
that fit.

All problems are collected into one `ConfigError`. Nothing is written here.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from raypp.config import Experiment
from raypp.data.batches import batch_counter
from raypp.data.sources import RawData, open_source
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
    hidden_state_terms: Mapping[str, HiddenStateTerm]
    """The terms on both models' hidden states, by name."""
    micro_batches: int
    steps: StepPlan
    digest: str
    run: Location
    store: Store

    @contextlib.contextmanager
    def trained_model(self) -> Iterator[ModelInput]:
        """The model that the finished run left, known by what it was made from; on this machine while it is needed."""
        with tempfile.TemporaryDirectory(prefix="raypp-") as scratch:
            folder = (self.run / "model").download(Path(scratch))
            yield replace(self.student, folder=folder, fingerprint=self.digest)

    @property
    def kind(self) -> TaskKind:
        """The task's kind."""
        return kind_of(self.task, self.experiment.data, self.experiment.evaluation)

    @property
    def trained_teacher(self) -> Location | None:
        """Where the model of a teacher that is trained first is, or will be; None for any other."""
        return self.teacher_plan.run / "model" if self.teacher_plan else None

    def features_key(self, split: str, tokenizer: str) -> str:
        """Content key of a split's features under a tokenizer."""
        return self.kind.features_key(raw_fingerprint=self.raw.fingerprint(split), tokenizer_fingerprint=tokenizer)


Prepare = Callable[[RawData, str, TaskKind, ModelInput, Store], Artifact]
"""Makes the features of a split, under a model's tokenizer, where the store lacks them."""


@dataclass(frozen=True)
class Draft:
    """One run, of which everything is checked but what follows from a number of batches that is not known yet."""

    experiment: Experiment
    """With every default filled in that depends on something else."""
    task: Task
    raw: RawData
    student: ModelInput
    teacher: ModelInput | None
    teacher_draft: Draft | None
    hidden_state_terms: Mapping[str, HiddenStateTerm]
    micro_batches: int
    rows: TrainingRows
    steps: StepPlan | None
    """None where the training split's features must be made first."""
    runs: Location
    """Folder that holds the run."""

    def to_plan(self, prepare: Prepare | None = None) -> Plan:
        """The plan of the run.

        Args:
            prepare: makes the features of a split, where the number of batches follows from them; None: they are only
                counted, in this process.

        Raises:
            ConfigError: with every problem found.
        """
        problems = Problems()
        kind, store = self.rows.kind, self.rows.store

        def make(split: str) -> Artifact:
            assert prepare is not None
            return prepare(self.raw, split, kind, self.student, store)

        def lay_steps() -> StepPlan:
            return _steps(self.experiment, self.rows.make(None if prepare is None else make))

        steps = self.steps or problems.attempt(lay_steps)
        teacher_plan = None
        with problems.collect():
            teacher_plan = self.teacher_draft.to_plan(prepare) if self.teacher_draft else None
        problems.stop()
        assert steps is not None

        inputs = {split: self.raw.fingerprint(split) for split in self.task.run_splits}
        followed = self.teacher.fingerprint if self.teacher else teacher_plan.digest if teacher_plan else None
        inputs["student"] = self.student.fingerprint
        digest = identity_hash(run_identity(self.experiment, inputs, self.micro_batches, followed))
        return Plan(
            experiment=self.experiment,
            task=self.task,
            raw=self.raw,
            student=self.student,
            teacher=self.teacher,
            teacher_plan=teacher_plan,
            hidden_state_terms=self.hidden_state_terms,
            micro_batches=self.micro_batches,
            steps=steps,
            digest=digest,
            run=self.runs / (self.experiment.run or run_name(self.experiment, digest)),
            store=store,
        )


def make_plan(experiment: Experiment, prepare: Prepare | None = None) -> Plan:
    """Checks an experiment against the world and lays its run out; `prepare`: as in `Draft.to_plan`.

    Raises:
        ConfigError: with every problem found.
    """
    return draft_plan(experiment).to_plan(prepare)


def draft_plan(experiment: Experiment, runs: Location | None = None) -> Draft:
    """Checks an experiment against the world.

    Args:
        runs: folder that holds the run; `<storage>/<name>` unless it is a teacher's.

    Raises:
        ConfigError: with every problem found.
    """
    problems = Problems()
    task = problems.attempt(lambda: resolve_task(experiment.task, experiment.data.source))
    storage = Location.of(experiment.cluster.storage, "cluster.storage")
    store = Location.of(experiment.cluster.store, "cluster.store") if experiment.cluster.store else storage / "store"
    with problems.collect():
        check_sections(experiment, task)
    if task is not None and task.train_split is None:
        problems.found.append(
            f"task: {task.name} is only a test set; train another task and `raypp evaluate` it on this"
        )
    if task is None or task.train_split is None:
        problems.stop()
        raise AssertionError("a task that cannot be trained is a problem")
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


def _steps(experiment: Experiment, lengths: Lengths) -> StepPlan:
    """The run's steps; ConfigError where warmup or the pruning's schedule do not fit them."""
    batches_of = batch_counter(experiment.train, lengths)
    between = experiment.cluster.checkpoint_every_steps
    steps = plan_steps(experiment.train, experiment.evaluation, batches_of, between)
    if experiment.pruning is not None:
        PruningSchedule(experiment.pruning, steps.total, steps.warmup)
    return steps


def _teacher_draft(experiment: Experiment, store: Location) -> Draft | None:
    """The run that makes the teacher, where one is trained first."""
    settings = experiment.teacher
    if settings is None or settings.train is None:
        return None
    return draft_plan(teacher_experiment(experiment, settings), runs=store / "teachers")
