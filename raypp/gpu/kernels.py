"""Finds out whether the Triton kernels (`triton_kernels.py`) can be used, which plain torch replaces otherwise.

Callers ask `kernels_for`, and compute the same in plain torch where it returns None; tests compare the two.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from raypp.noise import random_bits

logger = logging.getLogger("raypp")


def kernels_for(*tensors: Tensor) -> ModuleType | None:
    """The module with the kernels, if all tensors are on GPUs; otherwise None."""
    return _working_kernels() if all(tensor.is_cuda for tensor in tensors) else None


def float32_kernels_for(*tensors: Tensor) -> ModuleType | None:
    """The module with the kernels, if all tensors are float32 on GPUs, as selections and gates need; otherwise None."""
    return kernels_for(*tensors) if all(tensor.dtype == torch.float32 for tensor in tensors) else None


@functools.cache
def _working_kernels() -> ModuleType | None:
    """Imports the Triton kernels and tries them; None, with a warning that is logged once, if they do not work.

    Called only with a GPU, because Triton takes long to import and comes only with torch's CUDA builds. On first use it
    compiles its connection to the driver, with the machine's C compiler and Python's headers; without them, training
    works with plain torch.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    from raypp.gpu import triton_kernels

    try:
        check_kernels(triton_kernels, torch.device("cuda"))
    except (
        Exception
    ) as error:  # of many types: no compiler, a compiler that fails, a GPU that is too old, wrong results
        logger.warning("Triton does not work on this machine, so pruning takes more passes: %s", error)
        return None
    return triton_kernels


def check_kernels(kernels: ModuleType, device: torch.device) -> None:
    """Compares every kernel with plain torch on a few numbers, which also compiles it as training uses it.

    Raises:
        RuntimeError: a kernel computes something else; names the kernels.
        Exception: of any type, from a compiler or a driver that does not work.
    """
    size, seed = 4096, 2**62 + 1  # a multiple of 16, as the sizes of real matrices are
    scores = torch.arange(-size // 2, size // 2, device=device).float() / 1024
    kept = scores >= 0.5
    count, threshold = kept.sum().view(1), scores[kept][:1]
    product = torch.empty_like(scores)
    kernels.multiply(scores, kept, product)
    gradients = kernels.gradients(scores, scores, kept, None, (torch.float32, torch.float32))
    thresholds, selected, selected_counts, tied = kernels.select_largest([[scores]], [int(count)])
    index = torch.arange(size, device=device)
    cleared = torch.ones_like(kept)
    kernels.clear([cleared], [(0, 7), (0, size - 1)])
    above, above_counts = kernels.mark_above([scores], 0.4999)
    ((gates, slopes),) = kernels.sample_gates([scores], [seed], None, (0.0, 1.0), 1e-4)
    uniform = (torch.from_numpy(random_bits(size, seed).astype(np.float32)).to(device) + 0.5) / 65536
    sigmoid = torch.sigmoid((torch.logit(uniform, eps=1e-4) + scores) * 1.5)
    results = {
        "multiply": [(product, scores * kept)],
        "gradients": [(gradients[0], scores * kept), (gradients[1], scores * scores)],
        "select_largest": [
            (thresholds, threshold),
            (selected[0], kept),
            (selected_counts, count),
            (tied[:2], torch.stack([torch.ones_like(index[0]), index[kept][0]])),
        ],
        "clear": [(cleared, (index != 7) & (index != size - 1))],
        "mark_above": [(above[0], kept), (above_counts, count)],
        "sample_gates": [(gates, sigmoid), (slopes, 1.5 * sigmoid * (1 - sigmoid))],
    }
    wrong = [
        name
        for name, pairs in results.items()
        if not all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)
    ]
    if wrong:
        raise RuntimeError(f"wrong results of {', '.join(wrong)}")
