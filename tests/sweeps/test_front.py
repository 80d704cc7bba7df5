"""The front of a sweep: who is on it, means over seeds, and its files."""

from __future__ import annotations

import csv
from typing import Any

import pytest

from raypp.sweeps.front import best_runs, front_csv, pareto, points_of


def result(run: str, density: float, metric: float) -> dict[str, Any]:
    return {
        "headline": "eval/accuracy",
        "metrics": {"eval/accuracy": metric},
        "density": {"linear": density},
        "paths": {"run": f"runs/{run}"},
    }


RESULTS = [
    (0, {"pruning.final_density": 0.5}, result("a", 0.5, 0.90)),
    (0, {"pruning.final_density": 0.5}, result("b", 0.5, 0.94)),
    (1, {"pruning.final_density": 0.3}, result("c", 0.3, 0.80)),
    (2, {"pruning.final_density": 0.1}, result("d", 0.1, 0.85)),
    (3, {"pruning.method": "l0"}, result("e", 0.03, 0.60)),
]


def test_a_point_that_another_beats_in_both_is_not_on_the_front() -> None:
    assert pareto([(0.5, 0.9), (0.3, 0.8), (0.1, 0.85), (0.03, 0.6)]) == [True, False, True, True]
    assert pareto([(0.5, 0.9), (0.5, 0.9)]) == [True, True], "equals do not beat each other"
    assert pareto([(0.5, 0.9), (0.4, 0.9)]) == [False, True]
    assert pareto([]) == []


def test_a_selection_that_was_rounded_down_is_not_the_sparser_one() -> None:
    collapsed, kept = result("collapsed", 0.029998, 0.51), result("kept", 0.03, 0.82)
    points = points_of([(0, {}, collapsed), (1, {}, kept)])
    assert {point.number: point.on_front for point in points} == {0: False, 1: True}


def test_points_are_means_over_their_seeds() -> None:
    points = points_of(RESULTS)
    assert [(p.density, round(p.metric, 4), len(p.runs), p.on_front) for p in points] == [
        (0.5, 0.92, 2, True), (0.3, 0.80, 1, False), (0.1, 0.85, 1, True), (0.03, 0.60, 1, True),
    ]  # fmt: skip
    assert points[0].runs == ("runs/b", "runs/a"), "the best first"
    assert points[0].spread == pytest.approx(0.0283, abs=1e-4)
    assert best_runs(points) == {"0.5000": "runs/b", "0.1000": "runs/d", "0.0300": "runs/e"}


def test_the_table_has_every_point_with_its_settings() -> None:
    rows = list(csv.DictReader(front_csv(points_of(RESULTS), "eval/accuracy").splitlines()))
    assert [row["on_front"] for row in rows] == ["yes", "no", "yes", "yes"]
    assert rows[0]["best_run"] == "runs/b"
    assert (rows[3]["pruning.method"], rows[3]["pruning.final_density"]) == ("l0", "")


def test_where_less_is_better_the_front_is_the_other_way_round() -> None:
    measured = [(1.0, 5.0), (0.5, 6.0), (0.5, 9.0), (0.4, 7.0)]
    results = []
    for number, (density, perplexity) in enumerate(measured):
        metrics = {"headline": "eval/perplexity", "metrics": {"eval/perplexity": perplexity}}
        results.append((number, {}, {**result(str(number), density, 0.0), **metrics}))
    points = {point.number: point for point in points_of(results)}
    assert [points[number].on_front for number in range(4)] == [True, True, False, True]
    assert best_runs(list(points.values()))["0.5000"] == "runs/1"
