"""The level of scores by a sample, against the exact quantile."""

from __future__ import annotations

import pytest
import torch

from raypp.pruning.level import density_above, score_quantile


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
