"""Precisions of the forward pass, and the warning about one that is slow on a CPU."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from raypp.training.precision import build_precision, slow_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("instructions", "slow"),
    [
        ({"avx512_f"}, True),
        ({"avx2"}, True),
        ({"neon"}, True),
        ({"avx512_f", "avx512_bf16"}, False),
        ({"amx_bf16"}, False),
        ({"neon", "bf16"}, False),
    ],
)
def test_bfloat16_is_slow_where_the_cpu_has_no_instructions_for_it(
    instructions: set[str], slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "bf16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: name in instructions for name in names})
    said = slow_precision("bfloat16", CPU)
    assert (said is not None) == slow
    assert said is None or said.startswith("train.precision: bfloat16 is slower than float32 on this CPU")
    assert slow_precision("float32", CPU) is None
    assert slow_precision("bfloat16", torch.device("cuda")) is None


@pytest.mark.skipif(platform.machine() != "x86_64" or not Path("/proc/cpuinfo").is_file(), reason="reads Linux's flags")
def test_the_instructions_are_those_that_linux_sees() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert (slow_precision("bfloat16", CPU) is None) == bool(flags & {"avx512_bf16", "amx_bf16"})


def test_products_have_the_requested_precision() -> None:
    one = torch.ones(2, 2)
    for name in ("float32", "bfloat16", "float16"):
        context, scaler = build_precision(name, CPU)
        with context():
            assert (one @ one).dtype == getattr(torch, name)
        assert scaler.is_enabled() == (name == "float16")
