"""The front of a sweep: its points, the means over seeds, and its files."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any

import pytest

from raypp.sweeps.front import best_runs, front_csv, pareto, points_of
from raypp.sweeps.trial_outcome import EndState, TrialOutcome

ACCURACY = "eval/accuracy"


def outcome(
    point: int, run: str, density: float, metric: float, settings: Mapping[str, Any], state: EndState = "finished"
) -> TrialOutcome:
    path, stratum = f"runs/{run}", f"density {density:g}"
    return TrialOutcome(run, path, point, 42, settings, stratum, state, density, metric, fraction=1.0, seconds=1.0)


OUTCOMES = [
    outcome(0, "a", 0.5, 0.90, {"pruning.final_density": 0.5}),
    outcome(0, "b", 0.5, 0.94, {"pruning.final_density": 0.5}),
    outcome(0, "stopped", 0.5, 0.99, {"pruning.final_density": 0.5}, "stopped"),
    outcome(1, "c", 0.3, 0.80, {"pruning.final_density": 0.3}),
    outcome(2, "d", 0.1, 0.85, {"pruning.final_density": 0.1}),
    outcome(3, "e", 0.03, 0.60, {"pruning.method": "l0"}),
    outcome(4, "failed", 0.01, 0.99, {"pruning.final_density": 0.01}, "failed"),
]


def test_a_point_that_another_beats_in_both_is_not_on_the_front() -> None:
    assert pareto([(0.5, 0.9), (0.3, 0.8), (0.1, 0.85), (0.03, 0.6)]) == [True, False, True, True]
    assert pareto([(0.5, 0.9), (0.5, 0.9)]) == [True, True], "equals do not beat each other"
    assert pareto([(0.5, 0.9), (0.4, 0.9)]) == [False, True]
    assert pareto([]) == []


def test_a_selection_that_was_rounded_down_is_not_the_sparser_one() -> None:
    collapsed, kept = outcome(0, "collapsed", 0.029998, 0.51, {}), outcome(1, "kept", 0.03, 0.82, {})
    points = points_of([collapsed, kept], ACCURACY)
    assert {point.number: point.on_front for point in points} == {0: False, 1: True}


def test_points_are_means_over_their_finished_seeds() -> None:
    points = points_of(OUTCOMES, ACCURACY)
    assert [(p.density, round(p.metric, 4), len(p.runs), p.on_front) for p in points] == [
        (0.5, 0.92, 2, True), (0.3, 0.80, 1, False), (0.1, 0.85, 1, True), (0.03, 0.60, 1, True),
    ]  # fmt: skip
    assert points[0].runs == ("runs/b", "runs/a"), "the best first"
    assert points[0].spread == pytest.approx(0.0283, abs=1e-4)
    assert best_runs(points) == {"0.5000": "runs/b", "0.1000": "runs/d", "0.0300": "runs/e"}


def test_the_table_has_every_point_with_its_settings() -> None:
    rows = list(csv.DictReader(front_csv(points_of(OUTCOMES, ACCURACY), ACCURACY).splitlines()))
    assert [row["on_front"] for row in rows] == ["yes", "no", "yes", "yes"]
    assert rows[0]["best_run"] == "runs/b"
    assert (rows[3]["pruning.method"], rows[3]["pruning.final_density"]) == ("l0", "")


def test_where_less_is_better_the_front_is_the_other_way_round() -> None:
    measured = [(1.0, 5.0), (0.5, 6.0), (0.5, 9.0), (0.4, 7.0)]
    outcomes = [outcome(i, str(i), density, perplexity, {}) for i, (density, perplexity) in enumerate(measured)]
    points = {point.number: point for point in points_of(outcomes, "eval/perplexity")}
    assert [points[number].on_front for number in range(4)] == [True, True, False, True]
    assert best_runs(list(points.values()))["0.5000"] == "runs/1"
