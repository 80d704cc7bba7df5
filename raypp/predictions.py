"""What a model predicts of one split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raypp.data.features import Features


@dataclass(frozen=True)
class Predictions:
    """The outputs of a model on a split, in the order of its rows."""

    features: Features
    logits: np.ndarray
    """float32 [rows, outputs], in the task's order."""

    @property
    def rows(self) -> np.ndarray:
        """int64 [rows]: position in the source."""
        return self.features.rows

    @property
    def labels(self) -> np.ndarray:
        """int64 or float32 [rows]; without meaning where `labelled` is False."""
        return self.features.labels

    @property
    def labelled(self) -> np.ndarray:
        """bool [rows]."""
        return self.features.labelled
