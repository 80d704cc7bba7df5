"""Hard concrete gates against their closed form, with the C kernels and without."""

from __future__ import annotations

import math

import pytest
import torch
from c_kernels import needs_compiler, without_kernels
from torch import Tensor

from raypp.noise import random_bits
from raypp.pruning.gates import hard_concrete, sample_gates, uniform_noise


def test_hard_concrete_gates_are_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    log_alpha = torch.randn(50, generator=generator, dtype=torch.float64) * 3
    noise = torch.rand(50, generator=generator, dtype=torch.float64)
    noise[:2] = torch.tensor([0.0, 1.0])
    for alpha, u, gate in zip(
        log_alpha.tolist(), noise.tolist(), hard_concrete(log_alpha, noise)[0].tolist(), strict=True
    ):
        u = min(max(u, 1e-4), 1 - 1e-4)
        concrete = 1 / (1 + math.exp(-(math.log(u / (1 - u)) + alpha) * 1.5))
        assert gate == pytest.approx(min(1.0, max(0.0, concrete * 1.2 - 0.1)), abs=1e-9)
    for alpha, gate in zip(log_alpha.tolist(), hard_concrete(log_alpha, None)[0].tolist(), strict=True):
        assert gate == pytest.approx(min(1.0, max(0.0, 1.2 / (1 + math.exp(-alpha)) - 0.1)), abs=1e-9)


def gates_by_autograd(log_alpha: Tensor, noise: Tensor | None) -> Tensor:
    """The same gates, written so that autograd can differentiate them."""
    concrete = torch.sigmoid(log_alpha if noise is None else (torch.log(noise / (1 - noise)) + log_alpha) * 1.5)
    return (concrete * 1.2 - 0.1).clamp(0.0, 1.0)


@pytest.mark.parametrize("noisy", [True, False])
def test_the_slope_of_hard_concrete_gates_is_their_derivative(noisy: bool) -> None:
    log_alpha = torch.linspace(-6, 6, 41, dtype=torch.float64, requires_grad=True)
    noise = torch.rand(41, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.99 + 0.005
    expected = gates_by_autograd(log_alpha, noise if noisy else None)
    expected.sum().backward()
    gates, slope = hard_concrete(log_alpha, noise if noisy else None)
    torch.testing.assert_close(gates, expected.detach())
    torch.testing.assert_close(slope, log_alpha.grad)
    assert (slope == 0).any(), "a closed gate has none"
    assert (slope > 0).any()


def scores_with_extremes(size: int, seed: int) -> Tensor:
    scores = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 4
    scores[:6] = torch.tensor([-1e30, -100.0, -20.0, 20.0, 100.0, 1e30])[:size]
    return scores


@needs_compiler
@pytest.mark.parametrize("lift", [None, torch.tensor(1.5)])
def test_sampled_gates_are_those_of_their_seeds_noise_however_they_are_computed(
    lift: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [scores_with_extremes(size, size) for size in (1, 7, 512, 1027, 40_000)]  # of several chunks, or not
    seeds = list(range(40, 45))
    found = sample_gates(scores, seeds, lift)
    without_kernels(monkeypatch)
    plain = sample_gates(scores, seeds, lift)
    for matrix, seed, gates, plain_gates in zip(scores, seeds, found, plain, strict=True):
        noise = (torch.from_numpy(random_bits(matrix.numel(), seed)).double() + 0.5) / 65536
        assert torch.equal(uniform_noise(matrix, seed).double(), noise)
        expected = hard_concrete(matrix.double() + (0.0 if lift is None else float(lift)), noise)
        for one, plain_one, exact in zip(gates, plain_gates, expected, strict=True):
            torch.testing.assert_close(one.double(), exact, rtol=0, atol=2e-6)
            torch.testing.assert_close(one, plain_one, rtol=0, atol=2e-6)
        assert torch.equal(gates[0] == 0, plain_gates[0] == 0), "which gates are closed"


def test_sampled_gates_do_not_depend_on_the_number_of_threads() -> None:
    scores, threads = [scores_with_extremes(30_000, seed) for seed in range(5)], torch.get_num_threads()
    first = sample_gates(scores, range(5))
    try:
        torch.set_num_threads(3)
        again = sample_gates(scores, range(5))
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(a, b) for one, other in zip(first, again, strict=True) for a, b in zip(one, other, strict=True)
    )
