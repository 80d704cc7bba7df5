"""Statistics of parameters and gradients against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from raypp.training.parameter_statistics import parameter_histograms, parameter_statistics


def test_statistics_of_trained_parameters_equal_numpys() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 1))
    model[2].requires_grad_(False)
    model[0](torch.randn(5, 3)).square().sum().backward()
    found = parameter_statistics(model.named_parameters())
    expected = {}
    for section, name, value in (
        ("parameters", "0.weight", model[0].weight),
        ("parameters", "0.bias", model[0].bias),
        ("gradients", "0.weight", model[0].weight.grad),
        ("gradients", "0.bias", model[0].bias.grad),
        ("parameters", "1.weight", model[1].weight),
        ("parameters", "1.bias", model[1].bias),
    ):
        numbers = value.detach().numpy()
        for statistic in ("mean", "std", "min", "max"):
            expected[f"{section}/{name}/{statistic}"] = float(getattr(np, statistic)(numbers))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert parameter_statistics([]) == {}
    model[0].weight.grad[1, 2] = torch.nan
    found = parameter_statistics(model.named_parameters())
    assert found.keys() == {key for key in expected if not key.startswith("gradients/0.weight")}


def test_histograms_of_finite_values_equal_numpys() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.LayerNorm(40), nn.Linear(40, 1))
    model[2].requires_grad_(False)
    model[0](torch.randn(5, 30)).square().sum().backward()
    model[0].bias.grad[3] = torch.inf
    found = parameter_histograms(model.named_parameters())
    assert found.keys() == {
        *("parameters/0.weight", "parameters/0.bias", "gradients/0.weight", "parameters/1.weight", "parameters/1.bias")
    }
    for key, value in (("parameters/0.weight", model[0].weight), ("gradients/0.weight", model[0].weight.grad)):
        counts, edges = np.histogram(value.detach().numpy(), bins=64)
        np.testing.assert_allclose(found[key][1], edges, rtol=1e-5, atol=1e-6)
        assert found[key][0].sum() == value.numel()
        # A value at the edge of two bins may be counted in either of them.
        assert np.abs(found[key][0] - counts).sum() <= 4
    counts, edges = found["parameters/1.weight"]
    assert (edges[0], edges[-1], counts[32], counts.sum()) == (0.5, 1.5, 40, 40)
