"""raypp's dropout on a CPU does what the definition of dropout says."""

from __future__ import annotations

import pytest
import torch
from c_kernels import needs_compiler, without_kernels
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from raypp.cpu.dropout import Dropout, drop, replace_dropout
from raypp.models.dropout import set_dropout

SIZE = 200_003  # several pieces, the last one short


def dropped(inputs: Tensor, probability: float, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return Dropout(probability).train()(inputs)


@needs_compiler
@pytest.mark.parametrize("size", [1, 511, 16_384, 40_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_compiler_the_same_are_dropped(
    size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run is the same on a machine that has none."""
    inputs = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    found = drop(inputs, 0.3, seed=2**62 + size)
    without_kernels(monkeypatch)
    assert torch.equal(drop(inputs, 0.3, seed=2**62 + size), found)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_many_are_dropped_as_asked_and_the_others_scaled(probability: float, dtype: torch.dtype) -> None:
    inputs = torch.randn(SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)
    output = dropped(inputs, probability)
    kept = output != 0
    expected = (inputs.float() / (1 - probability)).to(dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(output[kept], expected[kept], rtol=tolerance, atol=0)
    deviation = (probability * (1 - probability) / SIZE) ** 0.5
    assert (~kept).float().mean() == pytest.approx(probability, abs=5 * deviation)
    for piece in kept.split(20_000)[:-1]:
        assert (~piece).float().mean() == pytest.approx(probability, abs=5 * deviation * (SIZE / 20_000) ** 0.5)


def test_no_two_places_or_draws_go_together() -> None:
    """Correlations of what is kept: with its neighbours, with other pieces, and with other draws."""
    ones = torch.ones(SIZE)
    first, second = (dropped(ones, 0.5, seed) - 1 for seed in (0, 1))
    bound = 5 / SIZE**0.5
    for shift in (1, 2, 3, 4, 8, 512, 16_384):
        assert abs(float((first * first.roll(shift)).mean())) < bound
    assert abs(float((first * second).mean())) < bound
    layer = Dropout(0.5).train()
    assert abs(float(((layer(ones) - 1) * (layer(ones) - 1)).mean())) < bound


@needs_compiler
def test_torchs_seed_decides_and_the_threads_do_not() -> None:
    inputs, threads = torch.randn(SIZE), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = dropped(inputs, 0.1, seed=7)
        torch.set_num_threads(3)
        assert torch.equal(dropped(inputs, 0.1, seed=7), alone)
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(dropped(inputs, 0.1, seed=8), alone)


def test_the_gradient_passes_where_the_value_did() -> None:
    inputs = torch.randn(50, 40).t().requires_grad_()  # of another layout
    output = dropped(inputs, 0.3)
    (gradient,) = torch.autograd.grad(output, inputs, torch.full_like(output, 2.0))
    expected = torch.where(output == 0, 0.0, 2 * output / inputs)
    torch.testing.assert_close(gradient, expected)


def test_nothing_is_dropped_in_evaluation_or_without_a_probability() -> None:
    inputs = torch.randn(100)
    assert torch.equal(Dropout(0.5).eval()(inputs), inputs)
    assert torch.equal(dropped(inputs, 0.0), inputs)
    assert torch.equal(dropped(inputs, 1.0), torch.zeros(100))


def test_the_type_does_not_decide_which_are_dropped() -> None:
    inputs = torch.ones(1000)
    kept = dropped(inputs, 0.5) != 0
    assert torch.equal(dropped(inputs.double(), 0.5) != 0, kept)
    assert torch.equal(dropped(inputs.half(), 0.5) != 0, kept)


def test_every_dropout_of_a_model_is_replaced_and_its_weights_are_named_as_before() -> None:
    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    model = BertModel(config).eval()
    names = list(model.state_dict())
    count = sum(type(module) is nn.Dropout for module in model.modules())
    replace_dropout(model)
    found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert {type(module) for module in found} == {Dropout}
    assert len(found) == count > 0
    assert {(module.p, module.training) for module in found} == {(0.1, False)}
    assert list(model.state_dict()) == names
    set_dropout(model, 0.0)
    assert {module.p for module in found} == {0.0}
