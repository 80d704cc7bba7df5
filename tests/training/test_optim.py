"""Steps with clipping against torch's own; which parameters decay; scores that are running means, against their formula
and plain autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from c_kernels import without_kernels
from torch import nn
from transformers import DebertaConfig, DebertaModel

from raypp.config import FisherPruning, LayerRule, TrainSettings
from raypp.pruning.pruner import Pruner
from raypp.pruning.schedule import SchedulePoint
from raypp.training.optim import build_optimizer, learning_rates, set_learning_rates

DECAY = 0.75


@pytest.fixture(params=[True, False], ids=["C", "torch"])
def with_and_without_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test twice: with the C kernels, and in plain torch."""
    if request.param:
        request.getfixturevalue("kernels")
    else:
        without_kernels(monkeypatch)


def test_a_fisher_score_is_the_running_mean_of_the_squared_product_of_weight_and_gradient() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 5)
    settings = FisherPruning(method="fisher", fisher_decay=DECAY, layers=LayerRule(include=("0",)))
    model = nn.Sequential(linear, nn.Tanh())
    pruner = Pruner(model, settings)
    ((_, scores),) = pruner.scores()
    optimizer = build_optimizer(model, [scores], TrainSettings(learning_rate=1e-2), settings)
    layer = pruner.layers["0"]
    expected = torch.zeros(5, 6)
    for density, rows in ((1.0, 7), (0.6, 7), (0.3, 1), (0.5, 7)):
        pruner.refresh(SchedulePoint(value=density, progress=0.5, penalty_lambda=0.0, is_final=False))
        inputs, targets = torch.randn(rows, 6), torch.randn(rows, 5)
        weight, mask = layer.weight.detach().clone(), layer.mask.clone()
        assert mask.sum() == round(density * 30)
        masked = (weight * mask).requires_grad_()
        bias = layer.bias.detach()  # type: ignore[union-attr]
        (gradient,) = torch.autograd.grad(F.mse_loss(torch.tanh(F.linear(inputs, masked, bias)), targets), masked)
        expected = DECAY * expected + (1 - DECAY) * rows * (weight * gradient) ** 2

        set_learning_rates(optimizer, 0.5)
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(model(inputs), targets).backward()
        optimizer.step(rows=rows)
        torch.testing.assert_close(scores.detach(), expected, rtol=1e-5, atol=1e-12)
        assert not torch.equal(layer.weight[mask], weight[mask]), "weights take their step as ever"
    assert learning_rates(optimizer) == {"weights": pytest.approx(0.5e-2)}, "a running mean has none"
    assert scores not in optimizer.state, "it costs no moments"


@pytest.mark.usefixtures("with_and_without_kernels")
def test_a_fisher_score_is_the_mean_square_of_rows_gradients_for_any_batch_size() -> None:
    """There is a closed form if no two rows share a weight: the rows are powers of two, each for one weight."""
    linear = nn.Linear(6, 1, bias=False)
    torch.nn.init.ones_(linear.weight)
    settings = FisherPruning(method="fisher", fisher_decay=DECAY, layers=LayerRule(include=("0",)))
    model = nn.Sequential(linear, nn.Identity())
    ((_, scores),) = Pruner(model, settings).scores()
    optimizer = build_optimizer(model, [scores], TrainSettings(), settings)
    set_learning_rates(optimizer, 0.0)
    expected = torch.zeros(1, 6)
    rows = torch.diag(2.0 ** torch.arange(6))
    for batch in (rows[:4], rows[2:6], rows[:1], rows[4:6]):
        optimizer.zero_grad(set_to_none=True)
        model(batch).mean().backward()
        optimizer.step(rows=len(batch))
        expected = DECAY * expected + (1 - DECAY) * (batch**2).mean(0)
        torch.testing.assert_close(scores.detach(), expected, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("with_and_without_kernels")
def test_with_equal_batches_the_rows_scale_all_fisher_scores_alike() -> None:
    """So the same weights are kept as without the factor."""
    settings = FisherPruning(method="fisher", fisher_decay=DECAY, layers=LayerRule(include=("0",)))
    found = []
    for rows in (1, 32):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(60, 50), nn.Tanh())
        ((_, scores),) = Pruner(model, settings).scores()
        optimizer = build_optimizer(model, [scores], TrainSettings(learning_rate=1e-2), settings)
        for _ in range(5):
            optimizer.zero_grad(set_to_none=True)
            model(torch.randn(32, 60)).square().mean().backward()
            optimizer.step(rows=rows)
        found.append(scores.detach().clone())
    assert torch.equal(32 * found[0], found[1])


