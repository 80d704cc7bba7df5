"""Soft losses (the teacher's logits) and hard losses (the labels), as sums over examples.

Sums, not means: a micro-batch's share of the loss is its sum divided by the global batch's number of examples, so
uneven shares weigh right. The count that belongs to each sum is the number of rows, `len(logits)`. All are computed in
float32, whatever the logits' dtype, and return a float32 scalar.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def soft_cross_entropy_sum(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Soft loss of classification: temperature**2 * KL(teacher || student), summed over rows.

    Both distributions are softened by the temperature; its square keeps the gradient's size (Hinton et al. 2015,
    section 2). Divided by the number of rows it is the original's `batchmean` loss.

    Args:
        student_logits: (rows, classes).
        teacher_logits: (rows, classes), in the same order of labels; gets no gradient.
        temperature: above 0.

    Raises:
        ValueError: shapes that differ, or a single class, of which the divergence is always 0.
    """
    if student_logits.shape != teacher_logits.shape or student_logits.ndim != 2:
        raise ValueError(
            f"student and teacher logits must both be (rows, classes), got {tuple(student_logits.shape)} and "
            f"{tuple(teacher_logits.shape)}"
        )
    if student_logits.shape[1] < 2:
        raise ValueError("one logit has no distribution to follow; regression needs soft_mse_sum")
    log_student = functional.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = functional.softmax(teacher_logits.detach().float() / temperature, dim=-1)
    return functional.kl_div(log_student, teacher, reduction="sum") * temperature**2


def soft_mse_sum(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Soft loss of regression: squared distance to the teacher's value, summed over rows; (rows,) or (rows, 1) each."""
    return _squared_error_sum(student_logits, teacher_logits.detach())


def hard_cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Hard loss of classification: cross entropy of (rows, classes) logits with (rows,) class numbers, summed."""
    return functional.cross_entropy(logits.float(), labels, reduction="sum")


def hard_mse_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Hard loss of regression: squared error, summed over rows; logits and labels (rows,) or (rows, 1) each."""
    return _squared_error_sum(logits, labels)


def _squared_error_sum(values: Tensor, targets: Tensor) -> Tensor:
    # Flattened first: (rows, 1) against (rows,) would broadcast to (rows, rows).
    flat = [_one_column(tensor) for tensor in (values, targets)]
    if flat[0].shape != flat[1].shape:
        raise ValueError(f"as many values as targets are needed, got {tuple(values.shape)} and {tuple(targets.shape)}")
    return functional.mse_loss(flat[0], flat[1], reduction="sum")


def _one_column(tensor: Tensor) -> Tensor:
    if tensor.ndim == 1 or (tensor.ndim == 2 and tensor.shape[1] == 1):
        return tensor.float().reshape(-1)
    raise ValueError(f"regression has one value a row, (rows,) or (rows, 1), got {tuple(tensor.shape)}")
