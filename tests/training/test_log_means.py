"""The means that a run logs: over steps, without the steps that float16's scaler skips."""

from __future__ import annotations

import math

import pytest
import torch
from waits import Waits

from raypp.training.log_means import LogMeans, StepSums

WEIGHTS = {"hard_loss": 0.25, "soft_loss": 0.75}


def sums_of(hard_loss: float, soft_loss: float, tokens: int, computed_tokens: int) -> StepSums:
    return StepSums((hard_loss, soft_loss), tokens, computed_tokens, interrupted=False)


def test_sums_of_a_step_are_added_over_workers_and_one_interrupted_worker_is_enough() -> None:
    one = StepSums.pack(torch.tensor([0.1, 2.0], dtype=torch.float64), 100, 120, interrupted=False)
    other = StepSums.pack(torch.tensor([0.2, 3.0], dtype=torch.float64), 2**24 + 1, 2**24 + 3, interrupted=True)
    assert StepSums.unpack(one) == StepSums((0.1, 2.0), 100, 120, interrupted=False)
    assert StepSums.unpack(one + other) == StepSums((0.1 + 0.2, 5.0), 2**24 + 101, 2**24 + 123, interrupted=True)


def test_the_sums_of_a_step_are_packed_without_a_wait_for_the_device() -> None:
    terms = torch.tensor([0.1, 2.0], dtype=torch.float64)
    with Waits() as counted:
        StepSums.pack(terms, 100, 120, interrupted=True)
    assert counted.count == 0


def test_means_are_over_rows_and_steps() -> None:
    means = LogMeans(("hard_loss", "soft_loss"))
    means.add(sums_of(8.0, 16.0, 100, 120), counts=dict.fromkeys(WEIGHTS, 8), norm=1.0, seconds=0.5)
    means.add(sums_of(4.0, 4.0, 50, 80), counts=dict.fromkeys(WEIGHTS, 4), norm=3.0, seconds=0.3)
    assert (means.tokens, means.computed_tokens) == (150, 200)
    assert means.values(WEIGHTS) == pytest.approx(
        {
            "train/hard_loss": 1.0,
            "train/soft_loss": 20 / 12,
            "train/loss": 0.25 * 1.0 + 0.75 * 20 / 12,
            "train/gradient_norm": 2.0,
            "perf/step_seconds": 0.4,
        }
    )


def test_each_term_has_its_own_count() -> None:
    means = LogMeans(("hard_loss", "soft_loss"))
    for _ in range(2):
        means.add(sums_of(8.0, 16.0, 100, 120), counts={"hard_loss": 4, "soft_loss": 32}, norm=1.0, seconds=0.5)
    metrics = means.values(WEIGHTS)
    assert (metrics["train/hard_loss"], metrics["train/soft_loss"]) == (2.0, 0.5)


@pytest.mark.parametrize(("hard_loss", "norm"), [(math.inf, 1.0), (1.0, math.nan)])
def test_a_skipped_step_is_counted_and_left_out_of_the_means(hard_loss: float, norm: float) -> None:
    sums = sums_of(hard_loss, 1.0, 10, 10)
    means = LogMeans(("hard_loss", "soft_loss"))
    means.add(sums, counts=dict.fromkeys(WEIGHTS, 1), norm=norm, seconds=0.1)
    assert means.values(WEIGHTS) == {"perf/step_seconds": 0.1, "train/skipped_steps": 1}
    means = LogMeans(("hard_loss", "soft_loss"))
    means.add(sums, counts=dict.fromkeys(WEIGHTS, 1), norm=norm, seconds=0.1)
    means.add(sums_of(8.0, 16.0, 100, 120), counts=dict.fromkeys(WEIGHTS, 8), norm=1.0, seconds=0.3)
    metrics = means.values(WEIGHTS)
    assert metrics["train/skipped_steps"] == 1
    assert (metrics["train/hard_loss"], metrics["train/gradient_norm"]) == (1.0, 1.0)
    assert metrics["perf/step_seconds"] == pytest.approx(0.2)
