"""The controller of lambda in simulated training: scores under Adam, with gradients of very different sizes.

Nothing corrects the threshold here, so the density at the end is due to lambda alone.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pruning_settings import settings_of

from raypp.pruning.controller import LambdaController, NoController, build_controller
from raypp.pruning.gates import GATE_CLOSES, hard_concrete
from raypp.pruning.level import logit
from raypp.pruning.schedule import PruningSchedule
from raypp.training.optim import rate_factor

SCORES = 4000


@dataclass
class Training:
    """Scores that Adam moves: each has a gradient of the task, mostly noise, and the l1 penalty's."""

    settings: Any
    total: int
    gradient: float
    """Usual size of a score's task gradient, in sizes of the penalty's at lambda 100."""

    def __post_init__(self) -> None:
        self.warmup = self.total // 10
        built = build_controller(self.settings, self.total, self.warmup)
        assert isinstance(built, LambdaController)
        self.controller = built
        self.schedule = PruningSchedule(self.settings, self.total, self.warmup)
        self.generator = torch.Generator().manual_seed(0)
        self.scores = torch.full((SCORES,), self.settings.score_initialization.scale).requires_grad_()
        self.noise = torch.exp(torch.randn(SCORES, generator=self.generator)) * self.gradient * 25 / SCORES
        self.drift = 0.1 * torch.randn(SCORES, generator=self.generator) * self.noise
        self.adam = torch.optim.Adam([self.scores])
        self.lambdas: list[float] = []

    def level(self) -> float:
        kept = int(self.settings.target_density * SCORES)
        return float(self.scores.detach().kthvalue(SCORES - kept + 1).values)

    def density(self) -> float:
        return float((self.scores > self.controller.goal).float().mean())

    def run(self, first: int, last: int) -> None:
        for step in range(first, last):
            self.controller.observe(step, self.level())
            self.lambdas.append(self.controller.at(self.schedule.at(step)).penalty_lambda)
            penalty = self.lambdas[-1] * torch.sigmoid(self.scores).mean()
            penalty.backward()
            assert self.scores.grad is not None
            self.scores.grad += self.drift + self.noise * torch.randn(SCORES, generator=self.generator)
            self.adam.param_groups[0]["lr"] = self.settings.mask_learning_rate * rate_factor(
                step, self.warmup, self.total
            )
            self.adam.step()
            self.adam.zero_grad()


@pytest.mark.parametrize("target", [0.5, 0.1, 0.03])
@pytest.mark.parametrize(
    ("method", "total", "rate", "gradient"),
    [
        ("sigmoid_threshold", 250, 3e-2, 0.3),
        ("sigmoid_threshold", 378, 3e-2, 5.0),
        ("sigmoid_threshold", 1000, 1e-2, 0.3),
        ("sigmoid_threshold", 1000, 3e-2, 5.0),
        ("l0", 1000, 3e-2, 5.0),
    ],
)
def test_lambda_alone_brings_the_density_where_scores_can_get_there(
    method: str, total: int, rate: float, gradient: float, target: float
) -> None:
    training = Training(settings_of(method, target_density=target, mask_learning_rate=rate), total, gradient)
    training.run(0, training.schedule.last_step)
    assert training.density() == pytest.approx(target, rel=0.15)
    training.run(training.schedule.last_step, total)
    assert training.density() == pytest.approx(target, rel=0.2), "and there it stays"


def test_a_target_out_of_reach_is_approached_without_lambda_running_away() -> None:
    # 120 steps at 1e-2 move scores by 0.6, and the threshold is 2.2 away.
    training = Training(settings_of("sigmoid_threshold", target_density=0.1, mask_learning_rate=1e-2), 120, 0.3)
    training.run(0, 120)
    gone = -training.level()
    assert 0.75 * sum(training.controller.rates) < gone < 2.0
    assert max(training.lambdas) < 100 * 100


def test_scores_that_are_already_too_low_get_less_and_less_penalty_but_never_a_negative_one() -> None:
    low = {"kind": "constant", "scale": 0.0}
    training = Training(settings_of("threshold", target_density=0.1, score_initialization=low), 200, 0.3)
    training.run(0, 200)
    assert 0 < training.lambdas[-1] < training.lambdas[50] < 100.0
    assert training.lambdas[-1] == pytest.approx(100 / 1e4), "and no less"


@pytest.mark.parametrize("cut", [1, 57, 180])
def test_a_controller_that_resumes_from_its_state_is_the_uninterrupted_one(cut: int) -> None:
    settings = settings_of("sigmoid_threshold", target_density=0.1, mask_learning_rate=3e-2)
    whole, resumed = Training(settings, 200, 1.0), Training(settings, 200, 1.0)
    whole.run(0, 200)
    resumed.run(0, cut)
    state = json.loads(json.dumps(resumed.controller.state_dict()))
    resumed.__dict__["controller"] = build_controller(settings, 200, 20)
    resumed.controller.load_state_dict(state)
    resumed.run(cut, 200)
    assert resumed.lambdas == whole.lambdas
    assert torch.equal(resumed.scores, whole.scores)


def test_the_needed_speed_is_the_remaining_distance_over_the_possible_distance() -> None:
    controller = LambdaController(1.0, goal=-2.0, rates=[0.1] * 40 + [0.05] * 10, arrival=40)
    assert controller.needed_speed(0, 0.0) == pytest.approx(0.5)
    assert controller.needed_speed(20, 0.0) == 0.9, "2.0 cannot be gone in 20 steps of 0.1"
    assert controller.needed_speed(30, -2.5) == pytest.approx(-0.5)
    assert controller.needed_speed(45, -1.9) == pytest.approx(0.4), "during the final warmup, until the end"


def test_without_a_target_lambda_is_the_schedules() -> None:
    for settings in (
        None,
        settings_of("topk", penalty={"kind": "l1", "final_lambda": 7.0}),
        settings_of("sigmoid_threshold", penalty={"kind": "l1", "final_lambda": 7.0}),
    ):
        controller = build_controller(settings, 100, 10)
        assert isinstance(controller, NoController)
        controller.observe(0, math.nan)
        if settings is not None:
            point = PruningSchedule(settings, 100, 10).at(80)
            assert controller.at(point) == point
            assert point.penalty_lambda == 7.0


@pytest.mark.parametrize(("method", "goal"), [("sigmoid_threshold", logit(0.1)), ("threshold", 0.1)])
def test_the_goal_is_the_final_threshold(method: str, goal: float) -> None:
    controller = build_controller(settings_of(method, target_density=0.1), 100, 10)
    assert isinstance(controller, LambdaController)
    assert controller.goal == goal


def test_a_gate_opens_just_above_l0s_goal() -> None:
    controller = build_controller(settings_of("l0", target_density=0.1), 100, 10)
    assert isinstance(controller, LambdaController)
    assert controller.goal == GATE_CLOSES
    gates, _ = hard_concrete(torch.tensor([GATE_CLOSES - 1e-3, GATE_CLOSES + 1e-3]), None)
    assert (gates > 0).tolist() == [False, True]
