"""The C kernels in tests: where there is a C compiler there are kernels, or the tests that need them fail."""

from __future__ import annotations

import os
import platform
import shlex
import shutil

import pytest
import torch

from raypp.cpu import kernels as cpu_kernels
from raypp.cpu.kernels import Kernels

needs_compiler = pytest.mark.usefixtures("kernels")


def kernels_or_skip() -> Kernels:
    if platform.system() != "Linux":
        pytest.skip("the C kernels are for Linux")
    compiler = shlex.split(os.environ.get("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"no C compiler {compiler!r} on this machine; install one, or name it in the variable CC")
    found = cpu_kernels.kernels_for(torch.ones(1))
    assert found is not None, f"{compiler} does not compile the C kernels; raypp's warning says why"
    return found


def without_kernels(context: pytest.MonkeyPatch) -> None:
    """From now on plain torch computes everything, as on a machine without a compiler."""
    context.setattr(cpu_kernels, "kernels_for", lambda *tensors, **mixed: None)
