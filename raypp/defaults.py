"""Fills in the settings of an experiment whose defaults depend on other settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from raypp.config import (
    DistillationSettings,
    EvaluationSettings,
    Experiment,
    Settings,
    StudentSettings,
    TeacherSettings,
)
from raypp.config.fields import PATH_FIELDS
from raypp.load_config import expanded
from raypp.models.student import read_config
from raypp.tasks import Task, default_source


def fill_in(experiment: Experiment, task: Task) -> Experiment:
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
    """Makes local paths absolute, because Ray's workers start in other folders and the recorded experiment is read from
    anywhere."""

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
        variants = sweep.variants and tuple(
            {name: _absolute(name, value) if name in PATH_FIELDS else value for name, value in variant.items()}
            for variant in sweep.variants
        )
        update["sweep"] = sweep.model_copy(update={"space": space, "variants": variants})
    return experiment.model_copy(update=update)


def _absolute(field: str, value: Any) -> Any:
    """A value of one of PATH_FIELDS, or several values."""
    if isinstance(value, tuple | list):
        return type(value)(_absolute(field, each) for each in value)
    if not isinstance(value, str):
        return value
    value = expanded(value)  # those of a sweep are otherwise expanded in its trials
    if "://" in value:
        return value
    # A model that is not a folder is a hub name or `package:…`.
    return value if field.endswith(".model") and not Path(value).is_dir() else os.path.abspath(value)


def micro_batches(experiment: Experiment) -> int:
    """Number of micro-batches of a global batch; each is one forward and backward pass."""
    chosen = experiment.train.micro_batches
    return max(1, experiment.cluster.max_workers) if chosen == "auto" else int(chosen)


def teacher_experiment(experiment: Experiment, settings: TeacherSettings) -> Experiment:
    """The experiment that trains the teacher: a dense run."""
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
