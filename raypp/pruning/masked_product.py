"""The product of a weight and its mask, and both gradients of that product: one function each for every device.

On a GPU each runs as one kernel (`triton_kernels.py`), which reads and writes every number once, and so does a boolean
mask's product in float32 or bfloat16 on a CPU (`cpu/kernels.py`). Elsewhere, and where there is no C compiler, plain
torch does the same in more passes. What is computed does not depend on that: a multiplication also where the mask is 0
(infinity gives NaN, a negative weight -0.0), in float32 at least, rounded once to the type of the result.

The selection stays a pass of its own (`masks.py`): whether a comparison with the threshold keeps the requested number
is known only after counting, and where scores tie, as they do after the first Adam step, its mask is changed then. A
product made in the same pass would have to be made again.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from types import ModuleType

import torch
from torch import Tensor

from raypp.cpu import kernels as cpu_kernels

logger = logging.getLogger("raypp")


def multiply(weight: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    """Writes weight * mask into `out` and returns it; no gradient is recorded.

    Args:
        weight: floating point, of any layout.
        mask: bool or floating point, shaped as the weight, of any layout.
        out: floating point, of any type: that of the matrix multiplication, so that nothing need convert it;
            shaped as the weight, contiguous.
    """
    if (kernels := _kernels_for(weight)) is not None:
        kernels.multiply(weight, mask, out)
    elif mask.dtype == torch.bool and (compiled := cpu_kernels.kernels_for(weight, mask, or_bfloat16=out)) is not None:
        compiled.multiply(weight, mask, out)
    elif mask.dtype == torch.bool and out.dtype == weight.dtype:
        return out.copy_(mask).mul_(weight)  # torch's product of two types makes a converted copy of the mask
    else:
        # The promotion matters where weight and result are two low precisions; else torch would round to the first too.
        return torch.mul(weight.to(torch.promote_types(weight.dtype, out.dtype)), mask, out=out)
    # As torch's own in-place operations do: what autograd saved of `out` is no longer what it was.
    torch.autograd.graph.increment_version(out)
    return out


def gradients(
    gradient: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    gate_slope: Tensor | None,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients that the product's gradient gives to the weight and to the scores.

    Args:
        gradient: d loss / d product, of any layout.
        weight: shaped as the gradient; None where the scores need no gradient.
        mask: shaped as the gradient; None where the weight needs no gradient.
        gate_slope: d mask / d scores for gates; None for the straight-through estimator, which takes it for 1.
        dtypes: of the weight and of the scores, and so of their gradients.

    Returns:
        gradient * mask and gradient * weight * gate_slope.
    """
    kernels = _kernels_for(gradient)
    if kernels is not None:
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
        # Converted here, as in `multiply`.
        is_bool = mask.dtype == torch.bool
        for_weight = torch.empty_like(wide).copy_(mask).mul_(wide) if is_bool else wide * mask
        for_weight = for_weight.to(dtypes[0])
    if weight is None:
        return for_weight, None
    for_scores = wide * weight
    if gate_slope is not None:
        for_scores *= gate_slope
    return for_weight, for_scores.to(dtypes[1])


def _kernels_for(tensor: Tensor) -> ModuleType | None:
    """The module that computes on this tensor's device with Triton; None where plain torch does."""
    return _working_kernels() if tensor.is_cuda else None


@functools.cache
def _working_kernels() -> ModuleType | None:
    """Imported where there is a GPU only: Triton takes long to import, and comes with torch's CUDA builds alone.

    Triton compiles its connection to the driver on first use, with the machine's C compiler and Python's headers. A
    machine without them trains all the same, which is said once.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    from raypp.pruning import triton_kernels

    try:
        probe = torch.ones(1, device="cuda")
        triton_kernels.multiply(probe, probe, torch.empty_like(probe))
    except Exception as error:  # of many kinds: no compiler, a compiler that fails, a GPU too old
        logger.warning("Triton does not work here, so masks are applied in several passes: %s", error)
        return None
    return triton_kernels
