"""The schedule against the original's formula, its ends, its lambda, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from pruning_settings import settings_of

from raypp.errors import ConfigError
from raypp.pruning import PruningSchedule


def make(total_steps: int, warmup_steps: int, **settings: Any) -> PruningSchedule:
    return PruningSchedule(settings_of(**settings), total_steps, warmup_steps)


def original(
    step: int, total: int, warmup: int, initial: float, final: float, initial_warmup: int, final_warmup: int
) -> float:
    """The original's schedule_threshold, step by step."""
    if step <= initial_warmup * warmup:
        return initial
    if step > total - final_warmup * warmup:
        return final
    start = initial_warmup * warmup
    length = total - (initial_warmup + final_warmup) * warmup
    return final + (initial - final) * (1 - (step - start) / length) ** 3


@pytest.mark.parametrize(
    ("total", "warmup", "initial_warmup", "final_warmup"),
    [
        (100, 10, 1, 2),
        (345, 17, 2, 3),
        (50, 1, 1, 1),
        (31, 10, 1, 2),
        (40, 7, 0, 2),
        (40, 7, 3, 0),
        (9, 0, 1, 2),
        (1, 0, 0, 0),
    ],
)
@pytest.mark.parametrize(
    ("method", "kind", "initial", "final"),
    [
        ("topk", "density", 1.0, 0.15),
        ("sigmoid_threshold", "threshold", 0.0, 0.1),
        ("threshold", "threshold", -1.0, 0.3),
    ],
)
def test_values_are_the_originals_at_every_step(
    total: int,
    warmup: int,
    initial_warmup: int,
    final_warmup: int,
    method: str,
    kind: str,
    initial: float,
    final: float,
) -> None:
    schedule = make(
        total, warmup, method=method, initial_warmup=initial_warmup, final_warmup=final_warmup,
        **{f"initial_{kind}": initial, f"final_{kind}": final},
    )  # fmt: skip
    for step in range(total + 3):
        point = schedule.at(step)
        expected = original(step, total, warmup, initial, final, initial_warmup, final_warmup)
        assert point.value == pytest.approx(expected, rel=1e-12, abs=1e-15)
        assert point.progress == pytest.approx((expected - initial) / (final - initial), rel=1e-9, abs=1e-12)
        assert point.is_final == (point.value == final if kind == "density" else step >= total)


def test_both_ends_are_exact() -> None:
    schedule = make(100, 10, method="topk", initial_density=0.7, final_density=0.1)
    assert [schedule.at(step).value for step in (0, 10)] == [0.7, 0.7]
    assert 0.1 < (schedule.at(79).value or 0) < (schedule.at(11).value or 0) < 0.7
    assert {schedule.at(step).value for step in (80, 81, 99, 100, 1000)} == {0.1}
    assert [schedule.at(step).progress for step in (0, 10, 80, 100)] == [0.0, 0.0, 1.0, 1.0]


def test_with_a_final_warmup_the_last_step_trains_at_the_final_value() -> None:
    for warmup in (1, 2, 9):
        schedule = make(30, warmup, method="magnitude", initial_warmup=1, final_warmup=1, final_density=0.2)
        assert schedule.at(29).is_final
        assert schedule.at(29).value == 0.2


def test_without_a_final_warmup_the_evaluation_after_the_last_step_is_at_the_final_value() -> None:
    schedule = make(30, 5, method="topk", final_warmup=0, final_density=0.2)
    assert not schedule.at(29).is_final
    assert schedule.at(30).is_final
    assert schedule.at(30).value == 0.2


def test_the_value_never_rises_towards_a_lower_density() -> None:
    schedule = make(500, 20, method="topk", final_density=0.03)
    values = [schedule.at(step).value or 0 for step in range(501)]
    assert values == sorted(values, reverse=True)


