"""What each worker computes in each optimizer step: its shares of the global batch, padded and on its device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from raypp.config import TrainSettings
from raypp.data.batches import GlobalBatch, plan_epoch
from raypp.data.features import Features
from raypp.steps import StepPlan
from raypp.worker import Worker


@dataclass(frozen=True)
class StepInputs:
    """One worker's part of one step."""

    batch: GlobalBatch
    """The whole of it."""
    shares: Mapping[int, Mapping[str, Tensor]]
    """By number, this worker's shares that are not empty: the model's inputs, labels and teacher logits."""
    tokens: int
    """Real tokens in them."""
    computed_tokens: int
    """The same with padding."""


def step_inputs(
    features: Features,
    settings: TrainSettings,
    steps: StepPlan,
    start: int,
    micro_batches: int,
    pad_id: int,
    max_padded: int,
    worker: Worker,
) -> Iterator[StepInputs]:
    """The inputs of every step from `start` on. A step's are made when they are asked for."""
    planned, plan = -1, []
    for step in range(start, steps.total):
        epoch, place = steps.place(step)
        if epoch != planned:
            planned, plan = epoch, plan_epoch(features.lengths, settings, epoch, micro_batches)
        shares, tokens, computed_tokens = {}, 0, 0
        rows_of_share = plan[place].shares
        for share in worker.shares(micro_batches):
            if not len(rows := rows_of_share[share]):
                continue
            padded = features.collate(rows, pad_id, max_padded=max_padded)
            tokens += int(features.tokens[rows].sum())
            computed_tokens += padded["input_ids"].numel()
            shares[share] = {name: worker.to_device(value) for name, value in padded.items()}
        yield StepInputs(plan[place], shares, tokens, computed_tokens)
