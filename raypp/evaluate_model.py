"""`raypp evaluate`: the metrics of any fine-tuned model on any task and data; for an unlabelled split, a GLUE
submission file.

It runs in this process, without Ray and without the store: one pass over one split.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raypp.checkpoint import Checkpoints, restore
from raypp.config import Experiment, OfficialSource
from raypp.data.features import Features, tokenize_batch
from raypp.data.sources import RawData, open_source
from raypp.errors import ConfigError
from raypp.evaluate import Predictions, predict, predictions_table, score
from raypp.load_config import load_experiment
from raypp.metrics import submission_rows
from raypp.models import (
    embeddings_of,
    freezes_embeddings,
    label_permutation,
    load_classifier,
    load_finetuned,
    load_model_config,
    load_tokenizer,
    max_positions,
    resolve_model,
)
from raypp.pruning.dense import build_pruning
from raypp.runs import run_experiment
from raypp.storage import Location
from raypp.tasks import Task, default_source, resolve_task
from raypp.worker import Worker

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MAX_LENGTH = 128


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and on what."""

    task: Task
    raw: RawData
    splits: tuple[str, ...]
    max_length: int
    experiment: Experiment | None
    """That of the run, if the model is one."""
    run: Location | None


def evaluate_command(
    model: str,
    *,
    task: str | None = None,
    data: str | None = None,
    experiment_file: str | None = None,
    split: str = "dev",
    out: Path = Path("."),
    all_checkpoints: bool = False,
) -> dict[str, dict[str, float]]:
    """Evaluates a model and prints what it finds; returns the metrics by split (by step and split for checkpoints).

    Args:
        model: Hugging Face folder, run folder, hub name or package:….
        task: name in the task table; a run knows its own.
        data: folder of the official files.
        experiment_file: an experiment whose task and data to use instead.
        split: a split's name; `dev` and `test` stand for all of that kind that the task has.
        out: folder for predictions (labelled splits) and submission files (unlabelled ones).

    Raises:
        ConfigError: no such model, task, data or split, or labels that do not match.
    """
    subject = _subject(model, task, data, experiment_file, split)
    splits = subject.splits
    found: dict[str, dict[str, float]] = {}
    if all_checkpoints:
        found = _evaluate_checkpoints(subject)
        _print(found)
        return found
    with _folder(model, subject) as folder:
        tokenizer = load_tokenizer(folder, "MODEL")
        features = {name: _features(subject, name, tokenizer, folder) for name in splits}
        classifier, permutation = _classifier(folder, subject.task)
        out.mkdir(parents=True, exist_ok=True)
        for name in splits:
            predictions = predict(classifier, features[name], tokenizer.pad_token_id, Worker())
            predictions = replace(predictions, logits=predictions.logits[:, permutation])
            if predictions.labelled.any():
                found[name] = score(subject.task, predictions)
            _write(subject.task, name, predictions, out)
    _print(found)
    return found


def _subject(model: str, task: str | None, data: str | None, experiment_file: str | None, split: str) -> Subject:
    location = Location.of(model, "MODEL") if "://" in model or Path(model).exists() else None
    run = location if location is not None and (location / "experiment.yaml").is_file() else None
    own = run_experiment(run) if run is not None else None
    described = load_experiment(experiment_file) if experiment_file else own
    if task is None and described is None:
        raise ConfigError("--task: is missing; a model folder does not say what it was trained for (a run folder does)")
    wanted = task if task is not None else described.task  # type: ignore[union-attr]
    source: Any = described.data.source if described is not None and task is None else None
    if data is not None:
        source = OfficialSource(kind="official", directory=data)
    found = resolve_task(wanted, source)
    max_length = described.data.max_length if described is not None else DEFAULT_MAX_LENGTH
    splits = _splits(found, split)
    raw = open_source(found, source or default_source(found), required=splits)
    return Subject(found, raw, splits, max_length, own, run)


