"""The model that a run started from, found again from the run's settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from raypp.config import Experiment
from raypp.errors import ConfigError
from raypp.kinds import kind_of
from raypp.models.loading import resolve_model
from raypp.models.student import initial_student
from raypp.plan import make_plan
from raypp.tasks import resolve_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def initial_model(experiment: Experiment) -> Callable[[], PreTrainedModel]:
    """A function that loads the model that a run with these settings started from; each call loads a new one.

    Raises:
        ConfigError: the model is no longer there.
    """
    student = experiment.student
    kind = kind_of(resolve_task(experiment.task, experiment.data.source), experiment.data, experiment.evaluation)
    folder = resolve_model(student.model, student.revision, "student.model")
    trained_teacher = make_plan(experiment).trained_teacher if student.start == "teacher" else None
    if trained_teacher is not None and not (trained_teacher / "config.json").is_file():
        raise ConfigError(
            f"student.start: the teacher that the run started from is not at {trained_teacher}; `raypp prepare`, in "
            "the version of raypp that made the run, trains it again"
        )
    return partial(initial_student, experiment, kind, folder, trained_teacher)
