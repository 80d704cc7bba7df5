"""The online teacher on small random encoders with dropout: its losses against each row alone, and what they train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from raypp.config import DistillationSettings
from raypp.data.examples import Counts
from raypp.distillation.objective import Objective
from raypp.distillation.teacher import HiddenStateTerm, OnlineTeacher, even_pairs, hidden_state_terms
from raypp.kinds import kind_of
from raypp.tasks import TASKS

LENGTHS = (7, 3, 12, 5)
PAIRS = ((0, 0), (1, 2), (2, 4))
CPU = torch.device("cpu")


def encoder(layers: int, width: int, seed: int) -> Any:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=60,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    return BertForSequenceClassification(config)


def teacher_of(student: Any, teacher: Any, kind: Any = "mse", seed: int = 5) -> OnlineTeacher:
    terms = {"hidden_loss": HiddenStateTerm(PAIRS, kind)}
    return OnlineTeacher(teacher, kind_of(TASKS["mrpc"]), terms, student.config.hidden_size, seed, CPU)


def objective_of(teacher: OnlineTeacher) -> Objective:
    settings = DistillationSettings(soft_weight=0.0, hard_weight=0.5, hidden_weight=2.0)
    return Objective.build(kind_of(TASKS["mrpc"]), settings, teacher)


def rows_of(objective: Objective, rows: int) -> dict[str, int]:
    return objective.counts(Counts(rows, rows, rows))


def batch_of(rows: Sequence[int], padded_to: int) -> dict[str, Tensor]:
    ids = [torch.randint(1, 60, (LENGTHS[row],), generator=torch.Generator().manual_seed(row)) for row in rows]
    padded = torch.stack([functional.pad(row, (0, padded_to - len(row))) for row in ids])
    return {"input_ids": padded, "attention_mask": (padded > 0).long(), "labels": torch.tensor(rows) % 2}


def terms_of(objective: Objective, student: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    assert objective.teacher is not None
    return objective(student, {**batch, **objective.teacher.observe(batch)})


def test_an_even_map_ends_with_the_last_layer_and_leaves_the_embeddings_out() -> None:
    assert even_pairs(6, 12) == ((1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12))  # DistilBERT's and TinyBERT's
    assert even_pairs(3, 3) == ((1, 1), (2, 2), (3, 3))
    assert even_pairs(4, 6) == ((1, 2), (2, 3), (3, 5), (4, 6))
    assert even_pairs(4, 2) == ((1, 1), (2, 1), (3, 2), (4, 2))


@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_the_hidden_loss_is_the_mean_over_pairs_of_each_row_alone(kind: str, width: int) -> None:
    student, other = encoder(2, 16, seed=1).eval(), encoder(4, width, seed=2)
    teacher = teacher_of(student, other, kind)
    assert len(teacher.projections) == (3 if width != 16 else 0)
    expected = 0.0
    for row, length in enumerate(LENGTHS):
        inputs = {name: value for name, value in batch_of([row], length).items() if name != "labels"}
        with torch.no_grad():
            own = student(**inputs, output_hidden_states=True).hidden_states
            followed = other(**inputs, output_hidden_states=True).hidden_states
        for first, second in PAIRS:
            state = own[first]
            if width != 16:
                with torch.no_grad():
                    state = teacher.projections[f"{first}_{second}"](state)
            if kind == "mse":
                expected += float((state - followed[second]).square().mean()) / len(PAIRS)
            else:
                expected += float((1 - functional.cosine_similarity(state, followed[second], dim=-1)).mean()) / 3
    objective = objective_of(teacher)
    with torch.no_grad():
        whole = terms_of(objective, student, batch_of([0, 1, 2, 3], 16))
        shares = [terms_of(objective, student, batch) for batch in (batch_of([2, 0], 12), batch_of([1, 3], 8))]
    assert float(whole["hidden_loss"]) == pytest.approx(expected, rel=1e-5)
    assert sum(float(objective.loss(share, rows_of(objective, 4))) for share in shares) == pytest.approx(
        float(objective.loss(whole, rows_of(objective, 4))), rel=1e-5
    )
    per_row = {name: float(value) / 4 for name, value in whole.items()}
    weighed = 0.5 * per_row["hard_loss"] + 2.0 * per_row["hidden_loss"]
    assert float(objective.loss(whole, rows_of(objective, 4))) == pytest.approx(weighed, rel=1e-6)


@pytest.mark.parametrize("width", [16, 24])
def test_the_cosine_loss_is_torchs_on_the_last_states_and_shares_their_projection(width: int) -> None:
    student, other = encoder(2, 16, seed=1).eval(), encoder(4, width, seed=2)
    settings = DistillationSettings(
        soft_weight=0.0, hard_weight=0.5, hidden_weight=2.0, hidden_layers=((1, 2), (2, 4)), cosine_weight=3.0
    )
    compared = hidden_state_terms(settings, student.config, other.config)
    assert compared == {
        "hidden_loss": HiddenStateTerm(((1, 2), (2, 4)), "mse"),
        "cosine_loss": HiddenStateTerm(((2, 4),), "cosine"),
    }
    teacher = OnlineTeacher(other, kind_of(TASKS["mrpc"]), compared, 16, 5, CPU)
    assert set(teacher.projections) == ({"1_2", "2_4"} if width != 16 else set())
    objective = Objective.build(kind_of(TASKS["sst2"]), settings, teacher)
    batch = batch_of([1], LENGTHS[1])
    with torch.no_grad():
        terms = terms_of(objective, student, batch)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        own = student(**inputs, output_hidden_states=True).hidden_states[-1]
        own = teacher.projections["2_4"](own) if width != 16 else own
        followed = other(**inputs, output_hidden_states=True).hidden_states[-1]
    reference = torch.nn.CosineEmbeddingLoss()(own[0], followed[0], torch.ones(len(own[0])))
    torch.testing.assert_close(terms["cosine_loss"], reference)
    weighed = 0.5 * terms["hard_loss"] + 2.0 * terms["hidden_loss"] + 3.0 * terms["cosine_loss"]
    torch.testing.assert_close(objective.loss(terms, rows_of(objective, 1)), weighed)


def test_two_micro_batches_have_the_gradient_of_one() -> None:
    student = encoder(2, 16, seed=1).eval()
    objective = objective_of(teacher_of(student, encoder(4, 24, seed=2)))
    trained = [*student.parameters(), *objective.projections.parameters()]
    gradients = []
    for batches in ([batch_of([0, 1, 2, 3], 16)], [batch_of([2, 0, 1], 12), batch_of([3], 8)]):
        for parameter in trained:
            parameter.grad = None
        for batch in batches:
            objective.loss(terms_of(objective, student, batch), rows_of(objective, 4)).backward()
        gradients.append([parameter.grad for parameter in trained])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


def test_student_and_projections_are_trained_and_the_teacher_has_no_change_and_no_dropout() -> None:
    student, other = encoder(2, 16, seed=1).train(), encoder(4, 24, seed=2).train()
    teacher = teacher_of(student, other)
    batch = batch_of([0, 1, 2, 3], 16)
    first, second = teacher.observe(batch), teacher.observe(batch)
    assert len(first) == len(PAIRS)
    assert all(torch.equal(first[name], second[name]) for name in first)
    objective = objective_of(teacher)
    optimizer = torch.optim.AdamW([*student.parameters(), *objective.projections.parameters()], lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        terms = terms_of(objective, student, batch)
        objective.loss(terms, rows_of(objective, 4)).backward()
        optimizer.step()
        losses.append(float(terms["hidden_loss"].detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in other.parameters())
    assert all(parameter.grad is not None for parameter in objective.projections.parameters())


def test_projections_follow_from_the_seed_and_stay_in_float32() -> None:
    student, other = encoder(2, 16, seed=1), encoder(4, 24, seed=2)
    weights = [teacher_of(student, other, seed=seed).projections["1_2"].weight for seed in (5, 5, 6)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    objective = objective_of(teacher_of(student.eval(), other))
    batch = batch_of([0, 1, 2, 3], 16)
    exact = terms_of(objective, student, batch)["hidden_loss"].detach()
    seen: list[torch.dtype] = []
    for projection in objective.projections.values():
        projection.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = terms_of(objective, student, batch)["hidden_loss"].detach()
    assert seen == [torch.float32] * 3
    assert rounded.dtype == torch.float32
    assert float(rounded) == pytest.approx(float(exact), rel=0.05)
    assert float(rounded) != float(exact)