def test_lambda_is_the_originals_for_the_papers_recipe() -> None:
    schedule = make(
        100, 10, method="sigmoid_threshold", initial_threshold=0.0, final_threshold=0.1, final_warmup=1,
        penalty={"kind": "l1", "final_lambda": 400.0},
    )  # fmt: skip
    for step in range(101):
        expected = 400.0 * original(step, 100, 10, 0.0, 0.1, 1, 1) / 0.1
        assert schedule.at(step).penalty_lambda == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "sigmoid_threshold", "initial_threshold": 0.0, "final_threshold": 0.0},  # the original divides by it
        {"method": "topk"},
        {"method": "l0"},
    ],
)
def test_lambda_rises_from_zero_to_its_final_value_for_every_method(settings: dict[str, Any]) -> None:
    schedule = make(60, 5, **settings, penalty={"kind": "l0", "final_lambda": 125.0})
    lambdas = [schedule.at(step).penalty_lambda for step in range(61)]
    assert lambdas[:6] == [0.0] * 6
    assert lambdas == sorted(lambdas)
    assert set(lambdas[50:]) == {125.0}


@pytest.mark.parametrize("method", ["sigmoid_threshold", "threshold", "l0"])
def test_a_target_density_follows_the_cubic_and_is_final_from_the_final_warmup_on(method: str) -> None:
    schedule = make(100, 10, method=method, target_density=0.1)
    for step in range(101):
        expected = original(step, 100, 10, 1.0, 0.1, 1, 2)
        assert schedule.at(step).target_density == pytest.approx(expected, rel=1e-12)
        assert schedule.at(step).is_final == (step >= 80)


def test_without_a_penalty_lambda_is_zero() -> None:
    for method in ("topk", "magnitude", "sigmoid_threshold", "threshold", "l0"):
        assert {make(20, 2, method=method).at(step).penalty_lambda for step in range(21)} == {0.0}


def test_l0_has_no_value() -> None:
    schedule = make(20, 2, method="l0")
    assert {schedule.at(step).value for step in range(21)} == {None}


def test_a_constant_density_is_final_from_the_first_step() -> None:
    assert make(20, 2, method="topk", initial_density=0.3, final_density=0.3).at(0).is_final


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "sigmoid_threshold"},
        {"method": "sigmoid_threshold", "initial_threshold": 0.1, "final_threshold": 0.1},
        {"method": "threshold"},
        {"method": "l0"},
    ],
)
def test_without_a_requested_density_only_the_last_step_is_final(settings: dict[str, Any]) -> None:
    schedule = make(20, 2, **settings)
    assert schedule.at(16).progress == 1.0, "the threshold is final earlier"
    assert [step for step in range(22) if schedule.at(step).is_final] == [20, 21]


@pytest.mark.parametrize(("total", "warmup"), [(30, 10), (29, 10), (3, 1), (1, 10), (0, 0)])
def test_a_schedule_that_cannot_reach_its_end_is_refused(total: int, warmup: int) -> None:
    with pytest.raises(ConfigError):
        make(total, warmup, method="topk", initial_warmup=1, final_warmup=2)


def test_the_refusal_names_every_field_its_number_and_what_is_allowed() -> None:
    with pytest.raises(ConfigError) as raised:
        make(100, 40, method="topk", initial_warmup=1, final_warmup=2)
    (problem,) = raised.value.problems
    for part in (
        "pruning.initial_warmup=1", "pruning.final_warmup=2", "train.warmup_steps=40", "100", "= 120 steps",
        "at least 121 training steps", "train.warmup_steps of at most 33", "initial_warmup + final_warmup of at most 2",
    ):  # fmt: skip
        assert part in problem


def test_each_remedy_the_refusal_offers_works() -> None:
    for total, warmup, initial_warmup, final_warmup in ((121, 40, 1, 2), (100, 33, 1, 2), (100, 40, 1, 1)):
        schedule = make(total, warmup, method="topk", initial_warmup=initial_warmup, final_warmup=final_warmup)
        assert schedule.at(total).is_final
        assert not schedule.at(0).is_final


def test_steps_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        make(20, 2, method="topk").at(-1)