def test_a_step_whose_gradients_overflow_does_not_change_the_running_means() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    settings = FisherPruning(method="fisher", fisher_decay=DECAY, layers=LayerRule(include=("0",)))
    ((_, scores),) = Pruner(model, settings).scores()
    optimizer = build_optimizer(model, [scores], TrainSettings(learning_rate=1e-2), settings)
    scaler = torch.amp.GradScaler("cpu")

    def step(size: float) -> None:
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(model(torch.full((3, 6), size)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    step(0.1)
    before = scores.detach().clone()
    assert before.abs().sum() > 0
    step(float("inf"))
    assert torch.equal(scores, before)
    assert scores.grad is None
    step(0.1)
    assert not torch.equal(scores, before)
    assert scores.isfinite().all()


@pytest.mark.usefixtures("with_and_without_kernels")
def test_steps_with_clipping_equal_torchs() -> None:
    """With norms above and below the maximum, a parameter without a gradient, and a state that is loaded."""
    settings = TrainSettings(learning_rate=1e-2, weight_decay=0.1, adam_betas=(0.8, 0.99), adam_epsilon=1e-7)
    ours, theirs = (nn.ModuleList([nn.Linear(70, 50), nn.LayerNorm(50), nn.Linear(50, 1)]) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(ours, [], settings, None)
    weights = [parameter for parameter in theirs.parameters() if parameter.dim() == 2]
    plain = [parameter for parameter in theirs.parameters() if parameter.dim() == 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.99), eps=1e-7)
    generator, norms = torch.Generator().manual_seed(0), []
    for step, size in enumerate((1.0, 1e-4, 3.0, 1e-3, 0.5, 0.01)):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.grad = size * torch.randn(other.shape, generator=generator)
            one.grad = other.grad.clone()
        if step % 2:
            ours[1].weight.grad = theirs[1].weight.grad = None
        set_learning_rates(optimizer, 1 / (step + 1))
        for group in reference.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        norms.append(float(nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)))
        reference.step()
        assert optimizer.clip_gradients(0.3) == pytest.approx(norms[-1], rel=1e-5)
        optimizer.step()
        if step == 3:
            taken_over = build_optimizer(ours, [], settings, None)
            taken_over.load_state_dict(optimizer.state_dict())
            optimizer = taken_over
    assert min(norms) < 0.3 < max(norms)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("with_and_without_kernels")
def test_logged_gradients_are_already_clipped() -> None:
    """The step does not clip them again."""
    models = [nn.Linear(5, 4) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for at_once, model in zip((True, False), models, strict=True):
        optimizer = build_optimizer(model, [], TrainSettings(adam_epsilon=1.0), None)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)
        assert optimizer.clip_gradients(0.5, at_once=at_once) == pytest.approx(3 * 24**0.5)
        if at_once:
            assert float(nn.utils.get_total_norm([p.grad for p in model.parameters()])) == pytest.approx(0.5)
        optimizer.step()
    # The tolerance is small enough to detect clipping twice: a step is 3e-6 long.
    torch.testing.assert_close(models[0].weight, models[1].weight, rtol=0, atol=1e-7)


def test_a_step_without_clipping_uses_unscaled_gradients() -> None:
    """This is also true after a step with clipping."""
    models = [nn.Linear(5, 4) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    clips, never = (build_optimizer(model, [], TrainSettings(adam_epsilon=1.0), None) for model in models)
    for step in range(2):
        for model in models:
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.01 if step == 0 else 10.0)
        if step == 0:
            clips.clip_gradients(1e6)
        clips.step()
        never.step()
    torch.testing.assert_close(models[0].weight, models[1].weight, rtol=0, atol=0)
    clips.clip_gradients(None)
    clips.step()
    never.step()
    torch.testing.assert_close(models[0].weight, models[1].weight, rtol=0, atol=0)


def test_weights_decay_and_neither_biases_nor_norms_do() -> None:
    """DeBERTa's attention has biases that belong to no linear layer, and its own norm class."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = DebertaModel(DebertaConfig(vocab_size=20, max_position_embeddings=20, **sizes))
    optimizer = build_optimizer(model, [], TrainSettings(weight_decay=0.1), None)
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    names = dict(model.named_parameters())
    assert "encoder.layer.0.attention.self.q_bias" in names
    assert {name: decays[id(parameter)] for name, parameter in names.items()} == {
        name: 0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1 for name in names
    }


def test_a_matrix_that_the_model_does_not_use_keeps_its_running_mean() -> None:
    model = nn.ModuleDict({"used": nn.Linear(6, 5), "unused": nn.Linear(6, 5)})
    settings = FisherPruning(method="fisher", fisher_decay=DECAY)
    scores = dict(Pruner(model, settings).scores())
    optimizer = build_optimizer(model, list(scores.values()), TrainSettings(learning_rate=1e-2), settings)
    before = {name: score.detach().clone() for name, score in scores.items()}
    model["used"](torch.randn(3, 6)).sum().backward()
    optimizer.step()
    assert not torch.equal(scores["used"], before["used"])
    assert torch.equal(scores["unused"], before["unused"])
