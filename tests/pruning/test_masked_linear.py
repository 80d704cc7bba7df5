"""MaskedLinear: gradients against plain autograd with an explicit straight-through mask, precision, copies, folding."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raypp.pruning.gates import hard_concrete
from raypp.pruning.linear import MaskedLinear, encoder_of, is_encoder_name, linear_layers


def make(seed: int = 0, bias: bool = True, scores: bool = True, dtype: torch.dtype = torch.float32) -> MaskedLinear:
    """A 5-to-4 layer of which about half the weights are masked."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(5, 4, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    layer = MaskedLinear.from_linear(linear, torch.randn(4, 5, generator=generator, dtype=dtype) if scores else None)
    layer.mask = torch.rand(4, 5, generator=generator) > 0.5
    return layer


def inputs_of(seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loss_of(outputs: Tensor) -> Tensor:
    return outputs.float().sin().sum()


def test_a_new_layer_computes_what_the_linear_layer_did_with_the_same_parameters() -> None:
    linear = nn.Linear(5, 4).eval()
    layer = MaskedLinear.from_linear(linear, torch.zeros(4, 5))
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert not layer.training
    assert torch.equal(layer(inputs_of()), linear(inputs_of()))


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5, 4\).*\(4, 5\)"):
        MaskedLinear.from_linear(nn.Linear(5, 4), torch.zeros(5, 4))


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_an_explicit_straight_through_mask(bias: bool) -> None:
    layer, inputs = make(bias=bias), inputs_of().requires_grad_()
    outputs = layer(inputs)
    loss_of(outputs).backward()

    twin, twin_inputs = make(bias=bias), inputs_of().requires_grad_()
    assert twin.mask_scores is not None
    straight_through = (layer.mask.float() - twin.mask_scores).detach() + twin.mask_scores
    expected = functional.linear(twin_inputs, twin.weight * straight_through, twin.bias)
    loss_of(expected).backward()

    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(inputs.grad, twin_inputs.grad)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, twin.get_parameter(name).grad)
    assert layer.weight.grad is not None
    assert layer.mask_scores is not None
    assert layer.mask_scores.grad is not None
    assert (layer.weight.grad[~layer.mask] == 0).all(), "a masked weight gets no gradient"
    assert (layer.mask_scores.grad[~layer.mask] != 0).all(), "a masked weight's score still does"


@pytest.mark.parametrize("noisy", [True, False])
def test_gates_pass_the_chain_rule_through_several_micro_batches_with_one_noise(noisy: bool) -> None:
    noise = torch.rand(4, 5, generator=torch.Generator().manual_seed(3)) if noisy else None
    layer, twin = make(), make()
    layer.set_gates(*hard_concrete(layer.mask_scores, noise))
    for seed in (1, 2, 3):  # each with its own backward pass; no graph is kept
        loss_of(layer(inputs_of(seed))).backward()

    assert twin.mask_scores is not None
    concrete = twin.mask_scores if noise is None else (torch.logit(noise) + twin.mask_scores) * 1.5
    gates = (torch.sigmoid(concrete) * 1.2 - 0.1).clamp(0.0, 1.0)
    total = sum(loss_of(functional.linear(inputs_of(s), twin.weight * gates, twin.bias)) for s in (1, 2, 3))
    assert isinstance(total, Tensor)
    total.backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, twin.get_parameter(name).grad)


def test_without_scores_only_kept_weights_get_a_gradient() -> None:
    layer = make(scores=False)
    loss_of(layer(inputs_of())).backward()
    assert layer.weight.grad is not None
    assert (layer.weight.grad[~layer.mask] == 0).all()
    assert (layer.weight.grad[layer.mask] != 0).all()
    assert "mask_scores" not in layer.state_dict()


