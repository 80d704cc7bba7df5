"""The masked product and its gradients: Triton's kernels against plain torch, by Triton's interpreter or on a GPU.

The interpreter runs a kernel on the CPU, one program after the other. Other tests compile the kernels for GPUs, which
needs no GPU.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from c_kernels import without_kernels
from torch import Tensor, nn

from raypp.pruning import masked_product
from raypp.pruning.gates import hard_concrete
from raypp.pruning.linear import MaskedLinear

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is for Linux")

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Numbers of one program, of exactly two, and of two with a rest.
SHAPES = [(1, 1), (5, 7), (32, 64), (33, 65)]
MASKS = ["bool", "float32 gates", "own gates"]
LAYOUTS = ["rows", "transposed", "every second"]
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3e38, -3e-6]
SUBNORMAL = [1e-40, -1e-40]


def kernels_as_imported_now() -> ModuleType:
    """A separate copy of the kernels' module, because importing it decides whether Triton interprets the kernels."""
    spec = importlib.util.find_spec("raypp.pruning.triton_kernels")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "cuda":
        return Place(kernels_as_imported_now(), "cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return Place(kernels_as_imported_now(), "cpu")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plain torch on every device."""
    with monkeypatch.context() as context:
        context.setattr(masked_product, "_kernels_for", lambda tensor: None)
        without_kernels(context)
        yield


def numbers(shape: tuple[int, int], seed: int, dtype: torch.dtype, device: str) -> Tensor:
    """Normal numbers with a special one at every seventh place; the interpreter reads subnormal bfloat16 as 0."""
    special = SPECIAL if dtype == torch.bfloat16 else SPECIAL + SUBNORMAL
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).flatten()
    for place in range(0, len(values), 7):
        values[place] = special[(place // 7 + seed) % len(special)]
    return values.view(shape).to(device, dtype)


def mask_of(kind: str, shape: tuple[int, int], dtype: torch.dtype, device: str) -> Tensor:
    """A boolean mask, or gates (some of them 0 or 1) in float32 or in the weight's type."""
    gates = torch.rand(shape, generator=torch.Generator().manual_seed(5)).mul_(1.4).sub_(0.2).clamp_(0, 1).to(device)
    return {"bool": gates > 0.5, "float32 gates": gates, "own gates": gates.to(dtype)}[kind]


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "transposed":
        return tensor.t().contiguous().t()
    if layout == "every second":
        return torch.stack([tensor, torch.zeros_like(tensor)], dim=2).flatten(1)[:, ::2]
    return tensor


@needs_triton
@pytest.mark.usefixtures("plain")
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's warning about infinity * 0
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_kernel_multiplies_as_torch_does(place: Place, dtype: torch.dtype) -> None:
    # bfloat16 is what autocast asks for; the interpreter cannot convert float64 to it.
    out_dtypes = {dtype, torch.float16, *([torch.bfloat16] if dtype != torch.float64 else [])}
    cases = [((33, 65), "rows", kind, out_dtype) for kind in MASKS for out_dtype in out_dtypes]
    cases += [(shape, "rows", "bool", dtype) for shape in SHAPES]
    cases += [((33, 65), layout, "own gates", dtype) for layout in LAYOUTS]
    for shape, layout, kind, out_dtype in cases:
        weight, mask = numbers(shape, 1, dtype, place.device), mask_of(kind, shape, dtype, place.device)
        expected = masked_product.multiply(weight, mask, torch.empty_like(weight, dtype=out_dtype))
        found = torch.full_like(expected, 7)
        place.kernels.multiply(laid_out(weight, layout), laid_out(mask, layout), found)
        place.assert_same(found, expected)


@needs_triton
@pytest.mark.usefixtures("plain")
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sloped", [False, True])
def test_the_kernel_gives_both_gradients_as_torch_does(place: Place, dtype: torch.dtype, sloped: bool) -> None:
    both, same = (True, True), (dtype, dtype)
    cases = [((33, 65), "rows", kind, both, dtypes) for kind in MASKS for dtypes in {same, (dtype, torch.float32)}]
    cases += [((33, 65), "rows", "bool", needed, same) for needed in ((True, False), (False, True), (False, False))]
    cases += [(shape, "rows", "bool", both, same) for shape in SHAPES]
    cases += [((33, 65), layout, "own gates", both, same) for layout in LAYOUTS]
    for shape, layout, kind, (needs_weight, needs_scores), dtypes in cases:
        gradient = numbers(shape, 2, dtype, place.device)
        weight = numbers(shape, 1, dtype, place.device) if needs_scores else None
        mask = mask_of(kind, shape, dtype, place.device) if needs_weight else None
        slope = numbers(shape, 3, torch.float32, place.device) if sloped else None
        expected = masked_product.gradients(gradient, weight, mask, slope, dtypes)
        operands = [None if each is None else laid_out(each, layout) for each in (gradient, weight, mask, slope)]
        found = place.kernels.gradients(*operands, dtypes)
        for one, other in zip(found, expected, strict=True):
            place.assert_same(one, other)


def masked_layer(device: str, dtype: torch.dtype, mask: str) -> MaskedLinear:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(65, 33, dtype=dtype)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    scores = None if mask == "no scores" else torch.randn(33, 65, generator=generator, dtype=dtype)
    layer = MaskedLinear.from_linear(linear, scores).to(device)
    layer.mask = (torch.rand(33, 65, generator=generator) > 0.5).to(device)
    if mask == "gates":
        layer.set_gates(*hard_concrete(layer.mask_scores, torch.rand(33, 65, generator=generator).to(device)))
    return layer


def train(layer: MaskedLinear, device: str, autocast: bool, frozen: str) -> list[Tensor | None]:
    """Two micro-batches, a step of SGD and another micro-batch: the outputs, parameters and gradients."""
    if frozen:
        layer.get_parameter(frozen).requires_grad_(False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    seen: list[Tensor | None] = []
    for step in range(3):
        inputs = torch.randn(4, 3, 65, generator=torch.Generator().manual_seed(step)).to(device, layer.weight.dtype)
        with torch.autocast(device, torch.float16, enabled=autocast):
            outputs = layer(inputs)
        outputs.float().sin().sum().backward()
        seen.append(outputs.detach())
        if step == 1:
            optimizer.step()
    return seen + [value for parameter in layer.parameters() for value in (parameter.detach(), parameter.grad)]


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.float32, True), (torch.float16, False)], ids=str
)
@pytest.mark.parametrize("mask", ["bool", "gates", "no scores"])
@pytest.mark.parametrize("frozen", ["", "weight", "mask_scores"])
def test_a_masked_layer_trains_the_same_with_kernels(
    place: Place, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, autocast: bool, mask: str, frozen: str
) -> None:
    if mask == "no scores" and frozen == "mask_scores":
        frozen = "weight"
    with monkeypatch.context() as context:
        context.setattr(masked_product, "_kernels_for", lambda tensor: None)
        expected = train(masked_layer(place.device, dtype, mask), place.device, autocast, frozen)
    monkeypatch.setattr(masked_product, "_kernels_for", lambda tensor: place.kernels)
    found = train(masked_layer(place.device, dtype, mask), place.device, autocast, frozen)
    for one, other in zip(found, expected, strict=True):
        place.assert_same(one, other)


