"""From an experiment to everything that must hold before a worker starts: inputs found, read and hashed, settings
that fit.

All problems are collected into one `ConfigError`. Nothing is written here but the probe for a writable storage.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypp.config import (
    DistillationSettings,
    EvaluationSettings,
    Experiment,
    Settings,
    StudentSettings,
    TeacherSettings,
    Texts,
)
from raypp.data.batches import batch_counter
from raypp.data.sources import RawData, open_source
from raypp.data.tokenization import Vocabulary, tokenizer_fingerprint
from raypp.distillation.teacher import Comparison, comparisons
from raypp.dropout import set_dropout
from raypp.errors import ConfigError, Problems
from raypp.freezing import freeze
from raypp.identity import identity_hash, run_identity, run_name
from raypp.kinds import TaskKind, kind_of
from raypp.kinds.kind import KIND_SETTINGS
from raypp.load_config import PATH_FIELDS
from raypp.models import (
    check_fit,
    check_opens,
    load_finetuned,
    load_model_config,
    load_tokenizer,
    model_files,
    model_fingerprint,
    resolve_model,
)
from raypp.pruning.pruner import check_room, select_layers
from raypp.pruning.schedule import PruningSchedule
from raypp.runs import check_writable
from raypp.steps import StepPlan, plan_steps
from raypp.storage import Location
from raypp.store import Artifact, Store
from raypp.student import check_layers, read_config, student_config
from raypp.tasks import Task, default_source, resolve_task
from raypp.training_rows import TRAIN_SPLIT, Lengths, TrainingRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelInput:
    """A pretrained or fine-tuned model, found and hashed."""

    folder: Path
    fingerprint: str
    tokenizer: str
    """Fingerprint of its tokenizer: models that share it share features."""
    vocabulary: Vocabulary
    config: Any
    """The `transformers` configuration that it is trained or asked with."""


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
    comparisons: Mapping[str, Comparison]
    """The terms on both models' hidden states, by name."""
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
    comparisons: Mapping[str, Comparison]
    micro_batches: int
    rows: TrainingRows
    steps: StepPlan | None
    """None where the training split's features must be made first."""
    runs: Location
    """Folder that holds the run."""

    def lay_out(self, prepare: Prepare | None = None) -> Plan:
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
            teacher_plan = self.teacher_draft.lay_out(prepare) if self.teacher_draft else None
        problems.stop()
        assert steps is not None

        inputs = {split: self.raw.fingerprint(split) for split in (TRAIN_SPLIT, *self.task.eval_splits)}
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
            comparisons=self.comparisons,
            micro_batches=self.micro_batches,
            steps=steps,
            digest=digest,
            run=self.runs / (self.experiment.run or run_name(self.experiment, digest)),
            store=store,
        )


