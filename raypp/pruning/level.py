"""Where the scores lie, against where they have to be at the end: what the control of lambda measures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from raypp.config import SigmoidThresholdPruning, TargetedPruning, ThresholdPruning
from raypp.pruning.gates import GATE_CLOSES
from raypp.pruning.masks import kept_count, kth_smallest

SAMPLE_SIZE = 2**16  # scores, about, that `score_quantile` looks at


def final_score(settings: TargetedPruning) -> float:
    """The score above which the final threshold keeps a weight (l0: above which a deterministic gate is open)."""
    if isinstance(settings, SigmoidThresholdPruning):
        return logit(settings.final_threshold)
    if isinstance(settings, ThresholdPruning):
        return settings.final_threshold
    return GATE_CLOSES


def score_quantile(scores: Sequence[Tensor], density: float) -> Tensor:
    """The score above which the part `density` of all scores lies, by a fixed sample of them that is evenly spread over
    the matrices: next to no work. At a density of 0.03 its standard error is 2% of that density.

    Returns:
        A scalar on the scores' device, which is not waited for.
    """
    # An odd stride meets every column of the usual, even widths.
    stride = sum(matrix.numel() for matrix in scores) // SAMPLE_SIZE | 1
    sample = torch.cat([matrix.detach().reshape(-1)[::stride] for matrix in scores])
    return kth_smallest(sample, sample.numel() - kept_count(density, sample.numel()) + 1)


def density_above(scores: Sequence[Tensor], threshold: float) -> float:
    """The part of all scores that is above a threshold."""
    counts = torch.stack([(matrix.detach() > threshold).count_nonzero() for matrix in scores])
    return int(counts.sum()) / sum(matrix.numel() for matrix in scores)


def logit(probability: float) -> float:
    """The score whose sigmoid is `probability`, 0 to 1: sigmoid(score) > p just where score > logit(p)."""
    if probability <= 0:
        return -math.inf
    return math.inf if probability >= 1 else math.log(probability / (1 - probability))


def sigmoid(score: float) -> float:
    """The probability whose `logit` is a score."""
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0