@pytest.mark.parametrize("frozen", ["weight", "mask_scores", "both"])
def test_a_frozen_parameter_gets_no_gradient_and_the_others_are_unchanged(frozen: str) -> None:
    reference, layer = make(), make()
    loss_of(reference(inputs_of())).backward()
    for name in ("weight", "mask_scores"):
        layer.get_parameter(name).requires_grad_(frozen not in (name, "both"))
    loss_of(layer(inputs_of())).backward()
    for name in ("weight", "mask_scores"):
        gradient = layer.get_parameter(name).grad
        if frozen in (name, "both"):
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, reference.get_parameter(name).grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gated", [False, True])
def test_autocast_computes_in_low_precision_and_returns_float32_gradients(dtype: torch.dtype, gated: bool) -> None:
    exact, layer = make(), make()
    for either in (exact, layer):
        if gated:
            either.set_gates(*hard_concrete(either.mask_scores, torch.full((4, 5), 0.4)))
    loss_of(exact(inputs_of())).backward()
    with torch.autocast("cpu", dtype=dtype):
        outputs = layer(inputs_of())
    assert outputs.dtype == dtype
    loss_of(outputs).backward()
    for name, parameter in exact.named_parameters():
        gradient = layer.get_parameter(name).grad
        assert gradient is not None
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, parameter.grad, atol=0.2, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gated", [False, True])
def test_the_product_for_autocast_is_the_one_that_autocast_would_compute(dtype: torch.dtype, gated: bool) -> None:
    layer = make()
    if gated:
        layer.set_gates(*hard_concrete(layer.mask_scores, torch.full((4, 5), 0.4)))
    product = (layer.weight * layer.mask).detach().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        outputs, expected = layer(inputs_of()), functional.linear(inputs_of(), product, layer.bias)
    assert torch.equal(outputs, expected)
    loss_of(outputs).backward()
    loss_of(expected).backward()
    assert product.grad is not None
    assert layer.mask_scores is not None
    slope = layer.gate_slope if layer.gate_slope is not None else torch.ones(4, 5)
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, product.grad * layer.mask)
    assert layer.mask_scores.grad is not None
    assert torch.equal(layer.mask_scores.grad, product.grad * layer.weight * slope)
    assert layer.masked_weight().dtype == torch.float32, "for counting and folding"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("gated", [False, True])
def test_a_layer_moved_to_another_dtype_still_trains(dtype: torch.dtype, gated: bool) -> None:
    layer = make()
    if gated:
        layer.set_gates(*hard_concrete(layer.mask_scores, None))
    layer.to(dtype)
    assert layer.mask.dtype == (dtype if gated else torch.bool)
    outputs = layer(inputs_of(dtype=dtype))
    assert outputs.dtype == dtype
    loss_of(outputs).backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in layer.parameters())


def test_float32_scores_with_low_precision_weights_get_float32_gradients() -> None:
    linear = nn.Linear(5, 4, dtype=torch.bfloat16)
    layer = MaskedLinear.from_linear(linear, torch.zeros(4, 5))
    loss_of(layer(inputs_of(dtype=torch.bfloat16))).backward()
    assert layer.mask_scores is not None
    assert layer.mask_scores.grad is not None
    assert layer.mask_scores.grad.dtype == torch.float32
    layer.set_gates(*hard_concrete(layer.mask_scores, None))
    outputs = layer(inputs_of(dtype=torch.bfloat16))
    assert outputs.dtype == torch.bfloat16
    loss_of(outputs).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.bfloat16


def test_without_grad_nothing_is_recorded() -> None:
    layer = make().eval()
    with torch.no_grad():
        assert not layer(inputs_of()).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(layer(inputs_of()), make().eval()(inputs_of()))


def test_each_change_of_weight_or_mask_is_seen_at_once() -> None:
    layer, inputs = make(), inputs_of()

    def expected() -> Tensor:
        return functional.linear(inputs, layer.weight * layer.mask, layer.bias)

    torch.testing.assert_close(layer(inputs), expected())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    loss_of(layer(inputs)).backward()
    optimizer.step()
    torch.testing.assert_close(layer(inputs), expected())
    for _ in range(3):  # new masks may have the memory of an old one
        layer.mask = ~layer.mask
        torch.testing.assert_close(layer(inputs), expected())
    layer.load_state_dict(make(seed=5).state_dict())
    torch.testing.assert_close(layer(inputs), expected())
    layer.weight = nn.Parameter(torch.ones(4, 5))
    torch.testing.assert_close(layer(inputs), expected())


