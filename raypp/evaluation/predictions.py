"""A model's predictions on one split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raypp.data.examples import EvaluationExamples
from raypp.data.features import Features

if TYPE_CHECKING:
    from torch import Tensor


def without_padding(outputs: Tensor, batch: Mapping[str, Tensor], per_token: bool) -> np.ndarray:
    """A batch's outputs without padding, in the order of `Features.output_indices`.

    Returns:
        float32 [rows, outputs] or, if `per_token`, [tokens, outputs].
    """
    if per_token:
        outputs = outputs[batch["attention_mask"].bool()]
    kept: np.ndarray = outputs.float().cpu().numpy()
    return kept


@dataclass(frozen=True)
class Predictions:
    """The outputs of a model on a split, in the order of its rows."""

    features: EvaluationExamples
    logits: np.ndarray
    """float32 [rows, outputs] or, for outputs of each token, [tokens, outputs]. The outputs are in the task's order."""

    @property
    def rows(self) -> np.ndarray:
        """int64 [rows]: position in the source."""
        return self.features.rows

    @property
    def labels(self) -> np.ndarray:
        """The features' labels; meaningless for rows where `labelled` is False."""
        assert isinstance(self.features, Features), "text has no labels but its own tokens"
        return self.features.labels

    @property
    def labelled(self) -> np.ndarray:
        """bool [rows]."""
        return self.features.labelled
