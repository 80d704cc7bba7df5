"""What a run is known by: what was chosen counts, what was left to a default does not, and the defaults are fixed."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import raypp
from raypp.config import Experiment, Settings
from raypp.config.fields import models_in
from raypp.identity import RUN_FORMAT, identity_hash, run_identity
from raypp.load_config import experiment_from

# The defaults of RUN_FORMAT 5, of every section that is hashed. What a run left to a default is not in its identity:
# who changes a default raises RUN_FORMAT and changes it here; who adds a field adds it here, with a default that means
# what was done before.
PRUNING: dict[str, Any] = {
    "initial_warmup": 1,
    "final_warmup": 2,
    "layers": {"include": [r"."], "exclude": []},
}
SCORED = {
    **PRUNING,
    "mask_learning_rate": 1e-2,
    "score_initialization": {"kind": "constant", "scale": 0.0},
    "penalty": None,
}
DENSITY = {"scope": "local", "initial_density": 1.0, "final_density": 0.15}
TARGETED = SCORED | {"target_density": None}
ANSWERS = {"n_best": 20, "max_tokens": 30, "null_threshold": 0.0}
DEFAULTS: dict[str, dict[str, Any]] = {
    "OwnTask": {"kind": "classification", "pair": False, "labels": [], "unanswerable": False},
    "LanguageModelingTask": {"objective": "masked", "masking": None},
    "MaskingSettings": {
        "proportion": 0.15,
        "mask_fraction": 0.8,
        "keep_fraction": 0.1,
        "random_fraction": 0.1,
        "smoothing": 0.7,
    },
    "StudentSettings": {"revision": None, "layers": None, "config": None, "start": "pretrained"},
    "TrainSettings": {
        "epochs": None,
        "max_steps": None,
        "batch_size": None,
        "batch_tokens": None,
        "micro_batches": "auto",
        "learning_rate": 3e-5,
        "warmup_fraction": None,
        "warmup_steps": None,
        "weight_decay": 0.0,
        "dropout": None,
        "adam_betas": [0.9, 0.999],
        "adam_epsilon": 1e-8,
        "max_gradient_norm": 1.0,
        "precision": "float32",
        "freeze_embeddings": None,
        "freeze_position_embeddings": False,
        "freeze_token_type_embeddings": False,
        "log_every_steps": 10,
        "seed": 42,
    },
    "EvaluationSettings": {"every_epochs": None, "every_steps": None, "select": "last", "answers": ANSWERS},
    "AnswerSettings": ANSWERS,
    "DistillationSettings": {
        "soft_weight": 0.9,
        "hard_weight": 0.1,
        "temperature": 2.0,
        "hidden_weight": 0.0,
        "hidden_layers": None,
        "soft_tokens": "targets",
        "hidden_kind": "mse",
        "cosine_weight": 0.0,
        "logits_weight": 0.0,
    },
    "TopKPruning": SCORED | DENSITY,
    "MagnitudePruning": PRUNING | DENSITY,
    "FisherPruning": PRUNING
    | DENSITY
    | {"scope": "global", "initial_warmup": 0, "final_warmup": 4, "fisher_decay": 0.99},
    "SigmoidThresholdPruning": TARGETED | {"density_floor": 0.005, "initial_threshold": 0.0, "final_threshold": 0.1},
    "ThresholdPruning": TARGETED
    | {
        "score_initialization": {"kind": "constant", "scale": 2.197},
        "density_floor": 0.005,
        "initial_threshold": 0.0,
        "final_threshold": 0.1,
    },
    "L0Pruning": TARGETED | {"score_initialization": {"kind": "constant", "scale": 2.197}},
    "Penalty": {"mean": "per_matrix"},
    "ScoreInitialization": {"kind": "constant", "scale": 0.0},
    "LayerRule": {"include": [r"."], "exclude": []},
}


def all_settings(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The models of all sections below one, and it."""
    yield model
    for info in model.model_fields.values():
        for inner in models_in(info.annotation):
            yield from all_settings(inner)


