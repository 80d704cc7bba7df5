"""The inputs of each worker in each optimizer step: its shares of the global batch, padded and on its device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from raypp.data.examples import Counts
from raypp.data.training import TrainingData
from raypp.training.steps import StepPlan
from raypp.training.worker import Worker


@dataclass(frozen=True)
class StepInputs:
    """One worker's inputs of one step."""

    rows: npt.NDArray[np.int64]
    """Positions, in the source, of the examples of the whole global batch."""
    counts: Counts
    """The counts of the whole global batch."""
    shares: Mapping[int, Mapping[str, Tensor]]
    """This worker's non-empty shares, by number: the model's inputs, labels and teacher logits."""
    tokens: int
    """Tokens of these shares, without padding."""
    computed_tokens: int
    """Tokens of these shares, with padding."""


def step_inputs(
    data: TrainingData, steps: StepPlan, start: int, micro_batches: int, pad_id: int, max_padded: int, worker: Worker
) -> Iterator[StepInputs]:
    """Yields the inputs of every step from `start` on. The inputs of a step are made when the caller asks for them."""
    step = start
    while step < steps.total:
        epoch, place = steps.place(step)
        for examples, batch in data.batches(epoch, place):
            shares, tokens, computed_tokens = {}, 0, 0
            for share in worker.shares(micro_batches):
                if not len(indices := batch.shares[share]):
                    continue
                padded = examples.collate(indices, pad_id, max_padded=max_padded)
                tokens += int(examples.tokens[indices].sum())
                computed_tokens += padded["input_ids"].numel()
                shares[share] = {name: worker.to_device(value) for name, value in padded.items()}
            counts = examples.loss_counts(batch.indices)
            yield StepInputs(examples.rows[batch.indices], counts, shares, tokens, computed_tokens)
            step += 1
            if step == steps.total:
                return
