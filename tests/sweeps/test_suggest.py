"""The points that Optuna draws: within the space, learned from results, and the same again after an interruption."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raypp.errors import ConfigError
from raypp.load_config import experiment_from
from raypp.sweeps.points import trials_of
from raypp.sweeps.space import Changes, Space
from raypp.sweeps.suggest import STARTUP, Observation, as_many_as_wanted, first_points, suggest

RATE = "pruning.mask_learning_rate"
DENSITY = "pruning.final_density"


def space(axes: dict[str, Any], trials: int = 12, seed: int = 0) -> Space:
    values = {
        "name": "swept",
        "task": "sentiment",
        "student": {"model": "some/encoder"},
        "pruning": {"method": "topk", "final_density": 0.5},
        "sweep": {"space": axes, "search": "optuna", "trials": trials, "seed": seed},
    }
    return Space.of(experiment_from(values))


def outcome(point: Changes) -> tuple[float, float]:
    """Metric and density of a point: best at a rate of 1e-2, worse the sparser."""
    density = point.get(DENSITY, 0.5)
    return density**0.1 - 0.1 * abs(np.log10(point[RATE]) + 2), density


def searched(space: Space, told: list[Observation] | None = None) -> list[Observation]:
    """The search to its end, one point at a time."""
    told = list(told or [])
    while (point := suggest(space, told)) is not None:
        told.append(Observation(point, "finished", *outcome(point)))
    return told


def test_a_search_comes_nearer_to_the_best() -> None:
    found = searched(space({RATE: {"loguniform": [1e-4, 1.0]}}, trials=40))
    assert len(found) == 40
    distances = [abs(np.log10(each.point[RATE]) + 2) for each in found]
    assert np.mean(distances[-10:]) < 0.5 * np.mean(distances[:STARTUP])


def test_an_interrupted_search_goes_on_as_it_would_have() -> None:
    axes = {
        RATE: {"loguniform": [1e-4, 1.0]},
        DENSITY: {"quniform": [0.05, 0.5, 0.05]},
        "pruning.scope": {"choice": ["local", "global"]},
        "train.batch_size": {"randint": [8, 32]},
        "train.warmup_fraction": {"uniform": [0.05, 0.2]},
    }
    whole = searched(space(axes))
    assert searched(space(axes), whole[:7]) == whole
    assert searched(space(axes, trials=8)) == whole[:8], "a longer search begins with the same points"
    assert searched(space(axes, seed=1))[0] != whole[0]
    assert [each.point for each in whole[:STARTUP]] == first_points(space(axes))
    densities = {round(each.point[DENSITY] / 0.05, 6) for each in whole}
    assert densities <= set(range(1, 11))


def test_a_stopped_point_counts_as_a_bad_one() -> None:
    axes = {RATE: {"loguniform": [1e-4, 1.0]}}
    told = [
        Observation({RATE: rate}, "finished" if rate < 1e-2 else "lost", *((0.9, 0.5) if rate < 1e-2 else (0.0, 0.0)))
        for rate in np.geomspace(1e-4, 1.0, 20).tolist()
    ]
    rates = []
    for _ in range(10):
        point = suggest(space(axes, trials=30), told)
        assert point is not None
        told.append(Observation(point, "running"))
        rates.append(point[RATE])
    assert np.median(rates) < 1e-2


@pytest.mark.parametrize("seed", range(3))
def test_listed_values_are_all_found_before_a_search_ends(seed: int) -> None:
    axes = {DENSITY: {"choice": [0.5, 0.4, 0.3, 0.2, 0.1]}, RATE: {"choice": [1e-4, 1e-3, 1e-2, 1e-1]}}
    assert len(searched(space(axes, trials=16, seed=seed))) == 16
    assert len(searched(space(axes, trials=30, seed=seed))) == 20, "of all there are"
    stepped = {DENSITY: {"quniform": [0.05, 0.5, 0.05]}, RATE: axes[RATE]}
    assert len(searched(space(stepped, trials=30, seed=seed))) == 30


@pytest.mark.parametrize("seed", range(5))
def test_what_was_lost_is_not_looked_for_where_little_has_finished(seed: int) -> None:
    """The first to end are those that diverge; more of them must not follow."""
    axes = {RATE: {"loguniform": [1e-4, 1.0]}}
    told = [Observation({RATE: rate}, "running") for rate in (1e-3, 4e-3, 1e-2, 2e-2)] + [
        Observation({RATE: 0.5}, "lost")
    ]
    points = [suggest(space(axes, trials=60, seed=number), told) for number in range(40 * seed, 40 * seed + 40)]
    above = np.mean([point is not None and point[RATE] > 0.1 for point in points])
    assert above < 0.6, "a quarter is, by chance"
    told = [Observation({RATE: rate}, "finished", 0.9, 0.5) for rate in np.geomspace(1e-4, 1e-2, 5).tolist()]
    told += [Observation({RATE: rate}, "lost") for rate in np.geomspace(0.1, 0.9, 60).tolist()]
    points = [suggest(space(axes, trials=90, seed=number), told) for number in range(10)]
    assert np.median([point[RATE] for point in points if point is not None]) < 0.1


def test_an_axis_that_does_not_matter_is_not_drawn() -> None:
    axes = {
        "pruning.method": {"choice": ["topk", "magnitude"]},
        RATE: {"loguniform": [1e-3, 1e-1], "when": {"pruning.method": "topk"}},
        DENSITY: {"uniform": [0.05, 0.5]},
    }
    told: list[Observation] = []
    while (point := suggest(space(axes, trials=20), told)) is not None:
        assert (RATE in point) == (point["pruning.method"] == "topk")
        told.append(Observation(point, "finished", *outcome({RATE: 1e-2, **point})))
    assert {each.point["pruning.method"] for each in told} == {"topk", "magnitude"}
    assert len(told) == 20


def test_every_value_of_a_grid_axis_has_as_many_points() -> None:
    axes = {DENSITY: {"grid": [0.5, 0.1, 0.03]}, RATE: {"loguniform": [1e-4, 1.0]}}
    found = searched(space(axes, trials=8))
    densities = [each.point[DENSITY] for each in found]
    assert densities == [0.5, 0.1, 0.03] * 8
    drawn = trials_of(experiment_with({"space": axes, "search": "random", "trials": 2}))
    assert [trial.changes[DENSITY] for trial in drawn] == [0.5, 0.1, 0.03] * 2
    assert len({trial.changes[RATE] for trial in drawn}) == 2, "each draw is tried with every value"
    listed = trials_of(experiment_with({"space": {DENSITY: {"grid": [0.5, 0.1]}, RATE: {"choice": [1e-2, 1e-1]}}}))
    assert len(listed) == 4


METHOD = "pruning.method"
# Of magnitude there is one point, of topk as many as one likes.
UNEVEN = {METHOD: {"grid": ["magnitude", "topk"]}, RATE: {"loguniform": [1e-4, 1.0], "when": {METHOD: "topk"}}}


def test_a_combination_without_more_points_lets_the_others_go_on() -> None:
    found: list[Observation] = []
    while (point := suggest(space(UNEVEN, trials=10), found)) is not None:
        found.append(Observation(point, "finished", *outcome({RATE: 1e-2, **point})))
    assert [each.point[METHOD] for each in found] == ["magnitude", *["topk"] * 10]
    assert len({each.point.get(RATE) for each in found}) == 11
    assert first_points(space(UNEVEN, trials=10)) == [each.point for each in found[: 1 + STARTUP]]
    listed = {DENSITY: {"grid": [0.5, 0.1]}, RATE: {"choice": [1e-3, 1e-2, 1e-1]}}
    points = [each.point for each in searched(space(listed, trials=10))]
    assert sorted((point[DENSITY], point[RATE]) for point in points) == [
        (density, rate) for density in (0.1, 0.5) for rate in (1e-3, 1e-2, 1e-1)
    ]


def test_a_shorter_search_has_so_many_points_of_each_combination() -> None:
    found: list[Observation] = []
    while (point := suggest(space(UNEVEN, trials=10), found)) is not None:
        found.append(Observation(point, "finished", *outcome({RATE: 1e-2, **point})))
    points = [each.point for each in found]
    assert as_many_as_wanted(space(UNEVEN, trials=10), points) == points
    assert as_many_as_wanted(space(UNEVEN, trials=3), points) == points[:4]


def test_a_combination_of_which_no_point_fits_is_refused() -> None:
    def check(number: int, point: Changes) -> None:
        if point[METHOD] == "topk":
            raise ConfigError(f"{number}: topk does not fit")

    with pytest.raises(ConfigError, match="1: topk does not fit"):
        first_points(space(UNEVEN), check)


def experiment_with(sweep: dict[str, Any]) -> Any:
    values = {"name": "s", "task": "sentiment", "student": {"model": "m"}, "pruning": {"method": "topk"}}
    return experiment_from({**values, "sweep": sweep})


def test_a_small_space_is_drawn_once_through() -> None:
    found = searched(space({RATE: {"choice": [1e-3, 1e-2, 1e-1]}}, trials=10))
    assert sorted(each.point[RATE] for each in found) == [1e-3, 1e-2, 1e-1]


def test_a_combination_that_does_not_fit_is_drawn_again() -> None:
    axes = {"pruning.initial_density": {"uniform": [0.5, 1.0]}, DENSITY: {"quniform": [0.1, 0.5, 0.1]}}
    assert len(searched_densities(space(axes, trials=10))) == 10
    refused: list[Changes] = []

    def check(number: int, point: Changes) -> None:
        refused.append(point)
        raise ConfigError(f"{number}: does not fit")

    with pytest.raises(ConfigError, match="0: does not fit"):
        suggest(space(axes), [], check)
    assert len(refused) > 1


def searched_densities(space: Space) -> list[float]:
    told: list[Observation] = []
    while (point := suggest(space, told)) is not None:
        told.append(Observation(point, "finished", 0.5, point[DENSITY]))
    return [each.point[DENSITY] for each in told]


@pytest.mark.parametrize(
    ("sweep", "parts"),
    [
        ({"space": {"data.max_length": {"choice": [32, 64]}}}, ["data.max_length", "give its values as grid"]),
        ({"space": {DENSITY: {"grid": [0.5, 0.1]}}}, ["nothing to draw", "search: grid"]),
        ({"space": {DENSITY: {"uniform": [0.1, 2.0]}}}, ["final_density", "2.0"]),
        ({"space": {DENSITY: {"uniform": [0.1, 0.5]}}, "trials": None}, ["search: optuna needs trials"]),
        (
            {"space": {DENSITY: {"uniform": [0.1, 0.5]}}, "stopping": {}},
            ["sweep.stopping", "no two values drawn from a", "choice, grid or quniform"],
        ),
    ],
)
def test_what_optuna_cannot_search_is_refused(sweep: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        trials_of(experiment_with({"search": "optuna", "trials": 4, **sweep}))
    for part in parts:
        assert part in str(error.value)


def test_a_range_that_does_not_decide_the_density_may_be_stopped_in() -> None:
    soft = {"method": "sigmoid_threshold", "target_density": 0.1, "penalty": {"kind": "l1", "final_lambda": 100}}
    axes = {"pruning.penalty.final_lambda": {"loguniform": [1, 1000]}}
    values = {"name": "s", "task": "sentiment", "student": {"model": "m"}, "pruning": soft}
    sweep = {"space": axes, "search": "optuna", "trials": 4, "stopping": {}}
    assert len(trials_of(experiment_from({**values, "sweep": sweep}))) == 4
    targets = {**sweep, "space": {**axes, "pruning.target_density": {"choice": [0.1, 0.03]}}}
    assert len(trials_of(experiment_from({**values, "sweep": targets}))) == 4
    for without in (
        {"space": {**axes, "pruning.target_density": {"choice": [0.1, None]}}},
        {"space": {**axes, "pruning.method": {"choice": ["sigmoid_threshold", "threshold"]}}},
    ):
        with pytest.raises(ConfigError, match=r"final_lambda: with sweep\.stopping"):
            trials_of(experiment_from({**values, "sweep": {**sweep, **without}}))
