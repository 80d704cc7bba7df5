"""The quantile of scores from a sample, against the exact one; logit and sigmoid."""

from __future__ import annotations

import math

import pytest
import torch

from raypp.pruning.level import density_above, logit, score_quantile, sigmoid


def test_a_quantile_of_a_sample_is_near_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(384, 384, generator=generator), torch.randn(1536, 384, generator=generator) - 1]
    everything = torch.cat([matrix.flatten() for matrix in matrices])
    for density in (0.5, 0.1, 0.03):
        level = score_quantile(matrices, density)
        assert (everything > level).float().mean() == pytest.approx(density, rel=0.05)
        assert density_above(matrices, float(level)) == pytest.approx((everything > level).float().mean().item())
    small = [torch.arange(10.0)]
    assert float(score_quantile(small, 0.3)) == 7.0


def test_logit_is_the_score_of_a_probability() -> None:
    for probability in (1e-6, 0.1, 0.5, 0.99):
        assert 1 / (1 + math.exp(-logit(probability))) == pytest.approx(probability)
        assert sigmoid(logit(probability)) == pytest.approx(probability)
    assert logit(0.0) == -math.inf
    assert logit(1.0) == math.inf
