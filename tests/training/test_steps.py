"""The number of steps of runs and when they evaluate, for epochs of equal and of different length."""

from __future__ import annotations

import random

import pytest

from raypp.config import EvaluationSettings, TrainSettings
from raypp.errors import ConfigError
from raypp.training.steps import StepPlan, plan_steps

EVERY_EPOCH = EvaluationSettings.model_validate({})


def plan(
    train: dict[str, object], counts: list[int], evaluation: EvaluationSettings = EVERY_EPOCH, saves: int | None = None
) -> StepPlan:
    return plan_steps(TrainSettings.model_validate(train), evaluation, lambda epoch: counts[epoch], saves)


def evaluated(steps: StepPlan) -> list[int]:
    return [done for done in range(1, steps.total + 1) if steps.evaluates_after(done)]


@pytest.mark.parametrize(
    ("train", "total"),
    [
        ({"epochs": 3}, 330),
        ({"epochs": 2.5}, 270),
        ({"epochs": 0.01}, 1),
        ({"max_steps": 7}, 7),
        ({"max_steps": 101}, 101),
        ({"max_steps": 331}, 331),
    ],
)
def test_total_steps_follow_from_the_epochs_or_are_the_given_number(train: dict[str, object], total: int) -> None:
    assert plan(train, [100, 110, 120, 90]).total == total


def test_a_step_has_the_right_place_in_its_epoch() -> None:
    steps = plan({"epochs": 3}, [2, 3, 1])
    assert [steps.place(step) for step in range(6)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert [steps.epochs_after(done) for done in (1, 2, 5, 6)] == [0.5, 1.0, 2.0, 3.0]
    assert steps.epochs_after(3) == pytest.approx(1 + 1 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_places_and_steps_agree_with_counting(seed: int) -> None:
    counts = random.Random(seed).choices(range(1, 7), k=30)
    expected = [(epoch, batch) for epoch, count in enumerate(counts) for batch in range(count)]
    by_epochs, by_steps = plan({"epochs": 30}, counts), plan({"max_steps": len(expected)}, counts)
    assert by_epochs.epoch_steps == by_steps.epoch_steps == tuple(counts)
    assert by_epochs.total == by_steps.total == len(expected)
    assert [by_epochs.place(step) for step in range(len(expected))] == expected
    assert by_epochs.place(len(expected)) == (30, 0)


@pytest.mark.parametrize("train", [{"epochs": 100_000}, {"max_steps": 100_000}])
def test_planning_many_short_epochs_does_not_walk_through_all_of_them_at_each_step(train: dict[str, object]) -> None:
    steps = plan(train, [1] * 100_000)
    assert evaluated(steps) == list(range(1, 100_001))
    assert steps.place(99_999) == (99_999, 0)


def test_evaluations_are_at_the_ends_of_epochs_or_their_fractions_and_at_the_last_step() -> None:
    assert evaluated(plan({"epochs": 3}, [100, 110, 120])) == [100, 210, 330]
    halves = EvaluationSettings.model_validate({"every_epochs": 0.5})
    assert evaluated(plan({"epochs": 2}, [5, 4], halves)) == [3, 5, 7, 9]
    assert evaluated(plan({"epochs": 1.2}, [10, 10])) == [10, 12]
    every_four = EvaluationSettings.model_validate({"every_steps": 4})
    assert evaluated(plan({"max_steps": 9}, [10], every_four)) == [4, 8, 9]


def test_checkpoints_are_written_at_evaluations_and_at_the_given_interval() -> None:
    steps = plan({"epochs": 2}, [5, 5], saves=4)
    assert [done for done in range(1, 11) if steps.saves_after(done)] == [4, 5, 8, 10]


def test_a_warmup_longer_than_the_run_is_refused() -> None:
    assert plan({"max_steps": 20}, [20]).warmup == 2
    with pytest.raises(ConfigError, match=r"train\.warmup_steps: 30 is more than the 20 steps"):
        plan({"max_steps": 20, "warmup_steps": 30}, [20])
