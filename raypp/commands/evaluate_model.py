"""`raypp evaluate`: the metrics of a fine-tuned model on any task and data, or a GLUE submission file for an unlabelled
split.

It makes one pass over each split in this process, without Ray and without the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raypp.config import Experiment, OfficialSource
from raypp.data.examples import EvaluationExamples
from raypp.data.raw import RawData
from raypp.data.sources import open_source
from raypp.data.tokenization import Vocabulary
from raypp.errors import ConfigError
from raypp.evaluation.evaluate import predict
from raypp.evaluation.predictions import Predictions
from raypp.kinds import TaskKind, kind_of
from raypp.load_config import load_experiment
from raypp.models.freezing import freeze
from raypp.models.initial_model import initial_model
from raypp.models.loading import (
    load_finetuned,
    load_model_config,
    load_tokenizer,
    max_positions,
    pad_with,
    resolve_model,
)
from raypp.models.opening import NamedModel
from raypp.pruning.build import build_pruning
from raypp.storage import Location
from raypp.tasks import Task, default_source, find_task, resolve_task
from raypp.training.checkpoint import Checkpoints, restore
from raypp.training.worker import Worker

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Subject:
    """The data to evaluate on."""

    kind: TaskKind
    """The kind of the task."""
    raw: RawData
    splits: tuple[str, ...]


def evaluate_command(
    model: str,
    *,
    task: str | None = None,
    data: str | None = None,
    experiment_file: str | None = None,
    split: str = "dev",
    out: str | Path = ".",
    all_checkpoints: bool = False,
) -> dict[str, dict[str, float]]:
    """Evaluates a model and prints its metrics; returns them by split (for checkpoints, by step and split).

    Args:
        model: Hugging Face folder, run folder, hub name or package:….
        task: name of a built-in task; None: the task of the run or of the experiment file.
        data: folder of the official files.
        experiment_file: an experiment from which to take task and data.
        split: the name of a split; `dev` and `test` are all dev or test splits of the task.
        out: local folder for predictions (labelled splits) and submission files (unlabelled splits).
        all_checkpoints: whether to evaluate each checkpoint of a run, for metrics only.

    Raises:
        ConfigError: the model, task, data or split does not exist, or the labels do not match.
    """
    if "://" in str(out):
        raise ConfigError(f"--out: must be a local folder, got {str(out)!r}")
    if all_checkpoints and Path(out) != Path():
        raise ConfigError(
            f"--out: has no effect with --all-checkpoints, which writes no files; got {out}; leave it out"
        )
    named = NamedModel.of(model, "MODEL")
    subject = _subject(named.experiment, task, data, experiment_file, split)
    found = _evaluate_checkpoints(named, subject) if all_checkpoints else _evaluate_model(named, subject, Path(out))
    for name, metrics in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    return found


def _evaluate_model(named: NamedModel, subject: Subject, written_to: Path) -> dict[str, dict[str, float]]:
    """The model's metrics on the labelled splits; writes its predictions for all splits."""
    found: dict[str, dict[str, float]] = {}
    with named.opened() as folder:
        tokenizer = load_tokenizer(folder, "MODEL")
        kind = _within_positions(subject.kind, folder)
        if problems := kind.problems_with(tokenizer, "MODEL"):
            raise ConfigError(problems)
        features = {name: _features(subject, name, kind, tokenizer) for name in subject.splits}
        fine_tuned = load_finetuned(folder, kind, "MODEL").to(Worker().device)
        written_to.mkdir(parents=True, exist_ok=True)
        pad_id = Vocabulary.of(tokenizer).pad_id
        pad_with(fine_tuned, kind, pad_id)
        for name, split in features.items():
            predictions = _predictions(fine_tuned, split, kind, pad_id)
            if predictions.labelled.any():
                found[name] = kind.metrics(predictions)
            files = kind.write(name, predictions, written_to)
            print(f"{name}: {len(predictions.rows)} predictions in {', '.join(map(str, files))}")
    return found


def _subject(
    own: Experiment | None, task: str | None, data: str | None, experiment_file: str | None, split: str
) -> Subject:
    """The data on which to evaluate a model; `own` is the experiment of its run."""
    described = load_experiment(experiment_file) if experiment_file else own
    if task is None and described is None:
        raise ConfigError("--task: is missing; only a run folder records the task that a model was trained for")
    wanted = task if task is not None else described.task  # type: ignore[union-attr]
    source: Any = None if described is None else described.data.source
    if data is not None:
        source = OfficialSource(kind="official", directory=data)
    elif (
        described is not None and task is not None and find_task(task).name != resolve_task(described.task, source).name
    ):
        source = None  # the described source is that of another task
    found = resolve_task(wanted, source)
    kind = kind_of(found, described.data, described.evaluation) if described is not None else kind_of(found)
    splits = _splits(found, split)
    raw = open_source(kind, source or default_source(found), required=splits)
    return Subject(kind, raw, splits)