def test_folding_uses_the_weights_of_a_fused_step_which_torch_does_not_report() -> None:
    layer, inputs = make(), inputs_of()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    loss_of(layer(inputs)).backward()
    optimizer.step()
    torch.testing.assert_close(
        layer.to_linear()(inputs), functional.linear(inputs, layer.weight * layer.mask, layer.bias)
    )


@pytest.mark.parametrize("gated", [False, True])
def test_a_second_derivative_is_an_error_and_not_a_wrong_one(gated: bool) -> None:
    layer = make()
    if gated:
        assert layer.mask_scores is not None
        layer.set_gates(*hard_concrete(layer.mask_scores, None))
    (gradient,) = torch.autograd.grad(loss_of(layer(inputs_of())), [layer.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_a_product_from_an_evaluation_can_be_trained_with() -> None:
    layer = make()
    with torch.inference_mode():
        evaluated = layer(inputs_of())
    loss_of(layer(inputs_of())).backward()
    assert layer.weight.grad is not None
    assert torch.equal(evaluated, layer(inputs_of()))


def test_backward_after_a_change_of_masks_is_an_error_and_not_a_wrong_gradient() -> None:
    layer = make()
    inputs = inputs_of().requires_grad_()
    loss = loss_of(layer(inputs))
    layer.mask = ~layer.mask
    layer(inputs)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        loss.backward()


def test_a_copy_and_a_saved_state_are_independent() -> None:
    layer = make()
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(inputs_of()), layer(inputs_of()))
    twin.mask = torch.zeros(4, 5, dtype=torch.bool)
    assert not torch.equal(twin(inputs_of()), layer(inputs_of()))

    assert sorted(layer.state_dict()) == ["bias", "mask_scores", "weight"]
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    restored = make(seed=9)
    restored.load_state_dict(torch.load(file, weights_only=True))
    restored.mask = layer.mask
    assert torch.equal(restored(inputs_of()), layer(inputs_of()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [False, True])
def test_folding_gives_a_plain_layer_with_exact_zeros(bias: bool, gated: bool) -> None:
    layer = make(bias=bias).eval()
    layer.weight.requires_grad_(False)
    if gated:
        assert layer.mask_scores is not None
        nn.init.constant_(layer.mask_scores, -9.0)
        with torch.no_grad():
            layer.mask_scores[0] = 1.0
        layer.set_gates(*hard_concrete(layer.mask_scores, None))
    before = torch.random.get_rng_state()
    linear = layer.to_linear()
    assert torch.equal(torch.random.get_rng_state(), before), "folding draws no random numbers"
    assert type(linear) is nn.Linear
    assert not linear.training
    assert not linear.weight.requires_grad
    removed = linear.weight[layer.mask == 0]
    assert len(removed)
    assert torch.equal(removed.view(torch.int32), torch.zeros(len(removed), dtype=torch.int32)), "no negative zeros"
    assert torch.equal(linear(inputs_of()), layer(inputs_of()))


def test_which_modules_are_the_encoder() -> None:
    encoder_names = ["", "encoder.layer.0.attention.self.query", "layers.3.mlp.Wi", "transformer.layer.1.ffn.lin1"]
    other_names = [
        "embeddings", "embeddings.word_embeddings", "embeddings_project", "encoder.embedding_hidden_mapping_in",
        "embeddings.embed_proj", "pooler", "pooler.dense", "classifier", "classifier.out_proj", "head.dense", "lm_head",
    ]  # fmt: skip
    assert [name for name in encoder_names if not is_encoder_name(name)] == []
    assert [name for name in other_names if is_encoder_name(name)] == []


def test_any_module_has_an_encoder_and_only_plain_linear_layers_are_offered() -> None:
    class OwnModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(2, 2)
            self.body = nn.ModuleList([nn.Linear(2, 2), nn.MultiheadAttention(2, 1)])
            self.classifier = nn.Linear(2, 2)

    model = OwnModel()
    assert encoder_of(model) is model
    assert list(linear_layers(model)) == ["body.0"]
