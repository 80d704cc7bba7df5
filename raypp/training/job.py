"""A run that is ready to train, as the command sends it to its workers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raypp.config import Experiment
from raypp.data.tokenization import Vocabulary
from raypp.distillation.teacher import HiddenStateTerm
from raypp.kinds import TaskKind, kind_of
from raypp.storage import Location
from raypp.store import Artifact
from raypp.tasks import Task


@dataclass(frozen=True)
class Job:
    """A run that is ready to train: everything is resolved, checked and in the store."""

    experiment: Experiment
    task: Task
    run: Location
    """The run's folder."""
    phase: str
    """Its name in the display: student or teacher."""
    micro_batches: int
    """Shares of a global batch."""
    vocabulary: Vocabulary
    """The student's."""
    student_fingerprint: str
    """`model_fingerprint` of `student.model` as the command found it; every node must have the same files."""
    train: Artifact
    """Features of the training split."""
    evaluation: Mapping[str, Artifact]
    """Features of every evaluation split."""
    teacher_logits: Artifact | None = None
    """Teacher logits of the training split, joined by row; None if no loss needs them or the teacher runs."""
    hidden_state_terms: Mapping[str, HiddenStateTerm] = field(default_factory=dict)
    """The loss terms on both models' hidden states, by name."""
    teacher_fingerprint: str | None = None
    """The same of a given teacher, `teacher.model`; None without one."""
    trained_teacher: Location | None = None
    """Model folder of a teacher that was trained first; a given teacher is found by the settings, like the student."""
    group: str | None = None
    """Its group in W&B; None for the experiment's name."""
    started_at: float = field(default_factory=time.time)
    """When the command began, or when a sweep set up this trial, in seconds of Unix time."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Further content of the result: versions, teacher metrics, content keys."""

    @property
    def kind(self) -> TaskKind:
        """The task's kind."""
        return kind_of(self.task, self.experiment.data, self.experiment.evaluation)

    @property
    def needs_online_logits(self) -> bool:
        """Whether a loss needs the teacher's logits, and the store does not have them."""
        settings = self.experiment.distillation
        return settings is not None and settings.uses_logits and not self.kind.stores_teacher_logits

    @property
    def teacher_runs(self) -> bool:
        """Whether the teacher runs next to the student, for a loss."""
        return bool(self.hidden_state_terms) or self.needs_online_logits