def _splits(task: Task, split: str) -> tuple[str, ...]:
    """The splits of a task that are meant by a name."""
    splits = {"dev": task.eval_splits, "test": task.test_splits}.get(split) or (split,)
    if unknown := [name for name in splits if name not in task.splits]:
        raise ConfigError(f"--split: {task.name} has no split {unknown[0]!r}; allowed: {', '.join(task.splits)}")
    return splits


def _within_positions(kind: TaskKind, folder: Path) -> TaskKind:
    """The kind with its maximum length limited to the positions of the model in the folder."""
    longest = min(kind.data.max_length, max_positions(load_model_config(folder, "MODEL", kind)))
    return replace(kind, data=kind.data.model_copy(update={"max_length": longest}))


def _features(subject: Subject, split: str, kind: TaskKind, tokenizer: PreTrainedTokenizerBase) -> EvaluationExamples:
    tables = [kind.tokenize(batch, tokenizer) for batch in subject.raw.read(split)]
    return kind.evaluation_data(pa.concat_tables(tables), Vocabulary.of(tokenizer))


def _predictions(model: PreTrainedModel, split: EvaluationExamples, kind: TaskKind, pad_id: int) -> Predictions:
    """A model's predictions, with its outputs in the task's order."""
    order = kind.output_order(model.config, "MODEL")
    predictions = predict(model, split, kind, pad_id, Worker())
    return replace(predictions, logits=predictions.logits[..., order])


def _evaluate_checkpoints(named: NamedModel, subject: Subject) -> dict[str, dict[str, float]]:
    """The metrics of every complete checkpoint of a run, by step and split."""
    experiment = named.experiment
    if experiment is None:
        raise ConfigError("--all-checkpoints: only a run has checkpoints, but MODEL is not a run folder")
    trained_for = resolve_task(experiment.task, experiment.data.source)
    own, wanted = kind_of(trained_for, experiment.data).auto_class, subject.kind.auto_class
    if own != wanted:
        raise ConfigError(
            f"--task: {subject.kind.task.name} needs an {wanted}, but the run trained an {own}, for {trained_for.name}"
        )
    folder = resolve_model(experiment.student.model, experiment.student.revision, "student.model")
    tokenizer = load_tokenizer(folder, "student.model")
    kind = _within_positions(subject.kind, folder)
    features = {name: _features(subject, name, kind, tokenizer) for name in subject.splits}
    if unlabelled := [name for name, split in features.items() if not split.labelled.any()]:
        raise ConfigError(f"--split: {unlabelled[0]} has no labels, so there are no metrics; choose a labelled split")
    found: dict[str, dict[str, float]] = {}
    pad_id = Vocabulary.of(tokenizer).pad_id
    for step, model in _checkpoints(named.location, experiment):
        pad_with(model, kind, pad_id)
        for name, split in features.items():
            found[f"step {step} {name}"] = kind.metrics(_predictions(model, split, kind, pad_id))
    if not found:
        raise ConfigError(f"--all-checkpoints: {named.location / 'checkpoints'} has no usable checkpoint")
    return found


def _checkpoints(run: Location, experiment: Experiment) -> Iterator[tuple[int, PreTrainedModel]]:
    """Step and model of every complete checkpoint of a run, with the masks of its step."""
    load_initial = initial_model(experiment)
    checkpoints = Checkpoints(run / "checkpoints", experiment.cluster.keep_checkpoints)
    for step in checkpoints.steps():
        checkpoint = checkpoints.read(step)
        if checkpoint is None:
            continue
        # Load the initial model again each time: a checkpoint lacks the frozen parameters, and pruning has modified the
        # previous model.
        model = load_initial()
        freeze(model, experiment)
        total, warmup = checkpoint.state["total_steps"], checkpoint.state["warmup_steps"]
        pruner, schedule = build_pruning(model, experiment.pruning, total, warmup, experiment.train.seed)
        restore(checkpoint, model)
        pruner.refresh(schedule.at(step))
        yield step, model.to(Worker().device)
