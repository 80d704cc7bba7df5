"""Settings of evaluation: when to evaluate, which model to deliver, how to read answers from a model's logits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raypp.config.base import Settings, one_of_each


class AnswerSettings(Settings):
    """Question answering: how an answer is read from a model's logits. The settings hold for the student and for a
    teacher that raypp trains; other settings lead to another teacher."""

    n_best: Annotated[int, Field(ge=1)] = 20
    """Number of candidate answers of each window, and of each question in nbest_predictions.json."""
    max_tokens: Annotated[int, Field(ge=1)] = 30
    """Maximum tokens of an answer."""
    null_threshold: float = 0.0
    """Data sets with unanswerable questions: "no answer" is predicted if its score exceeds the best answer's score by
    more than this."""


class EvaluationSettings(Settings):
    """When to evaluate on the dev splits, and which model to deliver."""

    every_epochs: Annotated[float, Field(gt=0)] | None = None
    """Epochs between evaluations; may be fractional (1 if neither this nor every_steps is given). The last step is
    always evaluated."""
    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between evaluations; instead of every_epochs."""
    select: Literal["last", "best"] = "last"
    """Which model to deliver. last: the model after the last step; best: the model of the best evaluation, by the
    task's first metric on its first dev split, among evaluations at the final density. With sigmoid_threshold,
    threshold and l0, best requires a target_density, because without one their density falls until the last step."""
    answers: AnswerSettings = AnswerSettings()
    """Question answering: how an answer is read from a model's logits."""

    @model_validator(mode="before")
    @classmethod
    def _one_rhythm(cls, values: Any) -> Any:
        return one_of_each(cls, values)
