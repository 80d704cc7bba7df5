"""Stopping early as Tune asks for it, beside Tune's own ASHA, on the curves of a density ladder."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from raypp.cluster.scheduler import StratifiedHalvingScheduler
from raypp.cluster.trial_report import TrialReport
from raypp.config import StoppingSettings
from raypp.sweeps.stopping import Halving, Judgement

# Accuracy at each eighth of the schedule but the last, by requested density, then by learning rate. Those of density
# 0.5 are recorded (SST-2, 4,000 rows, MiniLM, magnitude); the sparser ones are drawn after them: lower, a deeper dip.
CURVES = {
    0.5: {
        "5e-4": [0.587, 0.734, 0.758, 0.655, 0.790, 0.810, 0.807],
        "1e-4": [0.513, 0.758, 0.775, 0.781, 0.760, 0.799, 0.805],
        "2e-5": [0.514, 0.514, 0.513, 0.513, 0.534, 0.654, 0.711],
    },
    0.1: {
        "5e-4": [0.552, 0.684, 0.676, 0.601, 0.702, 0.738, 0.745],
        "1e-4": [0.513, 0.690, 0.681, 0.640, 0.688, 0.721, 0.730],
        "2e-5": [0.514, 0.514, 0.513, 0.513, 0.515, 0.560, 0.602],
    },
    0.03: {
        "5e-4": [0.531, 0.621, 0.588, 0.543, 0.610, 0.652, 0.664],
        "1e-4": [0.513, 0.633, 0.602, 0.571, 0.598, 0.640, 0.649],
        "2e-5": [0.514, 0.513, 0.513, 0.513, 0.513, 0.520, 0.541],
    },
}
EIGHTHS = 8


def finished(scheduler: Any) -> dict[float, list[str]]:
    """The trials that a scheduler lets run to their end, by density: all start at once, the densest report first."""
    running = {
        (density, rate): SimpleNamespace(trial_id=f"{density}-{rate}", last_result={})
        for density, of_density in CURVES.items()
        for rate in of_density
    }
    for trial in running.values():
        scheduler.on_trial_add(None, trial)
    for number in range(EIGHTHS - 1):
        for (density, rate), trial in list(running.items()):
            report = TrialReport(
                trial=trial.trial_id,
                stratum=f"density {density}",
                fraction=(number + 1) / EIGHTHS,
                metric=CURVES[density][rate][number],
            )
            result = {"training_iteration": number + 1, **asdict(report)}
            if scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
                del running[density, rate]
    return {density: [rate for other, rate in running if other == density] for density in CURVES}


def test_the_front_keeps_its_sparse_end() -> None:
    asha = AsyncHyperBandScheduler(
        metric="metric", mode="max", max_t=EIGHTHS, grace_period=2, reduction_factor=2, stop_last_trials=False
    )
    assert finished(asha) == {0.5: ["5e-4", "1e-4"], 0.1: [], 0.03: []}, "what sorts by accuracy keeps the dense"

    stopped: list[Judgement] = []
    ours = StratifiedHalvingScheduler(Halving(StoppingSettings()), stopped.append)
    kept = finished(ours)
    assert all("1e-4" in of_density for of_density in kept.values()), "the best of each density at its rungs"
    assert all("2e-5" not in of_density for of_density in kept.values()), "and what learns nothing is stopped"
    assert len(stopped) == sum(map(len, CURVES.values())) - sum(map(len, kept.values()))
    assert {judgement.rung for judgement in stopped} <= {0.25, 0.5}
    assert "at 25% of its steps its metric was 0.5140" in str(stopped[0])


def test_a_report_without_an_evaluation_decides_nothing_and_a_failure_is_forgotten() -> None:
    scheduler = StratifiedHalvingScheduler(Halving(StoppingSettings()), lambda judgement: None)

    def report(trial: str, metric: float | None, failed: str | None = None) -> str:
        result = asdict(TrialReport(trial, "dense", 0.25, metric=metric, failed=failed))
        return scheduler.on_trial_result(None, SimpleNamespace(trial_id=trial), result)

    assert report("first", None) == TrialScheduler.CONTINUE
    assert report("first", 0.9) == TrialScheduler.CONTINUE
    assert report("second", 0.8) == TrialScheduler.STOP
    assert report("first", None, failed="not finite") == TrialScheduler.CONTINUE
    assert report("third", 0.1) == TrialScheduler.STOP, "the second's metric still counts"

    def fail(trial: str, tried_again: bool) -> None:
        last = asdict(TrialReport(trial, "dense", 0.25))
        failed = SimpleNamespace(trial_id=trial, last_result=last, should_recover=lambda: tried_again)
        scheduler.on_trial_error(None, failed)

    fail("second", tried_again=True)
    assert report("fourth", 0.05) == TrialScheduler.STOP, "it will be back"
    assert report("second", 0.8) == TrialScheduler.CONTINUE, "what it evaluates again is not judged again"
    fail("second", tried_again=False)
    fail("third", tried_again=False)
    fail("fourth", tried_again=False)
    assert report("fifth", 0.01) == TrialScheduler.CONTINUE

    # Before a trial's first report Tune's own result of it has only fields of Tune's.
    early = SimpleNamespace(trial_id="early", last_result={"trial_id": "early"}, should_recover=lambda: False)
    scheduler.on_trial_error(None, early)
