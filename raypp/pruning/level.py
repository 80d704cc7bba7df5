"""How far the scores are from the final threshold, which the controller of lambda measures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from raypp.config import SigmoidThresholdPruning, TargetedPruning, ThresholdPruning
from raypp.pruning.gates import GATE_CLOSES
from raypp.pruning.masks import kept_count, kth_smallest

SAMPLE_SIZE = 2**16  # approximate number of scores that `score_quantile` looks at


def final_score(settings: TargetedPruning) -> float:
    """The score above which a weight is kept at the end: the final threshold (l0: the score at which a gate closes)."""
    if isinstance(settings, SigmoidThresholdPruning):
        return logit(settings.final_threshold)
    if isinstance(settings, ThresholdPruning):
        return settings.final_threshold
    return GATE_CLOSES


def score_quantile(scores: Sequence[Tensor], density: float) -> Tensor:
    """Estimates the score above which the part `density` of all scores lies.

    It is exact for a fixed sample of about `SAMPLE_SIZE` scores that is spread evenly over the matrices, so it costs
    little. At a density of 0.03, the standard error is 2% of the density.

    Args:
        scores: matrices of any shape, on one device.
        density: above 0, at most 1.

    Returns:
        A scalar on the scores' device. The host does not wait for the device.
    """
    # An odd stride reaches every column of a matrix with an even width.
    stride = sum(matrix.numel() for matrix in scores) // SAMPLE_SIZE | 1
    sample = torch.cat([matrix.detach().reshape(-1)[::stride] for matrix in scores])
    return kth_smallest(sample, sample.numel() - kept_count(density, sample.numel()) + 1)


def density_above(scores: Sequence[Tensor], threshold: float) -> float:
    """The part of all scores that is above a threshold, 0 to 1."""
    counts = torch.stack([(matrix.detach() > threshold).count_nonzero() for matrix in scores])
    return int(counts.sum()) / sum(matrix.numel() for matrix in scores)


def logit(probability: float) -> float:
    """The score whose sigmoid is `probability` (0 to 1): sigmoid(score) > p exactly if score > logit(p)."""
    if probability <= 0:
        return -math.inf
    return math.inf if probability >= 1 else math.log(probability / (1 - probability))


def sigmoid(score: float) -> float:
    """The probability whose `logit` is the score."""
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0
