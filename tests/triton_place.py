"""Triton's kernels in tests, by Triton's interpreter or on a GPU.

The interpreter runs a kernel on the CPU, one program after the other.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is for Linux")


def kernels_of_own_triton(interpreted: bool, context: pytest.MonkeyPatch) -> ModuleType:
    """The kernels' module, with a Triton that interprets kernels or compiles them, until the context ends.

    Triton decides this when it is imported, for its own functions too, so there is a separate copy for each.
    """
    context.setenv("TRITON_INTERPRET", "1" if interpreted else "0")
    modules = _modules_of(interpreted)
    for name in _triton_modules():
        context.delitem(sys.modules, name)
    for name, module in modules.items():
        context.setitem(sys.modules, name, module)
    return modules["raypp.gpu.triton_kernels"]


@functools.cache
def _modules_of(interpreted: bool) -> dict[str, ModuleType]:
    """A copy of Triton's modules and of the kernels', imported now, and every module that Triton imports later."""
    before = {name: sys.modules.pop(name) for name in _triton_modules()}
    importlib.import_module("raypp.gpu.triton_kernels")
    importlib.import_module("triton.compiler")
    importlib.import_module("triton.backends.compiler")
    imported = {name: sys.modules.pop(name) for name in _triton_modules()}
    sys.modules.update(before)
    return imported


def _triton_modules() -> list[str]:
    """The names of the imported modules, without the compiled one, which cannot be imported twice."""
    own = ("triton.", "raypp.gpu.triton_kernels")
    return [name for name in sys.modules if f"{name}.".startswith(own) and not name.startswith("triton._C")]


@dataclass
class Place:
    """Kernels, and the device that they run on."""

    kernels: ModuleType
    device: str

    def assert_same(self, found: Tensor | None, expected: Tensor | None) -> None:
        """Compares bit by bit, except for the payload of NaN. The interpreter truncates to bfloat16 instead of
        rounding, so there the last place and subnormal numbers may differ, too."""
        if expected is None:
            assert found is None
            return
        assert found is not None
        assert found.dtype == expected.dtype
        if found.dtype == torch.bfloat16 and self.device == "cpu":
            smallest = torch.finfo(torch.bfloat16).smallest_normal
            torch.testing.assert_close(found, expected, rtol=2**-7, atol=smallest, equal_nan=True)
        else:
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(found.signbit() & ~found.isnan(), expected.signbit() & ~expected.isnan())
