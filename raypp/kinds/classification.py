"""Classification: a sentence or a pair of sentences has one of several labels."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raypp.data.values import class_of
from raypp.errors import ConfigError
from raypp.evaluation.metrics import class_metrics, require_finite
from raypp.kinds.sentences import Sentences, submission_text

if TYPE_CHECKING:
    from torch import Tensor

    from raypp.evaluation.predictions import Predictions

logger = logging.getLogger("raypp")


@dataclass(frozen=True)
class Classification(Sentences):
    """The model gives a logit for each label."""

    def label(self, value: object, column: object, spellings: Mapping[str, int]) -> int:
        return class_of(value, column, spellings)

    def head_settings(self) -> dict[str, Any]:
        labels = self.task.labels
        return {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": "single_label_classification",
        }

    def keeps_head(self, config: Any) -> bool:
        """Whether the model's labels are those of the task in the same order, or have no names."""
        names = label_names(config)
        return _are_generic(names) or names == list(self.task.labels)

    def output_order(self, config: Any, field: str) -> list[int]:
        """Labels are matched by name, whatever their case; a model without names has them in the task's order."""
        names, labels = label_names(config), self.task.labels
        if len(names) == len(labels) and _are_generic(names):
            if len(names) > 2:
                _warn_of_order(
                    f"{field}: the model's labels have no names; raypp takes them for {', '.join(labels)}, "
                    "in this order"
                )
            return list(range(len(names)))
        wanted, given = [label.lower() for label in labels], [name.lower() for name in names]
        if len(set(wanted)) < len(wanted):
            wanted, given = list(labels), names
        if sorted(wanted) != sorted(given):
            raise ConfigError(
                f"{field}: the model's labels {names} are not the labels of {self.task.name}, {list(labels)}; "
                "labels are matched by name (id2label in the model's config.json)"
            )
        return [given.index(label) for label in wanted]

    def hard_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        from raypp.distillation.losses import hard_cross_entropy_sum

        return hard_cross_entropy_sum(outputs, batch["labels"])

    def soft_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor], temperature: float) -> Tensor:
        from raypp.distillation.losses import soft_cross_entropy_sum

        return soft_cross_entropy_sum(outputs, batch["teacher_logits"], temperature)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        kept = predictions.labelled
        return class_metrics(self.task.metrics, predictions.logits[kept], predictions.labels[kept])

    def format_label(self, label: np.generic) -> str:
        return self.task.labels[int(label)]

    def format_prediction(self, logits: np.ndarray) -> str:
        return self.task.labels[int(logits.argmax())]

    def submission(self, logits: np.ndarray) -> str:
        """Labels are written by number or name, as in GLUE's sample submissions of the task."""
        classes = require_finite(logits).argmax(axis=1).tolist()
        return submission_text(classes if self.task.digit_labels else [self.task.labels[index] for index in classes])


@functools.cache
def _warn_of_order(text: str) -> None:
    """Logs a warning once, however often the model is opened."""
    logger.warning(text)


def label_names(config: Any) -> list[str]:
    """The names of a model's outputs, in their order."""
    return [str(config.id2label[index]) for index in range(config.num_labels)]


def _are_generic(names: Sequence[str]) -> bool:
    return all(name == f"LABEL_{index}" for index, name in enumerate(names))
