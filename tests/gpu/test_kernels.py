"""The Triton kernels are compiled for GPUs, which needs no GPU, and are not used where they do not work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from triton_place import Place, kernels_of_own_triton, needs_triton

from raypp.gpu.kernels import check_kernels


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return kernels_of_own_triton(False, monkeypatch)


def ptx_of(kernel: Any, capability: int, *operands: str | None, **constants: Any) -> str:
    """The compiled text for operands of these types; None for an absent one. Pointers and sizes are multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    given: dict[str, str | None] = dict(zip(kernel.arg_names, operands, strict=False))
    signature = {name: given.get(name) or "constexpr" for name in kernel.arg_names}
    values = {
        (place,): constants.get(name) for place, (name, kind) in enumerate(signature.items()) if kind == "constexpr"
    }
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind != "constexpr"
    }
    compiled = compile(ASTSource(kernel, signature, values, aligned), target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    text = compiled.asm["ptx"]
    assert isinstance(text, str)
    assert ".ftz" not in text, "small numbers are not made 0"
    return text


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_for_products_compile_for_a_gpu(capability: int, kernels: ModuleType) -> None:
    def ptx(kernel: Any, *operands: str | None) -> str:
        pointers = [operand and f"*{operand}" for operand in operands]
        return ptx_of(kernel, capability, *pointers, "i32", wide=kernels.tl.float32, block=kernels.BLOCK)

    # A program of 128 threads has 8 numbers per thread: two wide loads for float32, one for 16 bits, half of one for
    # bool.
    product = ptx(kernels._multiply, "fp32", "i1", "bf16")
    assert product.count("cvt.rn.bf16x2.f32") == 4, "rounded to nearest"
    assert (product.count("ld.global"), product.count("st.global")) == (3, 1)
    straight_through = ptx(kernels._gradients, "fp32", "fp32", "i1", None, "fp32", "fp32")
    assert (straight_through.count("ld.global"), straight_through.count("st.global")) == (5, 4)
    gates = ptx(kernels._gradients, "bf16", "fp32", "fp32", "fp32", "fp32", "fp32")
    assert (gates.count("ld.global"), gates.count("st.global")) == (7, 4)
    scores_frozen = ptx(kernels._gradients, "fp32", None, "i1", None, "fp32", None)
    assert (scores_frozen.count("ld.global"), scores_frozen.count("st.global")) == (3, 2)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_for_selections_and_gates_compile_for_a_gpu(capability: int, kernels: ModuleType) -> None:
    tiles = {"tile": kernels.TILE, "block": kernels.BLOCK, "is_aligned": True}
    i64, fp32 = "*i64", "*fp32"
    for shift in (24, 0):
        digit = {"shift": shift, "bits": kernels.DIGIT_BITS}
        counted = ptx_of(kernels._count_digits, capability, *[i64] * 5, **digit, **tiles)
        assert "ld.global.v4" in counted
        ptx_of(kernels._choose_digits, capability, *[i64] * 3, fp32, **digit)
    ptx_of(kernels._clear, capability, i64)
    for tied in (i64, None):
        listing = {"max_listed": kernels.MAX_LISTED}
        marked = ptx_of(kernels._mark, capability, *[i64] * 4, fp32, i64, tied, **listing, **tiles)
        assert "ld.global.v4" in marked
        assert "st.global.b32" in marked or "st.global.v2" in marked, "several masks at a time"
    chunk = {"chunk_words": 4096, "warm_up": 18, "tile": kernels.WARP * 4096, "block": kernels.WARP}
    ptx_of(kernels._draw, capability, *[i64] * 3, **chunk, is_aligned=True)
    for lift in (None, fp32):
        gates = {"low": -0.1, "stretch": 1.2, "margin": 1e-4}
        sampled = ptx_of(kernels._sample_gates, capability, *[i64] * 5, lift, **gates, **tiles)
        assert "ld.global.v4" in sampled
        assert "st.global.v4" in sampled


@needs_triton
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_kernels_that_compute_something_else_are_not_used(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device(place.device)
    check_kernels(place.kernels, device)
    monkeypatch.setattr(place.kernels, "WARM_UP", 17)
    monkeypatch.setattr(place.kernels, "DIGIT_BITS", 5)  # leaves two bits out
    with pytest.raises(RuntimeError, match=r"^wrong results of select_largest, sample_gates$"):
        check_kernels(place.kernels, device)


@needs_triton
def test_on_a_cpu_triton_is_not_imported_and_a_failure_on_a_gpu_gives_a_warning() -> None:
    """In a separate process without GPU. The kernels are requested directly, because only a tensor on a GPU does that,
    and they fail without a GPU."""
    script = (
        "import logging, sys, torch\n"
        "from raypp.gpu import kernels\n"
        "from raypp.pruning.linear import MaskedLinear\n"
        "logging.basicConfig(format='%(message)s', stream=sys.stdout)\n"
        "layer = MaskedLinear.from_linear(torch.nn.Linear(65, 33), torch.randn(33, 65))\n"
        "layer.mask = torch.rand(33, 65) > 0.5\n"
        "layer(torch.randn(3, 65)).sum().backward()\n"
        "print(layer.mask_scores.grad is not None, 'triton' in sys.modules)\n"
        "print(kernels._working_kernels(), 'triton' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    on_a_cpu, warning, *_, on_a_gpu = ran.stdout.splitlines()
    assert on_a_cpu == "True False"
    assert warning.startswith("Triton does not work on this machine, so pruning takes more passes: ")
    assert on_a_gpu == "None True"
