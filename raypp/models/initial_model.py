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
from raypp.storage import Location
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
    return partial(initial_student, experiment, kind, folder, _teacher(experiment))


def _teacher(experiment: Experiment) -> Location | None:
    """The model folder of the teacher that the run started from; None if it started from the pretrained model."""
    if experiment.student.start != "teacher":
        return None
    plan = make_plan(experiment)
    if plan.teacher is not None:
        return Location.of(plan.teacher.folder)
    assert plan.trained_teacher is not None, "a run that starts from its teacher has one"
    if not (plan.trained_teacher / "config.json").is_file():
        raise ConfigError(
            f"student.start: the teacher that the run started from is not at {plan.trained_teacher}; `raypp prepare`, "
            "in the version of raypp that made the run, trains it again"
        )
    return plan.trained_teacher
