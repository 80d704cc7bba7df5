"""What depends on a task's kind, one module a kind: its examples, features, model, losses, metrics and files.

Everything else (plan, preparation, loop, evaluation, sweep) asks a `TaskKind` and knows no kind by name. A new kind is
a module with a subclass, a line in `KINDS` and its tests.
"""

from __future__ import annotations

from raypp.config import DataSettings, EvaluationSettings
from raypp.kinds.classification import Classification
from raypp.kinds.kind import TaskKind
from raypp.kinds.language_modeling import CausalLanguageModeling, MaskedLanguageModeling
from raypp.kinds.multiple_choice import MultipleChoice
from raypp.kinds.question_answering import QuestionAnswering
from raypp.kinds.regression import Regression
from raypp.tasks import Task

__all__ = ["KINDS", "TaskKind", "kind_of"]

KINDS: dict[str, type[TaskKind]] = {
    "classification": Classification,
    "regression": Regression,
    "multiple_choice": MultipleChoice,
    "question_answering": QuestionAnswering,
    "masked_language_modeling": MaskedLanguageModeling,
    "causal_language_modeling": CausalLanguageModeling,
}
"""By `Task.kind`."""


def kind_of(task: Task, data: DataSettings | None = None, evaluation: EvaluationSettings | None = None) -> TaskKind:
    """A task's kind, bound to the task and to how its examples and predictions are read (None: by the defaults)."""
    kind = KINDS[task.kind]
    return kind(
        task,
        data=data or DataSettings(max_length=kind.usual_max_length),
        evaluation=evaluation or EvaluationSettings.model_validate({}),
    )
