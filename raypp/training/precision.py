"""The arithmetic of forward and backward passes: `train.precision`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# torch's names of the CPU instructions that multiply bfloat16: those of Intel and AMD, and that of Arm.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def build_precision(
    name: str, device: torch.device
) -> tuple[Callable[[], contextlib.AbstractContextManager[Any]], torch.amp.GradScaler]:
    """The context of a forward pass, and the scaler that keeps float16's small gradients."""
    scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")
    if name == "float32":
        return contextlib.nullcontext, scaler
    return lambda: torch.autocast(device.type, AUTOCAST[name]), scaler


def slow_precision(name: str, device: torch.device) -> str | None:
    """A message for the user if the precision is slower than float32 on this device; None otherwise."""
    if name != "bfloat16" or device.type != "cpu":
        return None
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch, which cannot tell
        return None
    capabilities = torch.cpu.get_capabilities()
    if any(capabilities.get(instructions) for instructions in BFLOAT16_INSTRUCTIONS):
        return None
    return (
        "train.precision: bfloat16 is slower than float32 on this CPU, which has no instructions for it (AVX512-BF16, "
        "AMX; Arm's BF16)"
    )
