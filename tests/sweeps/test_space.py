"""The points of a sweep: which there are, which axes matter, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypp.errors import ConfigError
from raypp.load_config import experiment_from, load_experiment
from raypp.sweeps.plan import plan_sweep
from raypp.sweeps.points import trials_of
from raypp.sweeps.space import Trial, as_overrides, distinguishing_settings


def trials(sweep: dict[str, Any], **sections: Any) -> list[Trial]:
    values = {
        "name": "swept",
        "task": "sentiment",
        "student": {"model": "some/encoder"},
        "pruning": {"method": "topk", "final_density": 0.5},
        "sweep": sweep,
        **sections,
    }
    return trials_of(experiment_from(values))


def test_a_grid_has_every_combination_in_order() -> None:
    space = {
        "pruning.final_density": {"choice": [0.5, 0.1]},
        "pruning.mask_learning_rate": {"choice": [1e-2, 1e-1]},
    }
    found = trials({"space": space})
    assert [tuple(trial.changes.values()) for trial in found] == [(0.5, 0.01), (0.5, 0.1), (0.1, 0.01), (0.1, 0.1)]
    pruning: Any = found[2].experiment.pruning
    assert (pruning.final_density, pruning.mask_learning_rate, pruning.method) == (0.1, 0.01, "topk")
    assert found[0].experiment.sweep is None


def test_an_axis_counts_only_when_another_field_says_so() -> None:
    space = {
        "pruning": {
            "choice": [
                {"method": "topk"},
                {"method": "sigmoid_threshold", "penalty": {"kind": "l1", "final_lambda": 1}},
            ]
        },
        "pruning.final_density": {"choice": [0.5, 0.1], "when": {"pruning.method": ["topk", "magnitude"]}},
        "pruning.penalty.final_lambda": {
            "choice": [20.0, 100.0, 400.0],
            "when": {"pruning.method": "sigmoid_threshold"},
        },
    }
    found: list[Any] = [trial.experiment.pruning for trial in trials({"space": space})]
    assert [p.method for p in found] == ["topk"] * 2 + ["sigmoid_threshold"] * 3
    assert [p.final_density for p in found[:2]] == [0.5, 0.1]
    assert [p.penalty.final_lambda for p in found[2:]] == [20.0, 100.0, 400.0]


@pytest.mark.parametrize("search", [{}, {"search": "random", "trials": 9}])
def test_a_mapping_is_the_whole_section_and_what_the_experiment_says_there_is_not_kept(search: dict[str, Any]) -> None:
    students = [{"model": "a", "layers": [1, 3, 5]}, {"model": "b"}, {"model": "a", "config": {"num_hidden_layers": 3}}]
    space = {"student": {"grid" if search else "choice": students}, "student.start": {"choice": ["pretrained"]}}
    found = trials({"space": space, **search}, student={"model": "a", "layers": [0, 1], "revision": "main"})
    assert {trial.experiment.student.model_dump_json(exclude_defaults=True) for trial in found} == {
        '{"model":"a","layers":[1,3,5]}',
        '{"model":"b"}',
        '{"model":"a","config":{"num_hidden_layers":3}}',
    }


def test_a_mapping_of_the_experiments_own_method_is_as_whole_as_that_of_another() -> None:
    space = {"pruning": {"choice": [{"method": "topk"}, {"method": "magnitude"}]}}
    found: list[Any] = [trial.experiment.pruning for trial in trials({"space": space})]
    fresh = experiment_from({"name": "one", "task": "sst2", "student": {"model": "a"}, "pruning": {"method": "topk"}})
    assert found[0] == fresh.pruning, "without the experiment's final_density"
    assert found[1].final_density == found[0].final_density


def test_the_value_of_a_single_field_leaves_the_others_as_they_are() -> None:
    method = {"pruning.method": {"choice": ["topk", "magnitude"]}, "train.max_steps": {"choice": [7]}}
    found: list[Any] = [trial.experiment for trial in trials({"space": method}, train={"epochs": 2, "batch_size": 8})]
    assert [(e.pruning.method, e.train.epochs, e.train.max_steps, e.train.batch_size) for e in found] == [
        ("topk", None, 7, 8),
        ("magnitude", None, 7, 8),
    ]
    assert found[0].pruning.final_density == 0.5


def test_seeds_repeat_each_point() -> None:
    found = trials({"space": {"pruning.final_density": {"choice": [0.5, 0.1]}}, "seeds": 3}, train={"seed": 7})
    assert [(trial.point, trial.experiment.train.seed) for trial in found] == [
        (0, 7), (0, 8), (0, 9), (1, 7), (1, 8), (1, 9),
    ]  # fmt: skip


def test_a_random_search_draws_within_the_ranges_and_the_same_again() -> None:
    space = {
        "pruning.final_density": {"quniform": [0.05, 0.5, 0.05]},
        "pruning.mask_learning_rate": {"loguniform": [1e-3, 1e-1]},
        "train.batch_size": {"randint": [8, 10]},
        "pruning.scope": {"choice": ["local", "global"]},
        "train.warmup_fraction": {"uniform": [0.05, 0.2]},
    }
    found = [list(t.changes.values()) for t in trials({"space": space, "search": "random", "trials": 300})]
    densities, rates, sizes, scopes, warmups = (list(column) for column in zip(*found, strict=True))
    assert set(densities) == {0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5}, "as one would write them"
    assert 0.4 < np.mean(np.array(rates) < 1e-2) < 0.6, "each order of magnitude is as likely"
    assert (min(rates) >= 1e-3, max(rates) <= 1e-1) == (True, True)
    assert set(sizes) == {8, 9, 10}
    assert set(scopes) == {"local", "global"}
    assert (min(warmups) >= 0.05, max(warmups) <= 0.2) == (True, True)
    fewer = [list(t.changes.values()) for t in trials({"space": space, "search": "random", "trials": 10})]
    assert fewer == found[:10], "more trials begin with the same ones"


@pytest.mark.parametrize(
    ("sweep", "parts"),
    [
        ({"space": {"pruning.final_density": {"choice": [0.5, 1.5, -1]}}}, ["final_density", "1.5", "-1"]),
        ({"space": {"pruning.final_densty": {"choice": [0.5]}}}, ["final_densty", "did you mean 'final_density'"]),
        (
            {"space": {"pruning.final_density": {"uniform": [0.5, 2.0]}}, "search": "random", "trials": 1},
            ["final_density", "2.0"],
        ),
        ({"space": {"pruning.final_density": {"uniform": [0.1, 0.5]}}}, ["search: grid needs listed values"]),
        ({"space": {"pruning.final_density": {"choice": [0.5]}}, "search": "random"}, ["needs trials"]),
        (
            {"space": {"pruning.final_density": {"quniform": [0.05, 0.5, 0.1]}}, "search": "random", "trials": 1},
            ["low and high must be multiples of the step, got [0.05, 0.5, 0.1]"],
        ),
        (
            {"space": {"pruning.final_density": {"choice": [0.5]}}, "trials": 3},
            ["trials is for search: random and optuna"],
        ),
        (
            {"space": {"pruning.final_density": {"choice": [0.5]}}, "seed": 3},
            ["sweep.seed: is for search: random and optuna, got 3 with search: grid"],
        ),
        (
            {"space": {"train.seed": {"loguniform": [0, 5]}}, "search": "random", "trials": 1},
            ["low must be below high"],
        ),
        ({"space": {"train.seed": {"choice": [1], "randint": [1, 2]}}}, ["exactly one of", "choice, randint"]),
        ({"space": {}}, ["sweep.space"]),
        ({"space": {"cluster.workers": {"choice": [0, 1]}}}, ["cluster.workers must be the same for all trials"]),
        (
            {"space": {"train.seed": {"choice": [1, 2], "when": {"pruning.metod": "topk"}}}},
            ["train.seed: when: there is no setting 'pruning.metod'"],
        ),
        (
            {
                "space": {"train.seed": {"uniform": [0, 1], "when": {"pruning.metod": "topk"}}},
                "search": "optuna",
                "trials": 2,
            },
            ["train.seed: when: there is no setting 'pruning.metod'"],
        ),
        (
            {"space": {"train.seed": {"choice": [1, 2], "when": {"pruning.method": "topkk"}}}},
            ["no point has the axis train.seed"],
        ),
        (
            {
                "space": {
                    "train.epochs": {"choice": [1, 2], "when": {"train.batch_size": 8}},
                    "train.batch_size": {"choice": [8, 16], "when": {"pruning.scope": "local"}},
                    "pruning.scope": {"choice": ["local", "global"], "when": {"train.epochs": 2}},
                    "train.seed": {"choice": [1, 2]},
                }
            },
            ["`when` conditions of train.epochs, train.batch_size, pruning.scope are circular"],
        ),
        (
            {"space": {"pruning": {"choice": [None], "when": {"pruning.method": "topk"}}}},
            ["`when` conditions of pruning are circular", "an axis depends on itself"],
        ),
        (
            {
                "space": {
                    "pruning.penalty": {"choice": [{"kind": "l1", "final_lambda": 1}]},
                    "pruning": {"choice": [{"method": "magnitude"}]},
                }
            },
            ["pruning.penalty", "there is no such setting"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_every_problem(sweep: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        trials(sweep)
    for part in parts:
        assert part in str(refused.value)


def test_each_variant_is_tried_with_each_combination_and_the_empty_one_is_the_experiment_itself() -> None:
    variants = [
        {},
        {"train.weight_decay": 0.1, "train": {"epochs": 2, "learning_rate": 1e-4}},
        {"pruning.scope": "global", "pruning.method": "magnitude"},
    ]
    found: list[Any] = trials({"variants": variants, "space": {"pruning.final_density": {"choice": [0.5, 0.1]}}})
    assert [each.point for each in found] == [0, 1, 2, 3, 4, 5]
    assert [each.experiment.pruning.final_density for each in found] == [0.5, 0.1] * 3
    assert [each.experiment.pruning.method for each in found] == ["topk"] * 4 + ["magnitude"] * 2
    assert [each.experiment.pruning.scope for each in found] == ["local"] * 4 + ["global"] * 2
    assert [each.experiment.train.learning_rate for each in found[2:4]] == [1e-4, 1e-4]
    assert [each.experiment.train.weight_decay for each in found[2:4]] == [0.1, 0.1], (
        "the field comes after its section"
    )
    alone = trials({"variants": variants, "seeds": 2})
    assert len(alone) == 6
    assert alone[0].experiment == found[0].experiment
    assert alone[0].changes == {}
    assert as_overrides(alone[4].changes) == "pruning.method=magnitude, pruning.scope=global"


def test_an_axis_may_depend_on_a_variant() -> None:
    rates = {"choice": [1e-2, 1e-1], "when": {"pruning.method": "topk"}}
    variants = [{}, {"pruning": {"method": "magnitude"}}]
    found: list[Any] = trials({"variants": variants, "space": {"pruning.mask_learning_rate": rates}})
    assert [each.changes.get("pruning.mask_learning_rate") for each in found] == [1e-2, 1e-1, None]


@pytest.mark.parametrize(
    ("sweep", "problem"),
    [
        ({}, "sweep: give axes (sweep.space), variants (sweep.variants) or both; both are missing"),
        ({"variants": []}, "sweep.variants: must have at least 1 value, got []"),
        ({"variants": [0.5]}, "sweep.variants.0: must be a section of settings, got 0.5"),
        (
            {"variants": [{"train.dropuot": 0.1}]},
            "sweep.variants: train.dropuot=0.1: override: train.dropuot: there is no such setting (got 0.1)",
        ),
        (
            {"variants": [{"cluster.workers": 1}]},
            "sweep.variants: cluster.workers must be the same for all trials; set it outside of the sweep",
        ),
        (
            {"variants": [{"train.dropout": 0.1}], "space": {"train.dropout": {"choice": [0.2]}}},
            "sweep.variants: train.dropout=0.1: the axis train.dropout of sweep.space replaces train.dropout; set",
        ),
        (
            {"variants": [{"pruning.final_density": 0.1}], "space": {"pruning": {"choice": [{"method": "topk"}]}}},
            "sweep.variants: pruning.final_density=0.1: the axis pruning of sweep.space replaces pruning.final_density",
        ),
        (
            {
                "variants": [{"pruning.layers": {"exclude": ["attention"]}}],
                "space": {"pruning.method": {"choice": ["magnitude"]}},
            },
            "the axis pruning.method of sweep.space replaces pruning.layers",
        ),
        (
            {
                "variants": [{"pruning": {"method": "magnitude", "final_density": 0.03}}],
                "space": {"pruning.method": {"choice": ["topk", "magnitude"]}},
            },
            "the axis pruning.method of sweep.space replaces pruning; set pruning in the variants or in the axes",
        ),
        (
            {"variants": [{}], "space": {"pruning.final_density": {"choice": [2.0]}}},
            "sweep: pruning.final_density=2.0: ",
        ),
        (
            {"variants": [{}], "search": "random", "trials": 2},
            "sweep: variants is for search: grid, got search: random; give them as axes",
        ),
    ],
)
def test_variants_that_do_not_fit_are_refused(sweep: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        trials(sweep)
    assert problem in str(refused.value)


def test_an_experiment_without_a_sweep_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"sweep: is missing.*sweep\.space"):
        trials_of(experiment_from({"name": "one", "task": "sentiment", "student": {"model": "some/encoder"}}))


SCORE = {"name": "score", "kind": "regression"}
LABELS = {"name": "score", "kind": "classification", "labels": ["bad", "good"]}


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["sentiment", "similarity"], "sentiment (eval/accuracy), similarity (eval/pearson)"),
        (["sst2", "cola"], "cola (eval/matthews), sst2 (eval/accuracy)"),
        (["sst2", "rte"], "rte (eval/accuracy), sst2 (eval/accuracy)"),
        ([SCORE, LABELS], "score (eval/accuracy), score (eval/pearson)"),
    ],
)
@pytest.mark.parametrize("search", [{}, {"search": "random", "trials": 2}, {"search": "optuna", "trials": 2}])
def test_trials_without_a_metric_in_common_are_refused(tasks: list[Any], said: str, search: dict[str, Any]) -> None:
    files = {"kind": "files", "train": "train.csv", "dev": "dev.csv"}
    values = {
        "name": "swept",
        "task": "sst2",
        "student": {"model": "some/encoder"},
        "pruning": {"method": "topk"},
        "sweep": {"space": {"task": {"grid": tasks}, "pruning.final_density": {"choice": [0.5, 0.1]}}, **search},
        **({"data": {"source": files}} if SCORE in tasks else {}),
    }
    with pytest.raises(ConfigError) as refused:
        plan_sweep(experiment_from(values))
    (problem,) = refused.value.problems
    assert f"cannot be compared: {said}; make a sweep of each" in problem


SHIPPED = sorted((Path(__file__).resolve().parents[2] / "experiments" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_sweep_has_trials_that_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUE_DIR", "/data/glue")
    found = trials_of(load_experiment(path))
    assert len(found) >= 4
    assert len({trial.experiment.model_dump_json() for trial in found}) == len(found)


def test_the_order_of_axes_does_not_matter() -> None:
    density, method = {"choice": [0.5, 0.1]}, {"choice": ["topk", "magnitude"]}
    forwards = trials({"space": {"pruning.method": method, "pruning.final_density": density}})
    backwards = trials({"space": {"pruning.final_density": density, "pruning.method": method}})
    for found in (forwards, backwards):
        pruning: list[Any] = [trial.experiment.pruning for trial in found]
        assert {(p.method, p.final_density) for p in pruning} == {
            ("topk", 0.5), ("topk", 0.1), ("magnitude", 0.5), ("magnitude", 0.1),
        }  # fmt: skip


def test_a_section_may_be_absent_and_defaults_count_for_when() -> None:
    space = {
        "pruning": {"choice": [None, {"method": "topK"}]},
        "pruning.final_density": {"choice": [0.5, 0.1], "when": {"pruning.method": "topK", "pruning.scope": "local"}},
    }
    found: list[Any] = [trial.experiment.pruning for trial in trials({"space": space})]
    assert found[0] is None
    assert [p.final_density for p in found[1:]] == [0.5, 0.1]


@pytest.mark.parametrize("search", [{}, {"search": "random", "trials": 30}])
def test_when_is_judged_by_the_value_of_an_axis_that_is_named_later(search: dict[str, Any]) -> None:
    space = {
        "train.learning_rate": {"choice": [1e-5, 1e-4], "when": {"pruning.penalty.kind": "l1"}},
        "train.warmup_fraction": {"choice": [0.1, 0.2], "when": {"train.epochs": 2}},
        "train.max_steps": {"choice": [5], "when": {"train.seed": 2}},
        "train.seed": {"choice": [1, 2]},
        "pruning.penalty": {"choice": [{"kind": "l1", "final_lambda": 1}], "when": {"train.seed": 1}},
    }
    pruning = {"method": "sigmoid_threshold"}
    found = trials({"space": space, **search}, pruning=pruning, train={"epochs": 2, "learning_rate": 1e-3})
    points = sorted(
        (t.changes["train.seed"], t.changes.get("train.learning_rate", 0), t.changes.get("train.warmup_fraction", 0))
        for t in found
    )
    assert points == [(1, 1e-5, 0.1), (1, 1e-5, 0.2), (1, 1e-4, 0.1), (1, 1e-4, 0.2), (2, 0, 0)]
    assert {(t.changes["train.seed"], t.experiment.train.max_steps) for t in found} == {(1, None), (2, 5)}


def test_a_value_is_what_the_field_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", "/models")
    monkeypatch.setenv("HOME", "/home/one")
    space = {
        "student.model": {"choice": ["${MODELS}/a", "~/b"]},
        "evaluation.every_epochs": {"choice": [None, 0.5]},
        "student.layers": {"choice": [(0, 2)], "when": {"student.model": "${MODELS}/a"}},
    }
    found = [trial.experiment for trial in trials({"space": space})]
    assert [(e.student.model, e.evaluation.every_epochs, e.student.layers) for e in found] == [
        ("/models/a", 1.0, (0, 2)),
        ("/models/a", 0.5, (0, 2)),
        ("/home/one/b", 1.0, None),
        ("/home/one/b", 0.5, None),
    ]
    both = {"train.epochs": {"choice": [2, 3]}, "train.max_steps": {"choice": [5]}}
    with pytest.raises(ConfigError, match=r"train\.epochs has no effect, because another value overwrites it"):
        trials({"space": both})


def test_a_random_search_repeats_no_point_and_ends_where_there_are_no_more() -> None:
    space = {"pruning.final_density": {"choice": [0.5, 0.3, 0.1]}}
    found = trials({"space": space, "search": "random", "trials": 2})
    assert len({trial.changes["pruning.final_density"] for trial in found}) == 2
    assert len(trials({"space": space, "search": "random", "trials": 50})) == 3


def test_trials_are_named_by_their_settings() -> None:
    with pytest.raises(ConfigError, match="run: the trials of a sweep get their own names, got 'mine'"):
        trials({"space": {"pruning.final_density": {"choice": [0.5]}}}, run="mine")


def test_points_are_told_apart_by_the_single_fields_that_differ() -> None:
    points = [
        {"pruning": {"method": "topk", "initial_warmup": 1}, "pruning.final_density": 0.5, "train.epochs": 3},
        {"pruning": {"method": "topk", "initial_warmup": 1}, "pruning.final_density": 0.1, "train.epochs": 3},
        {"pruning": {"method": "l0", "initial_warmup": 1, "penalty": {"kind": "l0"}}, "train.epochs": 3},
    ]
    assert distinguishing_settings(points) == [
        {"pruning.method": "topk", "pruning.final_density": 0.5},
        {"pruning.method": "topk", "pruning.final_density": 0.1},
        {"pruning.method": "l0"},
    ]
    assert distinguishing_settings(points[:1]) == [
        {"pruning.method": "topk", "pruning.initial_warmup": 1, "pruning.final_density": 0.5, "train.epochs": 3}
    ]


def test_a_dense_point_and_the_single_method_are_told_apart() -> None:
    topk = {"method": "topk", "final_density": 0.1}
    told = {"pruning.method": "topk", "pruning.final_density": 0.1}
    points = [{"pruning": pruning, "train.epochs": 3} for pruning in (None, topk, None)]
    assert distinguishing_settings(points) == [{"pruning": None}, told, {"pruning": None}]
    sparser = {"pruning": {"method": "topk", "final_density": 0.03}, "train.epochs": 3}
    assert distinguishing_settings([*points[:2], sparser]) == [
        {"pruning": None},
        {"pruning.final_density": 0.1},
        {"pruning.final_density": 0.03},
    ]
    epochs = [{"pruning": pruning, "train.epochs": epochs} for pruning in (None, topk) for epochs in (2, 3)]
    assert distinguishing_settings(epochs) == [
        {"pruning": None, "train.epochs": 2},
        {"pruning": None, "train.epochs": 3},
        {**told, "train.epochs": 2},
        {**told, "train.epochs": 3},
    ]
