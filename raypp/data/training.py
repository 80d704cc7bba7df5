"""What is trained on: global batches of examples, in memory or streamed, by epoch and number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from raypp.config import TrainSettings
from raypp.data.batches import GlobalBatch, batch_counter, plan_epoch
from raypp.data.features import Features

if TYPE_CHECKING:
    import torch


class Examples(Protocol):
    """Examples in memory, of which batches are made."""

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """[n]: position of each in the source."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[n]: what each counts for where batches are made."""

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """[n]: tokens of each."""

    def targets_and_outputs(self, indices: npt.NDArray[np.int64]) -> tuple[int, int]:
        """How many labels the examples at `indices` have, and at how many places a model's output on them is compared
        with a teacher's."""

    def collate(
        self, indices: npt.NDArray[np.int64], pad_id: int, *, max_padded: int | None = None
    ) -> dict[str, torch.Tensor]:
        """The examples at `indices` as one padded batch."""


class TrainingData(Protocol):
    """The training split of a run, a pure function of epoch and number of a batch."""

    def batch_counter(self) -> Callable[[int], int]:
        """A function from an epoch to the number of its global batches."""

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Examples, GlobalBatch]]:
        """The global batches of an epoch from number `first` on, each with the examples that it indexes."""


class InMemory:
    """A split that fits in memory, as those of GLUE do."""

    def __init__(self, features: Features, settings: TrainSettings, micro_batches: int) -> None:
        self.features, self.settings, self.micro_batches = features, settings, micro_batches

    def batch_counter(self) -> Callable[[int], int]:
        return batch_counter(self.settings, self.features.lengths)

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Features, GlobalBatch]]:
        plan = plan_epoch(self.features.lengths, self.settings, epoch, self.micro_batches)
        return ((self.features, batch) for batch in plan[first:])