@pytest.mark.parametrize("section", DEFAULTS)
def test_the_defaults_are_those_of_the_format(section: str) -> None:
    assert RUN_FORMAT == 5
    (model,) = {each for each in all_settings(Experiment) if each.__name__ == section}
    fields = model.model_fields
    found = {name: field.get_default() for name, field in fields.items() if not field.is_required()}
    as_values = {
        name: value.model_dump(mode="json") if isinstance(value, Settings) else value for name, value in found.items()
    }
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in as_values.items()} == DEFAULTS[section]


def experiment(**sections: Any) -> Experiment:
    values = {"name": "e", "task": "mrpc", "student": {"model": "m"}, "teacher": {"model": "t"}} | sections
    return experiment_from(values)


def digest(given: Experiment) -> str:
    return identity_hash(run_identity(given, {"student": "s"}, 1, "t"))


def test_a_default_may_be_written_out() -> None:
    short = experiment(distillation={}, pruning={"method": "topk"})
    long = experiment(
        distillation=DEFAULTS["DistillationSettings"],
        pruning={"method": "topk"} | DEFAULTS["TopKPruning"],
        train={"epochs": 3.0, "batch_size": 32, "learning_rate": 3e-5, "warmup_fraction": 0.1, "seed": 42},
        evaluation={"every_epochs": 1.0},
    )
    assert digest(long) == digest(short)
    identity = run_identity(long, {"student": "s"}, 1, "t")
    assert identity["distillation"] == {}
    assert identity["pruning"] == {"method": "topk"}
    assert identity["train"] == {"epochs": 3.0, "batch_size": 32, "warmup_fraction": 0.1, "micro_batches": 1}


@pytest.mark.parametrize(
    "sections",
    [
        {"distillation": None},
        {"distillation": {"hidden_weight": 0.5}},
        {"distillation": {"hidden_weight": 0.0, "hidden_kind": "cosine"}},
        {"pruning": None},
        {"pruning": {"method": "magnitude"}},
        {"pruning": {"method": "topk", "layers": {"exclude": ["output"]}}},
        {"pruning": {"method": "topk", "penalty": {"kind": "l1", "final_lambda": 0.0}}},
        {"pruning": {"method": "topk", "score_initialization": {"kind": "uniform", "scale": 0.1}}},
        {"train": {"seed": 43}},
        {"train": {"max_gradient_norm": None}},
        {"evaluation": {"every_epochs": 2.0}},
        {"data": {"max_length": 64}},
        {"data": {"stride": 64}},
        {"evaluation": {"answers": {"null_threshold": 1.0}}},
        {"data": {"window_blocks": 64}},
        {"distillation": {"cosine_weight": 1.0}},
        {"student": {"model": "m", "layers": [0, 2]}},
        {"student": {"model": "m", "config": {"num_hidden_layers": 2}}},
        {"student": {"model": "m", "start": "teacher"}},
    ],
)
def test_what_is_chosen_makes_another_run(sections: dict[str, Any]) -> None:
    usual = {"distillation": {}, "pruning": {"method": "topk"}}
    assert digest(experiment(**usual | sections)) != digest(experiment(**usual))


def test_where_and_how_it_runs_makes_no_other_run() -> None:
    elsewhere = experiment(
        run="mine",
        cluster={"workers": 3, "storage": "/x"},
        tracking={"wandb": "off"},
        train={"log_every_steps": 50},
    )
    assert digest(elsewhere) == digest(experiment())


def test_a_copy_without_a_checkout_is_known_by_its_sources(tmp_path: Path) -> None:
    package = Path(raypp.__file__).parent
    for name in ("job", "image", "changed"):
        shutil.copytree(package, tmp_path / name / "raypp", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "changed/raypp/cpu/kernels.c").open("a") as source:
        source.write("\n")

    def sources(name: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / name)}
        code = "from raypp.identity import versions; print(versions())"
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        recorded = ast.literal_eval(done.stdout)
        assert "git_commit" not in recorded
        return str(recorded["raypp_sources"])

    assert sources("job") == sources("image") != sources("changed")
