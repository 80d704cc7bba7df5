"""The masked product and its gradients: Triton's kernels against plain torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from c_kernels import without_kernels
from torch import Tensor, nn
from triton_place import Place, needs_triton

from raypp.gpu import kernels as gpu_kernels
from raypp.pruning import masked_product
from raypp.pruning.gates import hard_concrete
from raypp.pruning.linear import MaskedLinear

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Numbers of one program, of exactly two, and of two with a rest.
SHAPES = [(1, 1), (5, 7), (32, 64), (33, 65)]
MASKS = ["bool", "float32 gates", "own gates"]
LAYOUTS = ["rows", "transposed", "every second"]
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3e38, -3e-6]
SUBNORMAL = [1e-40, -1e-40]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plain torch on every device."""
    with monkeypatch.context() as context:
        context.setattr(gpu_kernels, "kernels_for", lambda *tensors: None)
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
        context.setattr(gpu_kernels, "kernels_for", lambda *tensors: None)
        expected = train(masked_layer(place.device, dtype, mask), place.device, autocast, frozen)
    monkeypatch.setattr(gpu_kernels, "kernels_for", lambda *tensors: place.kernels)
    found = train(masked_layer(place.device, dtype, mask), place.device, autocast, frozen)
    for one, other in zip(found, expected, strict=True):
        place.assert_same(one, other)


@needs_triton
def test_autograd_sees_that_a_kernel_wrote_a_new_product(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "kernels_for", lambda *tensors: place.kernels)
    layer = masked_layer(place.device, torch.float32, "bool")
    inputs = torch.randn(3, 65, device=place.device, requires_grad=True)
    loss = layer(inputs).sum()
    layer.mask = ~layer.mask
    layer(inputs)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        loss.backward()
