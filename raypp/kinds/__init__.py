"""What depends on a task's kind, one module a kind: its examples, features, model, losses, metrics and files.

Everything else (plan, preparation, loop, evaluation, sweep) asks a `TaskKind` and knows no kind by name. A new kind is
a module with a subclass, a line in `KINDS` and its tests.
"""

from __future__ import annotations

from raypp.config import DataSettings
from raypp.kinds.classification import Classification
from raypp.kinds.kind import TaskKind
from raypp.kinds.language_modeling import CausalLanguageModeling, MaskedLanguageModeling
from raypp.kinds.multiple_choice import MultipleChoice
from raypp.kinds.regression import Regression
from raypp.tasks import Task

__all__ = ["KINDS", "TaskKind", "kind_of"]

KINDS: dict[str, type[TaskKind]] = {
    "classification": Classification,
    "regression": Regression,
    "multiple_choice": MultipleChoice,
    "masked_language_modeling": MaskedLanguageModeling,
    "causal_language_modeling": CausalLanguageModeling,
}
"""By `Task.kind`."""


def kind_of(task: Task, data: DataSettings | None = None) -> TaskKind:
    """A task's kind, bound to the task and to how its examples are read (None: the defaults)."""
    return KINDS[task.kind](task, DataSettings() if data is None else data)
