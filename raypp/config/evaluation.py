"""Settings of evaluation: when, what is delivered, how answers are read from spans."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raypp.config.base import Settings, one_of_each


class AnswerSettings(Settings):
    """Question answering: how an answer is read from a model's logits, the student's and that of a teacher that is
    trained first (another one for other settings)."""

    n_best: Annotated[int, Field(ge=1)] = 20
    """Candidates of each window, and of each question in nbest_predictions.json."""
    max_tokens: Annotated[int, Field(ge=1)] = 30
    """Tokens of an answer, at most."""
    null_threshold: float = 0.0
    """A question of a data set that has unanswerable ones has no answer where the score of "none" is above that of the
    best answer by more than this."""


class EvaluationSettings(Settings):
    """When to evaluate on dev and which checkpoint to deliver."""

    every_epochs: Annotated[float, Field(gt=0)] | None = None
    """Epochs between evaluations, in parts of one if need be (1 where neither this nor every_steps is given). The last
    step is always evaluated."""
    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between evaluations; instead of every_epochs."""
    select: Literal["last", "best"] = "last"
    """Deliver the last model, or the best by the task's first metric on its first dev split, among the evaluations at
    the final density. Not best with sigmoid_threshold, threshold or l0 without a target_density: their density falls
    until the last step."""
    answers: AnswerSettings = AnswerSettings()
    """Question answering: how answers are read."""

    @model_validator(mode="before")
    @classmethod
    def _one_rhythm(cls, values: Any) -> Any:
        return one_of_each(cls, values)
