"""The losses against scipy and closed forms: sums over rows, for every dtype, with the right direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from torch import Tensor
from torch.nn import functional

from raypp.distillation.losses import (
    hard_cross_entropy_sum,
    hard_mse_sum,
    hidden_cosine_sum,
    hidden_mse_sum,
    logits_mse_sum,
    soft_cross_entropy_sum,
    soft_mse_sum,
)


def logits_of(seed: int, rows: int = 6, classes: int = 3) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.5])
def test_the_soft_loss_is_the_divergence_of_the_student_from_the_teacher(temperature: float) -> None:
    student, teacher = logits_of(0), logits_of(1)
    p = softmax(teacher.double().numpy() / temperature, axis=1)
    q = softmax(student.double().numpy() / temperature, axis=1)
    expected = temperature**2 * entropy(p, q, axis=1).sum()
    assert float(soft_cross_entropy_sum(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)
    batchmean = functional.kl_div(
        (student / temperature).log_softmax(-1), torch.tensor(p).float(), reduction="batchmean"
    )
    per_row = soft_cross_entropy_sum(student, teacher, temperature) / len(student)
    assert float(per_row) == pytest.approx(float(batchmean) * temperature**2, rel=1e-5)


def test_two_classes_have_a_closed_form() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): KL(p || q) = 3/4 ln(3/2) + 1/4 ln(1/2)
    teacher, student = torch.tensor([[np.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert float(soft_cross_entropy_sum(student, teacher, 1.0)) == pytest.approx(expected, rel=1e-6)
    assert float(soft_cross_entropy_sum(teacher, teacher, 3.0)) == pytest.approx(0.0, abs=1e-6)


def test_its_gradient_is_temperature_times_the_difference_of_distributions() -> None:
    student, teacher = logits_of(0).requires_grad_(), logits_of(1).requires_grad_()
    soft_cross_entropy_sum(student, teacher, 2.0).backward()
    torch.testing.assert_close(student.grad, (2.0 * ((student / 2).softmax(-1) - (teacher / 2).softmax(-1))).detach())
    assert teacher.grad is None


def test_a_certain_teacher_gives_a_finite_loss() -> None:
    teacher = torch.tensor([[1e4, -1e4]])
    student = torch.zeros(1, 2, requires_grad=True)
    loss = soft_cross_entropy_sum(student, teacher, 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(np.log(2), rel=1e-6)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_the_hard_losses_are_sums() -> None:
    logits, labels = logits_of(2), torch.tensor([0, 2, 1, 1, 0, 2])
    expected = -log_softmax(logits.double().numpy(), axis=1)[np.arange(6), labels.numpy()].sum()
    assert float(hard_cross_entropy_sum(logits, labels)) == pytest.approx(expected, rel=1e-5)
    values, targets = torch.tensor([1.0, 2.0, 4.5]), torch.tensor([1.0, 0.0, 5.0])
    assert float(hard_mse_sum(values, targets)) == 4.25
    assert float(soft_mse_sum(values, targets)) == 4.25


def test_columns_and_rows_do_not_broadcast() -> None:
    column, row = torch.tensor([[1.0], [2.0], [4.5]]), torch.tensor([1.0, 0.0, 5.0])
    for values, targets in ((column, row), (row, column), (column, row[:, None])):
        assert float(hard_mse_sum(values, targets)) == 4.25
        assert float(soft_mse_sum(values, targets)) == 4.25


def test_the_soft_regression_loss_trains_the_student_only() -> None:
    student, teacher = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([0.5, 4.0], requires_grad=True)
    soft_mse_sum(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.tolist() == [1.0, -2.0]
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher, labels = logits_of(0, 512).to(dtype), logits_of(1, 512).to(dtype), torch.zeros(512).long()
    for low, exact in (
        (soft_cross_entropy_sum(student, teacher, 2.0), soft_cross_entropy_sum(student.float(), teacher.float(), 2.0)),
        (hard_cross_entropy_sum(student, labels), hard_cross_entropy_sum(student.float(), labels)),
        (hard_mse_sum(student[:, 0], labels), hard_mse_sum(student[:, 0].float(), labels.float())),
        (soft_mse_sum(student[:, 0], teacher[:, 0]), soft_mse_sum(student[:, 0].float(), teacher[:, 0].float())),
    ):
        assert low.dtype == torch.float32
        assert torch.equal(low, exact)


def test_the_logits_loss_is_the_mean_squared_error_summed_over_rows() -> None:
    student, teacher = logits_of(0).requires_grad_(), logits_of(1).requires_grad_()
    loss = logits_mse_sum(student, teacher)
    torch.testing.assert_close(loss / len(student), functional.mse_loss(student, teacher))
    loss.backward()
    assert teacher.grad is None
    with pytest.raises(ValueError, match="must both be"):
        logits_mse_sum(student, teacher[:, :2])


def test_shares_add_up_to_the_global_batch() -> None:
    student, teacher = logits_of(3, 7), logits_of(4, 7)
    parts = sum(float(soft_cross_entropy_sum(student[rows], teacher[rows], 2.0)) for rows in (slice(0, 5), slice(5, 7)))
    assert parts == pytest.approx(float(soft_cross_entropy_sum(student, teacher, 2.0)), rel=1e-5)


def states_of(seed: int, rows: int = 3, length: int = 5, width: int = 4) -> Tensor:
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(seed))


def test_the_hidden_losses_have_closed_forms() -> None:
    # Row 0: one token, (3, 4) against (0, 0): (9 + 16) / 2. Row 1: two tokens, errors (1, 1) and (0, 0): 1/2.
    student = torch.tensor([[[3.0, 4.0], [7.0, 7.0]], [[2.0, 3.0], [1.0, 1.0]]])
    teacher = torch.tensor([[[0.0, 0.0], [1.0, 2.0]], [[1.0, 2.0], [1.0, 1.0]]])
    assert float(hidden_mse_sum(student, teacher, torch.tensor([[1, 0], [1, 1]]))) == 12.5 + 0.5
    # Cosines of 0, 45 and 180 degrees; the first row has one token, the second two.
    student = torch.tensor([[[1.0, 0.0], [5.0, 5.0]], [[2.0, 0.0], [1.0, 1.0]]])
    teacher = torch.tensor([[[3.0, 0.0], [-1.0, 0.0]], [[1.0, 1.0], [-2.0, -2.0]]])
    expected = 0.0 + ((1 - np.sqrt(0.5)) + 2.0) / 2
    got = hidden_cosine_sum(student, teacher, torch.tensor([[1, 0], [1, 1]]))
    assert float(got) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("distance", [hidden_mse_sum, hidden_cosine_sum])
def test_the_hidden_losses_do_not_depend_on_padding_or_on_how_a_batch_is_cut(distance: Any) -> None:
    student, teacher = states_of(0), states_of(1)
    lengths = [5, 2, 3]
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    whole = distance(student, teacher, mask)
    alone = [
        distance(student[row : row + 1, :length], teacher[row : row + 1, :length], torch.ones(1, length))
        for row, length in enumerate(lengths)
    ]
    torch.testing.assert_close(whole, torch.stack(alone).sum())
    wider = distance(
        *(functional.pad(states, (0, 0, 0, 3), value=9.0) for states in (student, teacher)),
        functional.pad(mask, (0, 3)),
    )
    torch.testing.assert_close(wider, whole)


@pytest.mark.parametrize("distance", [hidden_mse_sum, hidden_cosine_sum])
def test_the_hidden_losses_train_the_student_at_real_tokens_only(distance: Any) -> None:
    student, teacher = states_of(0).requires_grad_(), states_of(1).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    distance(student, teacher, mask).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert torch.equal(student.grad.abs().sum(-1) > 0, mask.bool())
    assert distance(student.bfloat16(), teacher.bfloat16(), mask).dtype == torch.float32


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(6, 3\) and \(6, 2\)"):
        soft_cross_entropy_sum(logits_of(0), logits_of(0, classes=2), 1.0)
    with pytest.raises(ValueError, match="regression needs soft_mse_sum"):
        soft_cross_entropy_sum(torch.zeros(4, 1), torch.zeros(4, 1), 1.0)
    with pytest.raises(ValueError, match="as many values as targets"):
        hard_mse_sum(torch.zeros(4), torch.zeros(1))
    with pytest.raises(ValueError, match="one value a row"):
        soft_mse_sum(torch.zeros(4, 2), torch.zeros(4, 2))
    for distance in (hidden_mse_sum, hidden_cosine_sum):
        with pytest.raises(ValueError, match=r"\(3, 5, 4\), \(3, 5, 6\) and \(3, 5\)"):
            distance(states_of(0), states_of(0, width=6), torch.ones(3, 5))
        with pytest.raises(ValueError, match=r"mask \(rows, length\)"):
            distance(states_of(0), states_of(1), torch.ones(3, 1))