def _splits(task: Task, split: str) -> tuple[str, ...]:
    """The splits that a name stands for."""
    splits = {"dev": task.eval_splits, "test": task.test_splits}.get(split) or (split,)
    if unknown := [name for name in splits if name not in task.splits]:
        raise ConfigError(f"--split: {task.name} has no split {unknown[0]!r}; allowed: {', '.join(task.splits)}")
    return splits


@contextlib.contextmanager
def _folder(model: str, subject: Subject) -> Iterator[Path]:
    if subject.run is None:
        yield resolve_model(model, None, "MODEL")
        return
    if not (subject.run / "model" / "config.json").is_file():
        raise ConfigError(f"MODEL: the run {model} has no model yet; `raypp train` finishes it")
    with tempfile.TemporaryDirectory(prefix="raypp-") as scratch:
        yield (subject.run / "model").download(Path(scratch))


def _features(subject: Subject, split: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Features:
    longest = min(subject.max_length, max_positions(load_model_config(folder, "MODEL")))
    tables = [tokenize_batch(batch, tokenizer, subject.task, longest) for batch in subject.raw.read(split)]
    return Features.from_table(pa.concat_tables(tables))


def _classifier(folder: Path, task: Task) -> tuple[PreTrainedModel, list[int]]:
    """A fine-tuned model, and where the task's labels stand among its outputs."""
    permutation = label_permutation(load_model_config(folder, "MODEL"), task, "MODEL")
    return load_finetuned(folder, permutation, "MODEL").to(Worker().device), permutation


def _evaluate_checkpoints(subject: Subject) -> dict[str, dict[str, float]]:
    """Metrics by step and split, of every whole checkpoint of a run."""
    if subject.run is None or subject.experiment is None:
        raise ConfigError("--all-checkpoints: only a run has checkpoints, and MODEL is no run folder")
    student = subject.experiment.student
    folder = resolve_model(student.model, student.revision, "student.model")
    tokenizer = load_tokenizer(folder, "student.model")
    features = {name: _features(subject, name, tokenizer, folder) for name in subject.splits}
    if unlabelled := [name for name, split in features.items() if not split.labelled.any()]:
        raise ConfigError(f"--split: {unlabelled[0]} has no labels, so there are no metrics; choose a labelled split")
    found: dict[str, dict[str, float]] = {}
    for step, classifier in _checkpoints(subject.run, subject.experiment, subject.task, folder):
        for name, split in features.items():
            predictions = predict(classifier, split, tokenizer.pad_token_id, Worker())
            found[f"step {step} {name}"] = score(subject.task, predictions)
    if not found:
        raise ConfigError(f"--all-checkpoints: there is none in {subject.run / 'checkpoints'} that can be used")
    return found


def _checkpoints(
    run: Location, experiment: Experiment, task: Task, folder: Path
) -> Iterator[tuple[int, PreTrainedModel]]:
    """Every whole checkpoint of a run, with the masks it had at its step."""
    checkpoints = Checkpoints(run / "checkpoints", experiment.cluster.keep_checkpoints)
    for step in checkpoints.steps():
        checkpoint = checkpoints.read(step)
        if checkpoint is None:
            continue
        model = load_classifier(folder, task, experiment.train.seed)
        if freezes_embeddings(experiment):
            embeddings_of(model).requires_grad_(False)
        total, warmup = checkpoint.state["total_steps"], checkpoint.state["warmup_steps"]
        pruner, schedule = build_pruning(model, experiment.pruning, total, warmup, experiment.train.seed)
        restore(checkpoint, model)
        pruner.refresh(schedule.at(step))
        yield step, model.to(Worker().device)


def _print(found: Mapping[str, Mapping[str, float]]) -> None:
    for name, metrics in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))


def _write(task: Task, split: str, predictions: Predictions, out: Path) -> None:
    if predictions.labelled.any():
        path = out / f"predictions-{split}.tsv"
        path.write_text(predictions_table(task, {split: predictions}), encoding="utf-8")
    else:
        path = out / task.submission_file(split)
        logits = predictions.logits[:, 0] if task.kind == "regression" else predictions.logits
        path.write_text("".join(submission_rows(task, logits)), encoding="utf-8")
    print(f"{split}: {len(predictions.rows)} predictions in {path}")
