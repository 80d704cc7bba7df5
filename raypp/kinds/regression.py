"""Regression: a sentence or a pair of sentences has a real number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raypp.data.values import number_of
from raypp.errors import ConfigError
from raypp.evaluation.metrics import require_finite, value_metrics
from raypp.kinds.classification import label_names
from raypp.kinds.sentences import Sentences, submission_text

if TYPE_CHECKING:
    from torch import Tensor

    from raypp.evaluation.predictions import Predictions


@dataclass(frozen=True)
class Regression(Sentences):
    """The model gives one output, the number."""

    label_type = pa.float32()

    def label(self, value: object, column: object, spellings: Mapping[str, int]) -> float:
        return number_of(value, column, self.task.value_range)

    def head_settings(self) -> dict[str, Any]:
        return {"id2label": {0: "score"}, "label2id": {"score": 0}, "problem_type": "regression"}

    def keeps_head(self, config: Any) -> bool:
        """Any head is kept: `output_order` refuses one with several outputs."""
        return True

    def output_order(self, config: Any, field: str) -> list[int]:
        names = label_names(config)
        if len(names) != 1:
            raise ConfigError(
                f"{field}: {self.task.name} is a regression task, but the model has {len(names)} outputs {names}; "
                "allowed: 1"
            )
        return [0]

    def hard_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        from raypp.distillation.losses import hard_mse_sum

        return hard_mse_sum(outputs, batch["labels"])

    def soft_loss_sum(self, outputs: Tensor, batch: Mapping[str, Tensor], temperature: float) -> Tensor:
        from raypp.distillation.losses import soft_mse_sum

        return soft_mse_sum(outputs, batch["teacher_logits"])

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        kept = predictions.labelled
        return value_metrics(self.task.metrics, predictions.logits[kept, 0], predictions.labels[kept])

    def format_label(self, label: np.generic) -> str:
        return f"{label:.6g}"

    def format_prediction(self, logits: np.ndarray) -> str:
        return f"{logits[0]:.6g}"

    def submission(self, logits: np.ndarray) -> str:
        """With a value range, values are clipped to it and have 3 decimals."""
        values = require_finite(logits)[:, 0].tolist()
        if self.task.value_range is None:
            return submission_text([f"{value:.6g}" for value in values])
        low, high = self.task.value_range
        # + 0.0: no negative zero
        return submission_text([f"{min(max(value, low), high) + 0.0:.3f}" for value in values])
