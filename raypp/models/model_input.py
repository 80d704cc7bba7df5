"""The models that a run reads: found, hashed and checked against its task and its settings."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypp.config import Experiment, StudentSettings
from raypp.data.tokenization import Vocabulary, tokenizer_fingerprint
from raypp.errors import ConfigError
from raypp.models.dropout import set_dropout
from raypp.models.freezing import freeze
from raypp.models.loading import (
    check_fit,
    check_opens,
    hub_commit,
    load_finetuned,
    load_model_config,
    load_tokenizer,
    model_file_stats,
    model_fingerprint,
    resolve_model,
)
from raypp.models.student import check_layers, student_config
from raypp.pruning.linear import select_layers
from raypp.pruning.pruner import check_density_floor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raypp.kinds import TaskKind


@dataclass(frozen=True)
class ModelInput:
    """A pretrained or fine-tuned model, found and hashed."""

    folder: Path
    revision: str | None
    """The commit of a model of the hub, which stays the same when its branch moves; None for a local model."""
    fingerprint: str
    tokenizer: str
    """Fingerprint of its tokenizer: models with the same tokenizer share features."""
    vocabulary: Vocabulary
    config: Any
    """Its `transformers` configuration. That of a student is the one that is trained."""


def find_student(experiment: Experiment, kind: TaskKind) -> ModelInput:
    """The student, checked against `student`, `train` and `pruning`.

    Raises:
        ConfigError: it cannot be found, or it does not fit the task or the settings.
    """
    settings = experiment.student
    student = _find_model(settings.model, settings.revision, kind, "student.model", settings)
    model = meta_model(student.config, kind)
    if settings.layers is not None:
        check_layers(meta_model(load_model_config(student.folder, "student.model"), kind), model, settings.layers)
    freeze(model, experiment)
    if experiment.train.dropout is not None:
        set_dropout(model, experiment.train.dropout)
    if experiment.pruning is not None:
        check_density_floor(experiment.pruning, list(select_layers(model, experiment.pruning.layers).values()))
    return student


def find_teacher(experiment: Experiment, kind: TaskKind) -> ModelInput | None:
    """The teacher if it is already fine-tuned; None if the experiment has none, or trains it first.

    Raises:
        ConfigError: it cannot be found, or it is not fine-tuned for the task.
    """
    settings = experiment.teacher
    if settings is None or settings.model is None or settings.train is not None:
        return None
    teacher = _find_model(settings.model, settings.revision, kind, "teacher.model")
    load_finetuned(teacher.folder, kind, "teacher.model")
    return teacher


def meta_model(config: Any, kind: TaskKind) -> Any:
    """A model with this configuration on the meta device: it has no weights, but shows the layers."""
    import torch

    with torch.device("meta"):
        return kind.auto_model().from_config(config, trust_remote_code=False)


def _find_model(
    reference: str, revision: str | None, kind: TaskKind, field: str, made: StudentSettings | None = None
) -> ModelInput:
    """A model that fits the task.

    Args:
        made: how a student is made from the model; None for a teacher.
    """
    folder = resolve_model(reference, revision, field)
    config = load_model_config(folder, field)
    if made is not None:
        config = student_config(config, made)
    check_opens(config, kind, field)
    tokenizer, fingerprint = _tokenizer(folder, model_file_stats(folder), field)
    check_fit(config, tokenizer, kind.data.max_length, field)
    if problems := kind.problems_with(tokenizer, field):
        raise ConfigError(problems)
    commit, vocabulary = hub_commit(reference, folder), Vocabulary.of(tokenizer)
    return ModelInput(folder, commit, model_fingerprint(folder), fingerprint, vocabulary, config)


@functools.lru_cache(maxsize=32)
def _tokenizer(folder: Path, files: object, field: str) -> tuple[PreTrainedTokenizerBase, str]:
    """A model's tokenizer and its fingerprint. Cached for the trials of a sweep while `files`, the files' stats, are
    the same."""
    tokenizer = load_tokenizer(folder, field)
    return tokenizer, tokenizer_fingerprint(tokenizer)
