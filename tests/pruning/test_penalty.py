"""The penalties and their gradients against closed forms and autograd, and both ways to average them."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from scipy.special import expit
from torch import Tensor, nn

from raypp.pruning.gates import hard_concrete
from raypp.pruning.penalty import add_penalty

Kind = Literal["l1", "l0"]
Mean = Literal["per_matrix", "global"]
MATRICES = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate([(3, 4), (20, 5)])]
LOG_RATIO = 2 / 3 * math.log(0.1 / 1.1)


def parameters(*matrices: Tensor) -> list[nn.Parameter]:
    return [nn.Parameter(matrix.clone()) for matrix in matrices]


def value(*matrices: Tensor, kind: Kind = "l1", mean: Mean = "per_matrix") -> float:
    return float(add_penalty(parameters(*matrices), kind, mean, 1.0))


def test_each_penalty_is_its_closed_form() -> None:
    for scores in MATRICES:
        values = scores.double().numpy()
        assert value(scores) == pytest.approx(expit(values).mean(), rel=1e-6)
        assert value(scores, kind="l0") == pytest.approx(expit(values - LOG_RATIO).mean(), rel=1e-6)
    assert value(torch.zeros(7, 7)) == 0.5
    assert value(torch.full((2, 2), LOG_RATIO), kind="l0") == pytest.approx(0.5)


def test_l0_is_the_part_of_open_sampled_gates() -> None:
    scores = torch.full((400, 500), -1.2)
    noise = torch.rand(400, 500, generator=torch.Generator().manual_seed(0))
    open_gates = (hard_concrete(scores, noise)[0] > 0).double().mean()
    assert value(scores, kind="l0") == pytest.approx(float(open_gates), abs=5e-3)


@pytest.mark.parametrize("kind", ["l1", "l0"])
def test_per_matrix_weighs_matrices_equally_and_global_weighs_scores_equally(kind: Kind) -> None:
    per_matrix = (value(MATRICES[0], kind=kind) + value(MATRICES[1], kind=kind)) / 2
    overall = value(torch.cat([matrix.flatten() for matrix in MATRICES]), kind=kind)
    assert abs(per_matrix - overall) > 1e-3
    assert value(*MATRICES, kind=kind) == pytest.approx(per_matrix, rel=1e-6)
    assert value(*MATRICES, kind=kind, mean="global") == pytest.approx(overall, rel=1e-6)


@pytest.mark.parametrize("factor", [3.0, torch.tensor(3.0)])
@pytest.mark.parametrize("mean", ["per_matrix", "global"])
@pytest.mark.parametrize("kind", ["l1", "l0"])
def test_the_gradient_is_autograds_and_is_added_to_the_existing_one(
    kind: Kind, mean: Mean, factor: float | Tensor
) -> None:
    fresh, used, reference = parameters(*MATRICES), parameters(*MATRICES), parameters(*MATRICES)
    for matrix in used:
        matrix.grad = torch.ones_like(matrix)
    add_penalty(fresh, kind, mean, factor)
    add_penalty(used, kind, mean, factor)
    shift = 0.0 if kind == "l1" else LOG_RATIO
    sigmoids = [torch.sigmoid(matrix - shift) for matrix in reference]
    whole = torch.cat([each.flatten() for each in sigmoids])
    expected = whole.mean() if mean == "global" else torch.stack([each.mean() for each in sigmoids]).mean()
    (3.0 * expected).backward()
    for alone, beside, by_autograd in zip(fresh, used, reference, strict=True):
        assert by_autograd.grad is not None
        torch.testing.assert_close(alone.grad, by_autograd.grad)
        torch.testing.assert_close(beside.grad, by_autograd.grad + 1)


def test_low_precision_scores_are_averaged_in_float32() -> None:
    scores = nn.Parameter(torch.linspace(-1, 1, 5000).bfloat16())
    result = add_penalty([scores], "l1", "per_matrix", 1.0)
    assert result.dtype == torch.float32
    assert float(result) == pytest.approx(0.5, abs=1e-3)
    assert scores.grad is not None
    assert scores.grad.dtype == torch.bfloat16
