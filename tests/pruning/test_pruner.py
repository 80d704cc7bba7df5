"""The pruner on a tiny BERT: every method's selection, seeds, ties after Adam's first step, rules, errors, folding."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from pruning_settings import settings_of
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification
from waits import Waits

from raypp.config import LayerRule, TrainSettings
from raypp.errors import ConfigError
from raypp.pruning import Pruner, PruningSchedule
from raypp.pruning.gates import hard_concrete
from raypp.pruning.linear import MaskedLinear, select_layers
from raypp.pruning.masks import Selection, keep_largest
from raypp.pruning.schedule import SchedulePoint
from raypp.seeds import named_seed
from raypp.training.optim import build_optimizer, rate_factor, set_learning_rates

CONFIG = BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=20, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
NAMES = [
    f"encoder.layer.{layer}.{name}"
    for layer in range(2)
    for name in (
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "intermediate.dense", "output.dense",
    )
]  # fmt: skip


def largest(scores: Tensor, count: int, tie_seed: int) -> Tensor:
    """The mask of one matrix by itself."""
    return keep_largest([Selection([scores], count, [tie_seed])])[0][0]


def largest_together(scores: list[Tensor], count: int, seeds: list[int]) -> list[Tensor]:
    """The masks of several matrices together."""
    return keep_largest([Selection(scores, count, seeds)])[0]


def bert(seed: int = 0, layers: int = CONFIG.num_hidden_layers) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig.from_dict({**CONFIG.to_dict(), "num_hidden_layers": layers})).eval()


def at(value: float | None) -> SchedulePoint:
    return SchedulePoint(value=value, progress=0.5, penalty_lambda=0.0, is_final=False)


def batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(1, 40, (6, 9), generator=generator),
        "labels": torch.randint(0, 2, (6,), generator=generator),
    }


DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
UNIFORM = {"score_initialization": {"kind": "uniform", "scale": 1.0}}


def test_by_default_the_encoders_linear_layers_are_pruned_and_nothing_else() -> None:
    model = bert()
    pruner = Pruner(model, settings_of("topk"))
    assert list(pruner.layers) == NAMES
    assert [name for name, _ in pruner.scores()] == NAMES
    assert type(model.bert.pooler.dense) is nn.Linear
    assert type(model.classifier) is nn.Linear
    assert model.bert.encoder.layer[1].output.dense is pruner.layers["encoder.layer.1.output.dense"]
    assert "bert.encoder.layer.0.attention.self.query.mask_scores" in model.state_dict()


@pytest.mark.parametrize("density", [0.9, 0.29, 0.15, 0.01])
def test_topk_keeps_the_exact_number_of_each_matrix(density: float) -> None:
    pruner = Pruner(bert(), settings_of("topk", **UNIFORM), seed=4)
    pruner.refresh(at(density))
    for name, layer in pruner.layers.items():
        assert layer.mask_scores is not None
        assert int(layer.mask.sum()) == max(1, int(density * layer.mask.numel()))
        assert layer.mask_scores[layer.mask].min() >= layer.mask_scores[~layer.mask].max()
        assert torch.equal(layer.mask, largest(layer.mask_scores, int(layer.mask.sum()), named_seed(4, name)))


@pytest.mark.parametrize("method", ["topk", "magnitude", "fisher", "sigmoid_threshold", "threshold", "l0"])
def test_by_default_training_begins_dense(method: str) -> None:
    settings, model = settings_of(method), bert()
    pruner, schedule = Pruner(model, settings), PruningSchedule(settings, 200, 20)
    optimizer = build_optimizer(model, [scores for _, scores in pruner.scores()], TrainSettings(), settings)
    for step in range(8):
        pruner.refresh(schedule.at(step))
        # fisher has no initial warmup: its density follows the cubic from the first step on.
        expected = schedule.at(step).value if method == "fisher" else 1.0
        assert pruner.density().linear == pytest.approx(expected, abs=0.002)
        if method == "l0":
            pruner.refresh(schedule.at(step), noise_seed=step)
            assert pruner.density().linear > 0.95
        set_learning_rates(optimizer, rate_factor(step, 20, 200))
        model(**batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_ties_follow_the_seed_and_the_matrixs_name() -> None:
    for scope in ("local", "global"):
        pruner = Pruner(bert(), settings_of("topk", scope=scope), seed=4)
        pruner.refresh(at(0.25))
        zeros = [torch.zeros_like(layer.weight) for layer in pruner.layers.values()]
        seeds = [named_seed(4, name) for name in pruner.layers]
        if scope == "local":
            expected = [largest(z, z.numel() // 4, seed) for z, seed in zip(zeros, seeds, strict=True)]
        else:
            expected = largest_together(zeros, sum(z.numel() for z in zeros) // 4, seeds)
        for layer, mask in zip(pruner.layers.values(), expected, strict=True):
            assert torch.equal(layer.mask, mask)
        other = Pruner(bert(), settings_of("topk", scope=scope), seed=5)
        other.refresh(at(0.25))
        assert not torch.equal(other.layers[NAMES[0]].mask, pruner.layers[NAMES[0]].mask)


@pytest.mark.parametrize("method", ["topk", "magnitude"])
def test_global_scope_keeps_the_exact_number_of_all_matrices_together(method: str) -> None:
    fields = UNIFORM if method == "topk" else {}
    pruner = Pruner(bert(), settings_of(method, scope="global", **fields), seed=4)
    pruner.refresh(at(0.15))
    layers = list(pruner.layers.values())
    importance = [layer.weight.abs() if layer.mask_scores is None else layer.mask_scores for layer in layers]
    total = sum(layer.mask.numel() for layer in layers)
    assert sum(int(layer.mask.sum()) for layer in layers) == int(0.15 * total)
    expected = largest_together(importance, int(0.15 * total), [named_seed(4, name) for name in pruner.layers])
    assert all(torch.equal(layer.mask, mask) for layer, mask in zip(layers, expected, strict=True))
    assert len({float(layer.mask.float().mean()) for layer in layers}) > 1, "matrices share the budget unevenly"


@DEVICES
def test_magnitude_follows_the_weights_and_does_not_change_pruned_ones(device: str) -> None:
    model = bert().to(device)
    pruner = Pruner(model, settings_of("magnitude"))
    assert pruner.scores() == []
    pruner.refresh(at(0.25))
    layer = pruner.layers[NAMES[0]]
    assert layer.weight.abs()[layer.mask].min() >= layer.weight.abs()[~layer.mask].max()
    before, mask = layer.weight.detach().clone(), layer.mask
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    model(**{name: value.to(device) for name, value in batch().items()}).loss.backward()
    optimizer.step()
    assert torch.equal(layer.weight[~mask], before[~mask])
    assert (layer.weight[mask] != before[mask]).all()
    pruner.refresh(at(0.25))
    assert torch.equal(layer.mask, largest(layer.weight.abs(), 64, named_seed(0, NAMES[0])))


def test_sigmoid_threshold_and_threshold_keep_the_scores_above() -> None:
    for method, transform in (("sigmoid_threshold", torch.sigmoid), ("threshold", lambda scores: scores)):
        pruner = Pruner(bert(), settings_of(method, **UNIFORM))
        pruner.refresh(at(0.6))
        for layer in pruner.layers.values():
            assert layer.mask_scores is not None
            assert torch.equal(layer.mask, transform(layer.mask_scores) > 0.6)


@pytest.mark.parametrize("method", ["sigmoid_threshold", "threshold"])
def test_threshold_methods_keep_the_floor_even_of_constant_scores(method: str) -> None:
    constant = {"kind": "constant", "scale": 0.0}
    pruner = Pruner(bert(), settings_of(method, density_floor=0.1, score_initialization=constant))
    pruner.refresh(at(0.9))
    assert [int(layer.mask.sum()) for layer in pruner.layers.values()] == [
        int(0.1 * layer.mask.numel()) + 1 for layer in pruner.layers.values()
    ]


def test_l0_gates_are_noisy_in_training_and_deterministic_otherwise() -> None:
    pruner = Pruner(bert(), settings_of("l0", score_initialization={"kind": "uniform", "scale": 2.0}))
    twin = Pruner(bert(), settings_of("l0", score_initialization={"kind": "uniform", "scale": 2.0}))

    def masks(pruner: Pruner, noise_seed: int | None) -> list[Tensor]:
        pruner.refresh(at(None), noise_seed=noise_seed)
        return [layer.mask.clone() for layer in pruner.layers.values()]

    deterministic = masks(pruner, None)
    for mask, (_, scores) in zip(deterministic, pruner.scores(), strict=True):
        assert torch.equal(mask, hard_concrete(scores.detach(), None)[0])
    first = masks(pruner, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, masks(twin, 7), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, masks(pruner, 8), strict=True))
    assert not torch.equal(first[0], first[1]), "each matrix has noise of its own"
    assert all(torch.equal(a, b) for a, b in zip(deterministic, masks(pruner, None), strict=True))


def test_l0_trains_even_before_the_first_refresh() -> None:
    model = bert()
    pruner = Pruner(model, settings_of("l0"))
    model(**batch()).loss.backward()
    assert all(scores.grad is not None and (scores.grad != 0).any() for _, scores in pruner.scores())
    assert float(pruner.layers[NAMES[0]].mask.mean()) == pytest.approx(0.9 * 1.2 - 0.1, abs=1e-3)


def test_after_adams_first_step_two_valued_scores_still_keep_the_exact_count() -> None:
    model = bert()
    pruner = Pruner(model, settings_of("topk"), seed=3)
    pruner.refresh(at(0.5))
    optimizer = torch.optim.AdamW([scores for _, scores in pruner.scores()], lr=1e-2, eps=1e-20, weight_decay=0.0)
    model(**batch()).loss.backward()
    optimizer.step()
    ties = 0
    for density in (0.5, 0.3, 0.15, 0.1):
        pruner.refresh(at(density))
        for name, layer in pruner.layers.items():
            assert layer.mask_scores is not None
            values = layer.mask_scores.detach().mul(1e4).round().unique()
            assert len(values) <= 3
            assert int(layer.mask.sum()) == int(density * layer.mask.numel()), name
            kept, dropped = layer.mask_scores[layer.mask], layer.mask_scores[~layer.mask]
            assert kept.min() >= dropped.max()
            ties += int(kept.min() == dropped.max())
    assert ties > 12, "the threshold is a tied score"


@pytest.mark.parametrize(
    ("initialization", "bound"),
    [({"kind": "uniform", "scale": 0.3}, 0.3), ({"kind": "kaiming", "scale": 2.0}, 2.0 / 4)],
)
def test_random_scores_depend_on_seed_and_name_only(initialization: dict[str, Any], bound: float) -> None:
    settings = settings_of("topk", score_initialization=initialization)
    torch.manual_seed(1)
    scores = dict(Pruner(bert(), settings, seed=5).scores())
    torch.manual_seed(2)
    rule = {"include": [r"layer\.1\.attention\.self\.key", r"layer\.0\.attention\.self\.query"]}
    model = bert()
    state = torch.random.get_rng_state()
    fewer = dict(Pruner(model, settings_of("topk", score_initialization=initialization, layers=rule), seed=5).scores())
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not touched"
    assert len(fewer) == 2
    assert all(torch.equal(values, scores[name]) for name, values in fewer.items())
    other = dict(Pruner(bert(), settings, seed=6).scores())
    assert not torch.equal(other[NAMES[0]], scores[NAMES[0]])
    assert not torch.equal(scores[NAMES[0]], scores[NAMES[1]])
    query = scores[NAMES[0]]
    assert 0.9 * bound < query.abs().max() <= bound
    assert abs(float(query.detach().mean())) < 0.2 * bound


def test_constant_scores() -> None:
    pruner = Pruner(bert(), settings_of("topk", score_initialization={"kind": "constant", "scale": -1.5}))
    assert all((scores == -1.5).all() for _, scores in pruner.scores())


def test_the_penalty_is_the_configured_one_and_trains_the_scores() -> None:
    fields = {"penalty": {"kind": "l1", "final_lambda": 3.0}, **UNIFORM}
    pruner = Pruner(bert(), settings_of("sigmoid_threshold", **fields))
    value = pruner.add_penalty(2.0)
    expected = torch.stack([torch.sigmoid(scores).mean() for _, scores in pruner.scores()]).mean()
    torch.testing.assert_close(value, expected.detach())
    assert all(scores.grad is not None and (scores.grad > 0).all() for _, scores in pruner.scores())
    for method in ("topk", "magnitude"):
        with pytest.raises(ValueError, match="no penalty"):
            Pruner(bert(), settings_of(method)).add_penalty(1.0)


def test_a_point_is_described_in_the_methods_own_term() -> None:
    point = SchedulePoint(value=0.4, progress=0.5, penalty_lambda=2.0, is_final=False)
    penalty = {"penalty": {"kind": "l1", "final_lambda": 4.0}}
    described = {
        method: Pruner(bert(), settings_of(method, **fields)).describe(point)
        for method, fields in (("topk", {}), ("sigmoid_threshold", penalty))
    }
    assert described == {
        "topk": {"prune/requested_density": 0.4},
        "sigmoid_threshold": {"prune/threshold": 0.4, "prune/penalty_lambda": 2.0},
    }
    without_value = SchedulePoint(value=None, progress=0.5, penalty_lambda=0.0, is_final=False)
    assert Pruner(bert(), settings_of("l0")).describe(without_value) == {}


@pytest.mark.parametrize("method", ["sigmoid_threshold", "threshold", "l0"])
@pytest.mark.parametrize("shift", [-8.0, 0.0, 8.0])
def test_a_target_density_is_kept_at_whatever_threshold_it_needs(method: str, shift: float) -> None:
    """The scores are all below the final threshold, around it or above it; gates are with or without noise."""
    settings = settings_of(method, target_density=0.1, **UNIFORM)
    pruner, schedule = Pruner(bert(), settings), PruningSchedule(settings, 100, 10)
    with torch.no_grad():
        for _, scores in pruner.scores():
            scores += shift
    size = sum(scores.numel() for _, scores in pruner.scores())
    for step in (0, 40, 80, 100):
        point = schedule.at(step)
        pruner.refresh(point)
        assert pruner.density().linear == pytest.approx(point.target_density, abs=1 / size)
        kept = torch.cat([layer.mask.flatten() > 0 for layer in pruner.layers.values()])
        everything = torch.cat([scores.detach().flatten() for _, scores in pruner.scores()])
        lowest = float(everything[kept].min())
        assert kept.all() or everything[~kept].max() <= lowest, "over all matrices together"
        described = pruner.describe(point)
        assert described["prune/requested_density"] == point.target_density
        in_force = lowest if method == "threshold" else 1 / (1 + math.exp(-lowest))
        assert described["prune/threshold"] == pytest.approx(in_force, rel=1e-5)
    assert pruner.level == pytest.approx(lowest)
    pruner.refresh(schedule.at(80), noise_seed=3)
    assert pruner.density().linear <= 0.1 + 1e-6
    pruner.refresh(schedule.at(100))
    pruner.fold()
    assert pruner.density().linear == pytest.approx(0.1, abs=1e-3)


def test_gates_that_a_target_density_closes_still_learn() -> None:
    settings = settings_of("l0", target_density=0.1)  # all scores equal, all gates open
    pruner = Pruner(bert(), settings)
    pruner.refresh(PruningSchedule(settings, 100, 10).at(100))
    layer = pruner.layers[NAMES[0]]
    (layer.masked_weight() * torch.ones_like(layer.weight)).sum().backward()
    assert layer.mask_scores is not None
    assert layer.mask_scores.grad is not None
    closed = layer.mask == 0
    assert closed.any()
    assert (layer.mask_scores.grad[closed] != 0).all()


def test_a_target_density_below_the_floors_own_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"target_density=0.0052 is less than .*; give at least 0.0"):
        Pruner(bert(), settings_of("sigmoid_threshold", target_density=0.0052))


@pytest.mark.parametrize("method", ["topk", "magnitude", "fisher", "sigmoid_threshold", "threshold", "l0"])
@DEVICES
def test_nan_is_refused_naming_the_layer(method: str, device: str) -> None:
    pruner = Pruner(bert().to(device), settings_of(method))
    layer = pruner.layers[NAMES[4]]
    spoiled = layer.weight if layer.mask_scores is None else layer.mask_scores
    with torch.no_grad():
        spoiled[2, 3] = float("nan")
    with pytest.raises(FloatingPointError, match=rf"NaN in the \w+ of {NAMES[4]}$"):
        pruner.refresh(at(None if method == "l0" else 0.5))


@DEVICES
def test_infinite_scores_are_not_refused_as_nan(device: str) -> None:
    pruner = Pruner(bert().to(device), settings_of("topk", **UNIFORM))
    layer = pruner.layers[NAMES[0]]
    with torch.no_grad():
        layer.mask_scores[0, 0], layer.mask_scores[0, 1] = float("inf"), float("-inf")  # type: ignore[index]
    pruner.refresh(at(0.5))
    assert layer.mask[0, :2].tolist() == [True, False]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"include": ["attention"]}, [name for name in NAMES if "attention" in name]),
        ({"include": [r"\.query$", r"\.key$"]}, [name for name in NAMES if name.endswith(("query", "key"))]),
        ({"exclude": [r"layer\.0\."]}, NAMES[6:]),
        ({"include": [r"layer\.1"], "exclude": ["attention", "intermediate"]}, NAMES[-1:]),
    ],
)
def test_rules_choose_layers(rule: dict[str, list[str]], expected: list[str]) -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(CONFIG)
    assert list(select_layers(model, LayerRule.model_validate(rule))) == expected
    assert list(Pruner(bert(), settings_of("topk", layers=rule)).layers) == expected


@pytest.mark.parametrize(
    ("rule", "parts"),
    [
        ({"include": ["nothing_here"]}, ["include", "'nothing_here'", "encoder.layer.*.attention.self.query (2)"]),
        ({"include": ["pooler"]}, ["include", "'pooler'"]),
        ({"exclude": ["embeddings"]}, ["exclude", "'embeddings'", "encoder.layer.*.output.dense (2)"]),
        ({"include": ["que(ry"]}, ["include", "'que(ry'", "not a regular expression"]),
        ({"include": ["query"], "exclude": ["layer"]}, ["leave no layer", "['query']", "['layer']"]),
    ],
)
def test_rules_that_match_nothing_are_refused(rule: dict[str, list[str]], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        Pruner(bert(), settings_of("topk", layers=rule))
    (problem,) = raised.value.problems
    assert problem.startswith("pruning.layers")
    assert [part for part in parts if part not in problem] == []


def test_all_problems_of_a_rule_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        select_layers(bert(), LayerRule(include=("[", "absent"), exclude=("missing",)))
    assert len(raised.value.problems) == 3


def test_models_in_which_masks_would_have_no_effect_are_refused() -> None:
    fused = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False)
    with pytest.raises(ConfigError, match="fused"):
        Pruner(fused, settings_of("topk"))
    with pytest.raises(ConfigError, match="no linear layer"):
        Pruner(nn.LayerNorm(3), settings_of("topk"))


def test_a_shared_layer_is_replaced_and_folded_everywhere() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.others = nn.ModuleList([self.first, nn.Linear(4, 4)])

        def forward(self, inputs: Tensor) -> Tensor:
            return self.others[1](self.others[0](self.first(inputs)))  # type: ignore[no-any-return]

    model = Shared()
    pruner = Pruner(model, settings_of("topk", **UNIFORM))
    assert list(pruner.layers) == ["first", "others.1"]
    assert model.first is model.others[0] is pruner.layers["first"]
    pruner.refresh(at(0.5))
    inputs = torch.randn(3, 4)
    outputs = model(inputs)
    pruner.fold()
    assert type(model.first) is nn.Linear
    assert model.first is model.others[0]
    assert torch.equal(model(inputs), outputs)


def test_a_patched_model_cannot_be_patched_again_and_a_folded_one_not_refreshed() -> None:
    model = bert()
    pruner = Pruner(model, settings_of("topk"))
    with pytest.raises(ValueError, match="already patched"):
        Pruner(model, settings_of("topk"))
    assert pruner.fold() is model
    assert not any(isinstance(module, MaskedLinear) for module in model.modules())
    for use in (pruner.fold, lambda: pruner.add_penalty(1.0), lambda: pruner.refresh(at(0.5))):
        with pytest.raises(RuntimeError, match="folded"):
            use()
    assert list(Pruner(model, settings_of("topk")).layers) == NAMES


def test_a_copy_of_pruner_and_model_is_independent() -> None:
    pruner = Pruner(bert(), settings_of("topk", **UNIFORM))
    pruner.refresh(at(0.3))
    twin = copy.deepcopy(pruner)
    before = pruner.model(**batch()).logits
    folded = twin.fold()
    torch.testing.assert_close(folded(**batch()).logits, before, atol=1e-6, rtol=0)
    assert pruner.density().linear == pytest.approx(0.3, abs=0.01)
    assert torch.equal(pruner.model(**batch()).logits, before)


def test_masks_change_only_at_a_refresh() -> None:
    model = bert()
    pruner = Pruner(model, settings_of("topk", **UNIFORM))
    pruner.refresh(at(0.3))
    before = model(**batch()).logits
    with torch.no_grad():
        for _, scores in pruner.scores():
            scores.neg_()
    assert torch.equal(model(**batch()).logits, before)
    pruner.refresh(at(0.3))
    assert not torch.equal(model(**batch()).logits, before)


def test_a_whole_fine_pruning_learns_and_ends_at_the_requested_density() -> None:
    """Forty steps on one batch through the public interface alone, as in a user's own loop."""
    model = bert().train()
    settings = settings_of("topk", final_density=0.3, initial_warmup=1, final_warmup=1)
    pruner, schedule = Pruner(model, settings), PruningSchedule(settings, total_steps=40, warmup_steps=4)
    masks = {id(scores) for _, scores in pruner.scores()}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if id(p) not in masks], "lr": 5e-3},
            {"params": [scores for _, scores in pruner.scores()], "lr": 1e-2, "weight_decay": 0.0},
        ]
    )
    losses = []
    for step in range(40):
        pruner.refresh(schedule.at(step), noise_seed=step)
        loss = model(**batch()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    pruner.refresh(schedule.at(40))
    assert losses[-1] < 0.25 * losses[0]
    total = sum(layer.weight.numel() for layer in pruner.layers.values())
    assert pruner.density().linear == sum(int(0.3 * ly.weight.numel()) for ly in pruner.layers.values()) / total


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize(
    ("method", "value", "fields", "waits"),
    [
        # All methods wait once, to learn whether a score is NaN; most of them once more, to learn the counts of all
        # masks.
        ("topk", 0.3, {}, 2),
        ("topk", 0.3, {"scope": "global"}, 2),
        ("magnitude", 0.3, {}, 2),
        ("threshold", 0.0, {}, 2),
        # The threshold is above all scores: every matrix is filled up to its floor, whose count is learned, too.
        ("sigmoid_threshold", 0.9, {}, 3),
        ("l0", None, {}, 1),
    ],
)
def test_a_refresh_waits_for_the_device_no_more_often_for_more_matrices(
    method: str, value: float | None, fields: dict[str, Any], waits: int, layers: int
) -> None:
    if method not in ("magnitude", "l0"):
        fields = {**fields, "score_initialization": {"kind": "uniform", "scale": 1.0}}
    # On a CPU float32 is selected with numpy. The other types are selected as on a GPU.
    model = bert(layers=layers).double()
    pruner = Pruner(model, settings_of(method, **fields))
    model.double()
    pruner.refresh(at(value))
    with Waits() as counted:
        pruner.refresh(at(value))  # without noise, which is made on the CPU
    assert counted.count == waits
