"""What depends on a task's kind: its examples, features, model, losses, metrics and files. Each kind is one module.

All other code (plan, preparation, training loop, evaluation, sweep) calls the methods of `TaskKind` and names no kind.
A new kind is a module with a subclass, a line in `KINDS`, and tests.
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
"""The kinds by name (`Task.kind`)."""


def kind_of(task: Task, data: DataSettings | None = None, evaluation: EvaluationSettings | None = None) -> TaskKind:
    """The kind of a task.

    Args:
        data: how examples are read; None for the defaults.
        evaluation: how predictions are read; None for the defaults.
    """
    kind = KINDS[task.kind]
    return kind(
        task,
        data=data or DataSettings(max_length=kind.usual_max_length),
        evaluation=evaluation or EvaluationSettings.model_validate({}),
    )
