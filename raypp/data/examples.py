"""What batches are made of: the interface of examples in memory, and the counts that a global batch's losses need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Counts:
    """What the sums of a global batch's loss terms are divided by. They do not depend on how the batch is cut."""

    rows: int
    """Examples."""
    targets: int
    """Terms of the hard loss: one per example or, for a language model, one per token that it predicts."""
    outputs: int
    """Model outputs that are compared with the teacher's: one per example or, for a language model, one per token where
    an output is computed."""


class Examples(Protocol):
    """Examples in memory, from which batches are made."""

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """[n]: position of each example in the source."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[n]: size of each example when batches are planned, in tokens."""

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """[n]: tokens of each example."""

    def loss_counts(self, indices: npt.NDArray[np.int64]) -> Counts:
        """The counts of a global batch that consists of the examples at `indices`."""

    def collate(
        self, indices: npt.NDArray[np.int64], pad_id: int, *, max_padded: int | None = None
    ) -> dict[str, torch.Tensor]:
        """The examples at `indices` as one padded batch."""


class EvaluationExamples(Examples, Protocol):
    """A split that a model is evaluated on."""

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """[n]: whether each example has a label."""

    def output_indices(self, indices: npt.NDArray[np.int64], per_token: bool) -> npt.NDArray[np.int64]:
        """Positions of the outputs for the examples at `indices` among the outputs for the whole split.

        Args:
            per_token: whether the model gives an output for each token (`TaskKind.outputs_per_token`).
        """