def make_plan(experiment: Experiment, prepare: Prepare | None = None) -> Plan:
    """Checks an experiment against the world and lays its run out; `prepare`: as in `Draft.lay_out`.

    Raises:
        ConfigError: with every problem found.
    """
    return draft_plan(experiment).lay_out(prepare)


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
        _check_sections(experiment, task)
    with problems.collect():
        check_writable(storage, "cluster.storage")
    if task is not None and task.train_split is None:
        problems.found.append(
            f"task: {task.name} is only a test set; train another task and `raypp evaluate` it on this"
        )
    if task is None or task.train_split is None:
        problems.stop()
        raise AssertionError("a task that cannot be trained is a problem")
    experiment = problems.attempt(lambda: _fill_in(experiment, task)) or experiment
    problems.stop()
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

    by_tokens = experiment.train.batch_tokens is not None
    rows = TrainingRows(raw, kind, student.folder, student.tokenizer, Store(store), by_tokens)
    lengths = rows.known()
    steps = None if lengths is None else problems.attempt(lambda: _steps(experiment, lengths))
    teacher_draft = problems.attempt(lambda: _teacher_draft(experiment, store))
    teacher_model = teacher_draft.student if teacher_draft else teacher
    compared: Mapping[str, Comparison] | None = {}
    if teacher_model is not None:
        if experiment.distillation is not None:
            settings, configs = experiment.distillation, (student.config, teacher_model.config)
            compared = problems.attempt(lambda: comparisons(settings, *configs))
        with problems.collect():
            _check_tokens(experiment, kind, student, teacher_model)
        if experiment.student.start == "teacher":
            problems.attempt(lambda: _check_start(kind, student, teacher_model, given=teacher is not None))
    problems.stop()
    assert compared is not None
    return Draft(
        experiment=experiment,
        task=task,
        raw=raw,
        student=student,
        teacher=teacher,
        teacher_draft=teacher_draft,
        comparisons=compared,
        micro_batches=_micro_batches(experiment),
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


def _check_sections(experiment: Experiment, task: Task | None) -> None:
    """What one section says about another."""
    problems = []
    if experiment.sweep is not None:
        problems.append("sweep: an experiment with a sweep is run by `raypp sweep`; for one run, leave sweep out")
    if experiment.distillation is not None and experiment.teacher is None:
        problems.append("distillation: needs a teacher, but teacher is null; give one, or set distillation to null")
    if experiment.student.start == "teacher" and experiment.teacher is None:
        problems.append("student.start: teacher needs a teacher, but teacher is null; give one, or start: pretrained")
    cluster, source = experiment.cluster, experiment.data.source
    if 0 < cluster.gpus_per_worker <= 0.5 and cluster.max_workers > 1 and cluster.placement != "strict_spread":
        # NCCL, by which they add up gradients, refuses two on one GPU.
        problems.append(
            f"cluster.gpus_per_worker: workers of one run cannot share a GPU, got {cluster.gpus_per_worker} with "
            f"{cluster.max_workers} workers; allowed: 1 or 0, one worker, or placement: strict_spread"
        )
    if isinstance(source, Texts):
        own = {"dev_files": getattr(source, "dev_files", ()), "dev_split": getattr(source, "dev_split", None)}
        usual = Texts.model_fields["held_out_fraction"].default
        problems += [
            f"data.source.held_out_fraction: nothing is held out with {name}, got {source.held_out_fraction}; leave it "
            "out"
            for name, given in own.items()
            if given and source.held_out_fraction != usual
        ]
    if task is not None and kind_of(task).cuts_texts and experiment.train.batch_tokens is not None:
        problems.append("train.batch_tokens: plain text comes in blocks of much the same size; give batch_size instead")
    if problems:
        raise ConfigError(problems)


def _check_kind_settings(experiment: Experiment, kind: TaskKind) -> None:
    """Refuses what is set for another kind of task."""
    problems = []
    for name in sorted(KIND_SETTINGS - kind.own_settings):
        section, field = name.split(".")
        given = getattr(experiment, section)
        # What a run has recorded is every setting, also those that nobody gave.
        if given is not None and getattr(given, field) != type(given).model_fields[field].get_default():
            problems.append(
                f"{name}: {kind.task.name} is a {kind.task.kind} task, which has no use for it; leave it out"
            )
    threshold = experiment.evaluation.answers.null_threshold
    if kind.task.kind == "question_answering" and threshold and not kind.task.unanswerable:
        problems.append(
            f"evaluation.answers.null_threshold: every question of {kind.task.name} has an answer, so {threshold:g} "
            "means nothing; leave it out"
        )
    if problems:
        raise ConfigError(problems)


def _fill_in(experiment: Experiment, task: Task) -> Experiment:
    """Fills in the defaults that depend on another section."""
    changes: dict[str, Any] = {}
    if experiment.data.source is None:
        changes["data"] = experiment.data.model_copy(update={"source": default_source(task)})
    if isinstance(experiment.student.config, str):
        values = read_config(Path(experiment.student.config))
        changes["student"] = experiment.student.model_copy(update={"config": values})
    if experiment.teacher is not None and experiment.distillation is None:
        changes["distillation"] = DistillationSettings()
    return with_absolute_paths(experiment.model_copy(update=changes))


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """Local paths from the root: Ray's workers start in folders of their own, and what is recorded is read anywhere."""

    def changed(place: str, section: Settings) -> Settings:
        fields = [name for name in PATH_FIELDS if name.rpartition(".")[0] == place]
        values = {name: getattr(section, name.rpartition(".")[2], None) for name in fields}
        made = {name.rpartition(".")[2]: _absolute(name, value) for name, value in values.items() if value is not None}
        return section.model_copy(update=made)

    source, teacher, sweep = experiment.data.source, experiment.teacher, experiment.sweep
    update: dict[str, Any] = {name: changed(name, getattr(experiment, name)) for name in ("student", "cluster")}
    if source is not None:
        update["data"] = experiment.data.model_copy(update={"source": changed("data.source", source)})
    if teacher is not None:
        update["teacher"] = changed("teacher", teacher)
    if sweep is not None:
        space = {
            name: axis.model_copy(update={axis.kind: _absolute(name, axis.values)}) if name in PATH_FIELDS else axis
            for name, axis in sweep.space.items()
        }
        update["sweep"] = sweep.model_copy(update={"space": space})
    return experiment.model_copy(update=update)


def _absolute(field: str, value: Any) -> Any:
    """A value of one of PATH_FIELDS, or several."""
    if isinstance(value, tuple):
        return tuple(_absolute(field, each) for each in value)
    if not isinstance(value, str) or "://" in value:
        return value
    # What is no folder is the name of a model.
    return value if field.endswith(".model") and not Path(value).is_dir() else os.path.abspath(value)


def _micro_batches(experiment: Experiment) -> int:
    chosen = experiment.train.micro_batches
    return max(1, experiment.cluster.max_workers) if chosen == "auto" else int(chosen)


def _model_input(
    reference: str, revision: str | None, kind: TaskKind, field: str, made: StudentSettings | None = None
) -> ModelInput:
    """A model that fits the task; `made`: how the student is made of it."""
    folder = resolve_model(reference, revision, field)
    config = load_model_config(folder, field)
    if made is not None:
        config = student_config(config, made)
    check_opens(config, kind, field)
    tokenizer, fingerprint = _tokenizer(folder, model_files(folder), field)
    check_fit(config, tokenizer, kind.data.max_length, field)
    if problems := kind.problems_with(tokenizer, field):
        raise ConfigError(problems)
    return ModelInput(folder, model_fingerprint(folder), fingerprint, Vocabulary.of(tokenizer), config)


@functools.lru_cache(maxsize=32)
def _tokenizer(folder: Path, files: object, field: str) -> tuple[PreTrainedTokenizerBase, str]:
    """A model's tokenizer and its fingerprint, which the trials of a sweep share as long as its files are the same."""
    tokenizer = load_tokenizer(folder, field)
    return tokenizer, tokenizer_fingerprint(tokenizer)


def _student(experiment: Experiment, kind: TaskKind) -> ModelInput:
    settings = experiment.student
    student = _model_input(settings.model, settings.revision, kind, "student.model", settings)
    model = meta_model(student.config, kind)
    if settings.layers is not None:
        check_layers(meta_model(load_model_config(student.folder, "student.model"), kind), model, settings.layers)
    freeze(model, experiment)
    if experiment.train.dropout is not None:
        set_dropout(model, experiment.train.dropout)
    if experiment.pruning is not None:
        check_room(experiment.pruning, list(select_layers(model, experiment.pruning.layers).values()))
    return student


def meta_model(config: Any, kind: TaskKind) -> Any:
    """The model of a configuration without weights: enough to see which layers it has."""
    import torch

    with torch.device("meta"):
        return kind.auto_model().from_config(config)


def _given_teacher(experiment: Experiment, kind: TaskKind) -> ModelInput | None:
    settings = experiment.teacher
    if settings is None or settings.model is None or settings.train is not None:
        return None
    teacher = _model_input(settings.model, settings.revision, kind, "teacher.model")
    load_finetuned(teacher.folder, kind, "teacher.model")
    return teacher


def _check_start(kind: TaskKind, student: ModelInput, teacher: ModelInput, given: bool) -> None:
    """Refuses a student that cannot take the teacher's weights, or a teacher whose outputs are in another order."""
    # The whole model: chosen layers of it (student.layers) are taken from the whole teacher.
    configs = load_model_config(student.folder, "student.model"), teacher.config
    shapes = [
        {name: list(tensor.shape) for name, tensor in meta_model(config, kind).base_model.state_dict().items()}
        for config in configs
    ]
    if shapes[0] != shapes[1]:
        different = sorted(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
        name = different[0]
        raise ConfigError(
            f"student.start: teacher needs a teacher of the student's shape, but {len(different)} tensors differ: "
            f"{name} is {shapes[0].get(name, 'absent')} in the student and {shapes[1].get(name, 'absent')} in the "
            "teacher; allowed: pretrained"
        )
    if given:  # one that is trained first gets the task's labels in their order
        order = kind.output_order(teacher.config, "teacher.model")
        if order != sorted(order):
            raise ConfigError(
                f"student.start: teacher takes the teacher's head as it is, but its labels "
                f"{list(teacher.config.id2label.values())} are not in the order of {kind.task.name}, "
                f"{list(kind.task.labels)}; allowed: pretrained"
            )


def _teacher_draft(experiment: Experiment, store: Location) -> Draft | None:
    settings = experiment.teacher
    if settings is None or settings.train is None:
        return None
    return draft_plan(teacher_experiment(experiment, settings), runs=store / "teachers")


def _check_tokens(experiment: Experiment, kind: TaskKind, student: ModelInput, teacher: ModelInput) -> None:
    """Refuses a teacher of other tokens than the student's, where the two must read the same."""
    needs = []  # what needs it, and what is allowed instead
    if experiment.student.start == "teacher":
        needs.append(("student.start: teacher takes the teacher's weights", "pretrained"))
    if (settings := experiment.distillation) is not None and (settings.hidden_weight or settings.cosine_weight):
        field = "hidden_weight" if settings.hidden_weight else "cosine_weight"
        compares = f"distillation.{field}: {getattr(settings, field):g} compares states token by token"
        needs.append((compares, "0, or a teacher with the student's tokenizer"))
    if kind.outputs_per_token or not kind.stores_teacher_logits:
        needs.append(("teacher: the student follows it token by token", "one with the student's"))
    if needs and teacher.tokenizer != student.tokenizer:
        raise ConfigError(
            [
                f"{need}, but the teacher in {teacher.folder} has another tokenizer than the student in "
                f"{student.folder}; allowed: {allowed}"
                for need, allowed in needs
            ]
        )
    if not kind.stores_teacher_logits and teacher.config.vocab_size != student.config.vocab_size:
        raise ConfigError(
            f"teacher: the student follows its probabilities of each token, but the one in {teacher.folder} knows "
            f"{teacher.config.vocab_size} tokens, the student in {student.folder} {student.config.vocab_size}; give "
            "one with the student's vocabulary"
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
            "evaluation": EvaluationSettings(answers=experiment.evaluation.answers),
        }
    )
