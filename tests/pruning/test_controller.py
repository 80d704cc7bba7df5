"""The controller of lambda against simulated training: scores under Adam, gradients of very different size, and lambda
the only means. Here nothing corrects the threshold, so what arrives is the controller's work alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from raypp.config import PruningSettings
from raypp.optim import rate_factor
from raypp.pruning.controller import LambdaController, NoController, build_controller
from raypp.pruning.masks import GATE_CLOSES, logit
from raypp.pruning.schedule import PruningSchedule

SCORES = 4000


def settings_of(method: str, **fields: Any) -> PruningSettings:
    adapter: TypeAdapter[PruningSettings] = TypeAdapter(PruningSettings)
    return adapter.validate_python({"method": method, **fields})


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
        ("l0", 1000, 3e-2, 0.3),
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
