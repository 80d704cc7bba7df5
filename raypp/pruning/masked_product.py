"""The product of a weight and its mask, and the gradients of that product, on any device.

On a GPU, each is one kernel (`raypp/gpu/triton_kernels.py`), which reads and writes every number once. On a CPU, so is
the product with a boolean mask in float32 or bfloat16 (`raypp/cpu/kernels.py`). In all other cases, and without a C
compiler, plain torch needs more passes. The result is the same: a multiplication also where the mask is 0 (infinity
gives NaN, and a negative weight -0.0), in at least float32, rounded once to the type of the result.

The selection (`masks.py`) remains a separate pass. It is known only after counting whether a comparison with the
threshold keeps the requested number, and if scores tie, as they do after the first Adam step, the mask changes then. A
product computed in the same pass would have to be computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raypp.cpu import kernels as cpu_kernels
from raypp.gpu import kernels as gpu_kernels


def multiply(weight: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    """Writes weight * mask into `out` and returns it; no gradient is recorded.

    Args:
        weight: floating point, of any layout.
        mask: bool or floating point, shaped as the weight, of any layout.
        out: floating point, shaped as the weight, contiguous. Its type is that of the following matrix multiplication,
            so that no conversion is needed.
    """
    if (kernels := gpu_kernels.kernels_for(weight)) is not None:
        kernels.multiply(weight, mask, out)
    elif mask.dtype == torch.bool and (compiled := cpu_kernels.kernels_for(weight, mask, or_bfloat16=out)) is not None:
        compiled.multiply(weight, mask, out)
    elif mask.dtype == torch.bool and out.dtype == weight.dtype:
        return out.copy_(mask).mul_(weight)  # torch's product of two types would make a converted copy of the mask
    else:
        # The promotion matters if weight and result have two low precisions: torch would round to both.
        return torch.mul(weight.to(torch.promote_types(weight.dtype, out.dtype)), mask, out=out)
    # As torch's own in-place operations do, because `out` may have been saved by autograd.
    torch.autograd.graph.increment_version(out)
    return out


def gradients(
    gradient: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    gate_slope: Tensor | None,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the weight and of the scores, from the gradient of the product.

    Args:
        gradient: d loss / d product, of any layout.
        weight: shaped as the gradient; None if the scores need no gradient.
        mask: shaped as the gradient; None if the weight needs no gradient.
        gate_slope: d mask / d scores for gates; None for the straight-through estimator, which replaces it by 1.
        dtypes: types of the weight and of the scores, which their gradients have, too.

    Returns:
        gradient * mask and gradient * weight * gate_slope; None for one that is not needed.
    """
    if (kernels := gpu_kernels.kernels_for(gradient)) is not None:
        found: tuple[Tensor | None, Tensor | None] = kernels.gradients(gradient, weight, mask, gate_slope, dtypes)
        return found
    if weight is not None and mask is not None and dtypes == (torch.float32, torch.float32):
        factors = [weight, mask] if gate_slope is None else [weight, mask, gate_slope]
        compiled = cpu_kernels.kernels_for(*factors, or_bfloat16=gradient)
        if compiled is not None and (mask.dtype == torch.bool) == (gate_slope is None):
            return compiled.gradients(gradient, weight, mask, gate_slope)
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    for_weight = None
    if mask is not None:
        # The mask is converted here, as in `multiply`.
        is_bool = mask.dtype == torch.bool
        for_weight = torch.empty_like(wide).copy_(mask).mul_(wide) if is_bool else wide * mask
        for_weight = for_weight.to(dtypes[0])
    if weight is None:
        return for_weight, None
    for_scores = wide * weight
    if gate_slope is not None:
        for_scores *= gate_slope
    return for_weight, for_scores.to(dtypes[1])
