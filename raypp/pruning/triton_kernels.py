"""Triton kernels of `masked_product.py` for a GPU. Each reads its operands once and writes its results once.

This module is imported only if Triton is installed. Numbers are read in their own type and multiplied in float32, or in
float64 if an operand is float64. Operands that are not contiguous are copied first: a transformer's weights and
gradients are contiguous, so strides are not worth a slower kernel.

Parameters of kernels are annotated with Triton's own types, because Triton reads the annotations.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # numbers per program: eight per thread, two 16-byte loads of float32


def multiply(weight: Tensor, mask: Tensor, out: Tensor) -> None:
    """See `masked_product.multiply`."""
    assert out.is_contiguous()
    assert weight.shape == mask.shape == out.shape
    _launch(_multiply, out, weight.contiguous(), mask.contiguous(), out, wide=_wide(weight, mask))


def gradients(
    gradient: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    gate_slope: Tensor | None,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> tuple[Tensor | None, Tensor | None]:
    """See `masked_product.gradients`."""
    operands = [None if tensor is None else tensor.contiguous() for tensor in (gradient, weight, mask, gate_slope)]
    assert all(operand is None or operand.shape == gradient.shape for operand in operands)
    for_weight = None if mask is None else gradient.new_empty(gradient.shape, dtype=dtypes[0])
    for_scores = None if weight is None else gradient.new_empty(gradient.shape, dtype=dtypes[1])
    if for_weight is not None or for_scores is not None:
        _launch(_gradients, gradient, *operands, for_weight, for_scores, wide=_wide(gradient, weight, mask, gate_slope))
    return for_weight, for_scores


def _launch(kernel: Any, like: Tensor, *arguments: Tensor | None, wide: Any) -> None:
    with torch.cuda.device_of(like):  # Triton launches on the current device, not on that of the tensors
        kernel[(triton.cdiv(like.numel(), BLOCK),)](*arguments, like.numel(), wide=wide, block=BLOCK)


def _wide(*operands: Tensor | None) -> Any:
    """The type to compute in."""
    is_double = any(operand is not None and operand.dtype == torch.float64 for operand in operands)
    return tl.float64 if is_double else tl.float32


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(
    weight: tl.tensor, mask: tl.tensor, out: tl.tensor, size: tl.tensor, wide: tl.constexpr, block: tl.constexpr
) -> None:
    """out = weight * mask, over `size` numbers."""
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = index < size
    product = tl.load(weight + index, mask=inside).to(wide) * tl.load(mask + index, mask=inside).to(wide)
    tl.store(out + index, product.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gradients(
    gradient: tl.tensor,
    weight: tl.tensor,
    mask: tl.tensor,
    gate_slope: tl.tensor,
    for_weight: tl.tensor,
    for_scores: tl.tensor,
    size: tl.tensor,
    wide: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """for_weight = gradient * mask, for_scores = gradient * weight * gate_slope; one that is None is not computed."""
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = index < size
    arriving = tl.load(gradient + index, mask=inside).to(wide)
    if for_weight is not None:
        product = arriving * tl.load(mask + index, mask=inside).to(wide)
        tl.store(for_weight + index, product.to(for_weight.dtype.element_ty), mask=inside)
    if for_scores is not None:
        product = arriving * tl.load(weight + index, mask=inside).to(wide)
        if gate_slope is not None:
            product *= tl.load(gate_slope + index, mask=inside).to(wide)
        tl.store(for_scores + index, product.to(for_scores.dtype.element_ty), mask=inside)
