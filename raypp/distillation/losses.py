"""Losses as sums over rows: soft (the teacher's logits), hard (the labels) and hidden (the teacher's hidden states).

A row is an example or, for a language model, a token. They are sums and not means, because a micro-batch's part of the
loss is its sum divided by the number of rows in the global batch (`data.examples.Counts`); so shares of different sizes
get the right weights. All losses are computed in float32, whatever the dtype of their arguments, and return a float32
scalar.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def soft_cross_entropy_sum(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Soft loss of classification: temperature**2 * KL(teacher || student), summed over rows.

    Both distributions are softened by the temperature; its square keeps the gradient's size (Hinton et al. 2015,
    section 2). Divided by the number of rows, it is the original's `batchmean` loss.

    Args:
        student_logits: (rows, classes).
        teacher_logits: (rows, classes), in the same order of labels; gets no gradient.
        temperature: above 0.

    Raises:
        ValueError: the shapes differ, or there is a single class, for which the divergence is always 0.
    """
    _same_logits(student_logits, teacher_logits)
    if student_logits.shape[1] < 2:
        raise ValueError("one logit has no distribution to follow; regression needs soft_mse_sum")
    log_student = functional.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = functional.softmax(teacher_logits.detach().float() / temperature, dim=-1)
    return functional.kl_div(log_student, teacher, reduction="sum") * temperature**2


def soft_mse_sum(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Soft loss of regression: squared error to the teacher's value, summed over rows.

    Args:
        student_logits: (rows,) or (rows, 1).
        teacher_logits: (rows,) or (rows, 1); gets no gradient.

    Raises:
        ValueError: there are several values per row, or the numbers of rows differ.
    """
    return _squared_error_sum(student_logits, teacher_logits.detach())


def logits_mse_sum(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Squared error of logits, its mean over classes, summed over rows.

    Args:
        student_logits: (rows, classes).
        teacher_logits: (rows, classes); gets no gradient.

    Raises:
        ValueError: the shapes differ.
    """
    _same_logits(student_logits, teacher_logits)
    return (student_logits.float() - teacher_logits.detach().float()).square().mean(dim=1).sum()


def hard_cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Hard loss of classification: cross entropy, summed over rows.

    Args:
        logits: (rows, classes).
        labels: (rows,), class numbers; rows with -100 are ignored.
    """
    return functional.cross_entropy(logits.float(), labels, reduction="sum")


def hard_mse_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Hard loss of regression: squared error, summed over rows.

    Args:
        logits: (rows,) or (rows, 1).
        labels: (rows,) or (rows, 1).

    Raises:
        ValueError: there are several values per row, or the numbers of rows differ.
    """
    return _squared_error_sum(logits, labels)


def hidden_mse_sum(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Hidden loss of one pair of layers: squared error, its mean over a row's real tokens and the width, summed over
    rows (Jiao et al. 2020, eq. 8, without padding).

    Args:
        student: (rows, length, width) hidden states.
        teacher: the same shape; gets no gradient.
        mask: (rows, length), 1 at real tokens and 0 at padding, which is ignored.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = _same_states(student, teacher, mask)
    return _token_mean_sum((student - teacher).square().mean(dim=-1), mask)


def hidden_cosine_sum(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Hidden loss of one pair of layers: 1 - the cosine similarity of a token's two states, its mean over a row's real
    tokens, summed over rows (Sanh et al. 2019, section 2). Arguments and errors as in `hidden_mse_sum`."""
    student, teacher = _same_states(student, teacher, mask)
    return _token_mean_sum(1.0 - functional.cosine_similarity(student, teacher, dim=-1), mask)


def _same_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape or student_logits.ndim != 2:
        raise ValueError(
            f"student and teacher logits must both be (rows, classes), got {tuple(student_logits.shape)} and "
            f"{tuple(teacher_logits.shape)}"
        )


def _same_states(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape or student.ndim != 3 or mask.shape != student.shape[:2]:
        raise ValueError(
            f"hidden states must both be (rows, length, width) with a mask (rows, length), got {tuple(student.shape)}, "
            f"{tuple(teacher.shape)} and {tuple(mask.shape)}"
        )
    return student.float(), teacher.detach().float()


def _token_mean_sum(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over each row's real tokens of (rows, length) values, summed over rows."""
    real = mask.to(values.dtype)
    return ((values * real).sum(dim=1) / real.sum(dim=1)).sum()


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