@needs_triton
def test_autograd_sees_that_a_kernel_wrote_a_new_product(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_product, "_kernels_for", lambda tensor: place.kernels)
    layer = masked_layer(place.device, torch.float32, "bool")
    inputs = torch.randn(3, 65, device=place.device, requires_grad=True)
    loss = layer(inputs).sum()
    layer.mask = ~layer.mask
    layer(inputs)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        loss.backward()


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_a_gpu(capability: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = kernels_as_imported_now()

    def ptx_of(kernel: Any, *operands: str | None) -> str:
        """The compiled text for operands of these types, aligned as torch's; None for an absent operand."""
        types = [*(operand and f"*{operand}" for operand in operands), "i32", None, None]
        values = {(at,): None for at, kind in enumerate(types) if kind is None}
        values |= {(len(types) - 2,): kernels.tl.float32, (len(types) - 1,): kernels.BLOCK}
        signature = {name: kind or "constexpr" for name, kind in zip(kernel.arg_names, types, strict=True)}
        aligned = {(at,): [["tt.divisibility", 16]] for at, kind in enumerate(types) if kind is not None}
        compiled = compile(ASTSource(kernel, signature, values, aligned), target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"]
        text = compiled.asm["ptx"]
        assert isinstance(text, str)
        assert ".ftz" not in text, "small numbers are not made 0"
        return text

    # A program of 128 threads has 8 numbers per thread: two wide loads for float32, one for 16 bits, half of one for
    # bool.
    product = ptx_of(kernels._multiply, "fp32", "i1", "bf16")
    assert product.count("cvt.rn.bf16x2.f32") == 4, "rounded to nearest"
    assert (product.count("ld.global"), product.count("st.global")) == (3, 1)
    straight_through = ptx_of(kernels._gradients, "fp32", "fp32", "i1", None, "fp32", "fp32")
    assert (straight_through.count("ld.global"), straight_through.count("st.global")) == (5, 4)
    gates = ptx_of(kernels._gradients, "bf16", "fp32", "fp32", "fp32", "fp32", "fp32")
    assert (gates.count("ld.global"), gates.count("st.global")) == (7, 4)
    scores_frozen = ptx_of(kernels._gradients, "fp32", None, "i1", None, "fp32", None)
    assert (scores_frozen.count("ld.global"), scores_frozen.count("st.global")) == (3, 2)


@needs_triton
def test_on_a_cpu_triton_is_not_imported_and_a_failure_on_a_gpu_gives_a_warning() -> None:
    """In a separate process without GPU. The kernels are requested directly, because only a tensor on a GPU does that,
    and they fail without a GPU."""
    script = (
        "import logging, sys, torch\n"
        "from raypp.pruning import masked_product\n"
        "from raypp.pruning.linear import MaskedLinear\n"
        "logging.basicConfig(format='%(message)s', stream=sys.stdout)\n"
        "layer = MaskedLinear.from_linear(torch.nn.Linear(65, 33), torch.randn(33, 65))\n"
        "layer.mask = torch.rand(33, 65) > 0.5\n"
        "layer(torch.randn(3, 65)).sum().backward()\n"
        "print(layer.mask_scores.grad is not None, 'triton' in sys.modules)\n"
        "print(masked_product._working_kernels(), 'triton' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    on_a_cpu, warning, *_, on_a_gpu = ran.stdout.splitlines()
    assert on_a_cpu == "True False"
    assert warning.startswith("Triton does not work on this machine, so masks are applied in several passes: ")
    assert on_a_gpu == "None True"
