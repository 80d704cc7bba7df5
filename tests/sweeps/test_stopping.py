"""Successive halving inside strata: who competes with whom, who is stopped, and that no stratum is left without a trial
that finishes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raypp.config import StoppingSettings
from raypp.load_config import experiment_from
from raypp.sweeps.stopping import Halving, rungs_of, stratum_of


def halving(**settings: float) -> Halving:
    return Halving(StoppingSettings(**settings))


@pytest.mark.parametrize(
    ("pruning", "stratum"),
    [
        (None, "dense"),
        ({"method": "topk", "final_density": 0.15}, "density 0.15"),
        ({"method": "magnitude", "final_density": 0.15}, "density 0.15"),
        (
            {"method": "sigmoid_threshold", "penalty": {"kind": "l1", "final_lambda": 100.0}},
            "sigmoid_threshold threshold 0.1 lambda 100",
        ),
        ({"method": "l0", "penalty": {"kind": "l0", "final_lambda": 125.0}}, "l0 lambda 125"),
        ({"method": "threshold", "final_threshold": 0.02}, "threshold threshold 0.02"),
    ],
)
def test_trials_of_one_requested_density_compete(pruning: Any, stratum: str) -> None:
    values = {"name": "one", "task": "sentiment", "student": {"model": "m"}, "pruning": pruning}
    assert stratum_of(experiment_from(values)) == stratum


def test_rungs_are_fractions_of_the_steps() -> None:
    assert rungs_of(StoppingSettings()) == (0.25, 0.5)
    assert rungs_of(StoppingSettings(grace_fraction=0.1, reduction_factor=3)) == pytest.approx((0.1, 0.3, 0.9))
    assert rungs_of(StoppingSettings(grace_fraction=0.6)) == (0.6,)


def test_the_better_half_goes_on() -> None:
    judge = halving().judge
    decisions = []
    for number, metric in enumerate([0.6, 0.7, 0.5, 0.65, 0.7]):
        judgement = judge(str(number), "density 0.1", 0.25, metric)
        assert judgement is not None
        decisions.append((judgement.stops, judgement.cut, judgement.compared))
    # Of n so far, the best ceil(n / 2) go on; who equals the last of them, too.
    assert decisions == [(False, 0.6, 1), (False, 0.7, 2), (True, 0.6, 3), (False, 0.65, 4), (False, 0.65, 5)]


def test_an_evaluation_counts_at_the_last_rung_it_reached_and_once() -> None:
    judge = halving().judge
    assert judge("a", "dense", 0.2, 0.9) is None, "before the first rung"
    first = judge("a", "dense", 0.3, 0.8)
    assert first is not None
    assert (first.rung, first.fraction) == (0.25, 0.3)
    assert judge("a", "dense", 0.4, 0.1) is None, "judged at this rung already"
    assert judge("a", "dense", 0.25 * 2, 0.7).rung == 0.5  # type: ignore[union-attr]
    assert judge("a", "dense", 1.0, 0.1) is None, "it is finished"
    assert judge("b", "density 0.1", 0.25, 0.0).stops is False, "another stratum"  # type: ignore[union-attr]
    assert judge("b", "dense", 0.25, 0.79).stops is True  # type: ignore[union-attr]


def test_who_failed_is_no_measure_for_the_others() -> None:
    rungs = halving()
    rungs.judge("good", "dense", 0.25, 0.9)
    rungs.forget("good")
    judgement = rungs.judge("other", "dense", 0.25, 0.2)
    assert judgement is not None
    assert not judgement.stops


@pytest.mark.parametrize("seed", range(20))
def test_the_best_of_a_stratum_is_never_stopped(seed: int) -> None:
    random = np.random.default_rng(seed)
    rungs = halving(grace_fraction=0.1, reduction_factor=float(random.uniform(1.5, 4)))
    strata = ("density 0.5", "density 0.03")
    running = {f"{stratum}-{number}": (stratum, 0.0) for stratum in strata for number in range(10)}
    best: dict[tuple[str, float], float] = {}
    finished: set[str] = set()
    while running:  # in any order, with any metrics
        name = random.choice(sorted(running))
        stratum, fraction = running[name]
        fraction, metric = fraction + 0.1, float(random.normal())
        running[name] = (stratum, fraction)
        judgement = rungs.judge(name, stratum, fraction, metric)
        if judgement is not None:
            key = (stratum, judgement.rung)
            assert not (judgement.stops and metric >= best.get(key, metric)), "the best so far at this rung"
            best[key] = max(metric, best.get(key, metric))
        if judgement is not None and judgement.stops:
            del running[name]
        elif fraction > 0.99:
            del running[name]
            finished.add(stratum)
    assert finished == set(strata), "every stratum has a trial that was run to its end"


def test_where_less_is_better_the_trials_of_more_are_stopped() -> None:
    rungs = Halving(StoppingSettings(grace_fraction=0.5, reduction_factor=2), lower_is_better=True)
    first = rungs.judge("a", "dense", 0.5, 20.0)
    second = rungs.judge("b", "dense", 0.5, 30.0)
    third = rungs.judge("c", "dense", 0.5, 10.0)
    assert [judgement and judgement.stops for judgement in (first, second, third)] == [False, True, False]
