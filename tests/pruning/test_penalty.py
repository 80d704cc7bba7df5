"""The penalties against their closed forms, and both ways to average them."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import expit

from raypp.pruning.masks import hard_concrete
from raypp.pruning.penalty import l0, l1, penalty

MATRICES = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate([(3, 4), (20, 5)])]


def test_each_penalty_is_its_closed_form() -> None:
    for scores in MATRICES:
        values = scores.double().numpy()
        assert float(l1(scores)) == pytest.approx(expit(values).mean(), rel=1e-6)
        assert float(l0(scores)) == pytest.approx(expit(values - 2 / 3 * math.log(0.1 / 1.1)).mean(), rel=1e-6)
    assert float(l1(torch.zeros(7, 7))) == 0.5
    assert float(l0(torch.full((2, 2), 2 / 3 * math.log(0.1 / 1.1)))) == pytest.approx(0.5)


def test_l0_is_the_part_of_sampled_gates_that_are_open() -> None:
    scores = torch.full((400, 500), -1.2)
    noise = torch.rand(400, 500, generator=torch.Generator().manual_seed(0))
    open_gates = (hard_concrete(scores, noise)[0] > 0).double().mean()
    assert float(l0(scores)) == pytest.approx(float(open_gates), abs=5e-3)


@pytest.mark.parametrize("kind", ["l1", "l0"])
def test_per_matrix_weighs_matrices_alike_and_global_weighs_scores_alike(kind: str) -> None:
    function = {"l1": l1, "l0": l0}[kind]
    per_matrix = (float(function(MATRICES[0])) + float(function(MATRICES[1]))) / 2
    overall = float(function(torch.cat([matrix.flatten() for matrix in MATRICES])))
    assert abs(per_matrix - overall) > 1e-3
    assert float(penalty(MATRICES, kind, "per_matrix")) == pytest.approx(per_matrix, rel=1e-6)  # type: ignore[arg-type]
    assert float(penalty(MATRICES, kind, "global")) == pytest.approx(overall, rel=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("mean", ["per_matrix", "global"])
def test_gradients_are_the_closed_form(mean: str) -> None:
    scores = [matrix.clone().requires_grad_() for matrix in MATRICES]
    penalty(scores, "l1", mean).backward()  # type: ignore[arg-type]
    total = sum(matrix.numel() for matrix in scores)
    for matrix in scores:
        share = 1 / (2 * matrix.numel()) if mean == "per_matrix" else 1 / total
        slope = torch.sigmoid(matrix) * (1 - torch.sigmoid(matrix))
        torch.testing.assert_close(matrix.grad, (slope * share).detach())


def test_low_precision_scores_are_averaged_in_float32() -> None:
    scores = torch.linspace(-1, 1, 5000).bfloat16()
    result = penalty([scores], "l1", "per_matrix")
    assert result.dtype == torch.float32
    assert float(result) == pytest.approx(0.5, abs=1e-3)
