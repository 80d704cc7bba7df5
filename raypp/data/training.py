"""Training data: the global batches of each epoch, from examples in memory or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from raypp.config import TrainSettings
from raypp.data.batches import GlobalBatch, batch_counter, plan_epoch
from raypp.data.examples import Examples
from raypp.data.features import Features


class TrainingData(Protocol):
    """The training split of a run. Its batches are a pure function of epoch and number."""

    def batch_counter(self) -> Callable[[int], int]:
        """A function from an epoch to the number of its global batches."""

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Examples, GlobalBatch]]:
        """The global batches of an epoch, starting with number `first`, each with the examples that it indexes."""


class InMemory:
    """A split that fits into memory, as GLUE's do."""

    def __init__(self, features: Features, settings: TrainSettings, micro_batches: int) -> None:
        self.features, self.settings, self.micro_batches = features, settings, micro_batches

    def batch_counter(self) -> Callable[[int], int]:
        return batch_counter(self.settings, self.features.lengths)

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Features, GlobalBatch]]:
        plan = plan_epoch(self.features.lengths, self.settings, epoch, self.micro_batches)
        return ((self.features, batch) for batch in plan[first:])
