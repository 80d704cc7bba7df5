"""Finds out whether the Triton kernels (`triton_kernels.py`) can be used, which plain torch replaces otherwise.

Callers ask `kernels_for`, and compute the same in plain torch where it returns None; tests compare the two.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger("raypp")


def kernels_for(*tensors: Tensor) -> ModuleType | None:
    """The module with the kernels, if all tensors are on GPUs; otherwise None."""
    return _working_kernels() if all(tensor.is_cuda for tensor in tensors) else None


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
        probe = torch.ones(1, device="cuda")
        triton_kernels.multiply(probe, probe, torch.empty_like(probe))
        triton_kernels.select_largest([[probe]], [1])
    except Exception as error:  # of many types: no compiler, a compiler that fails, a GPU that is too old
        logger.warning("Triton does not work on this machine, so pruning takes more passes: %s", error)
        return None
    return triton_kernels
