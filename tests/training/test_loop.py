"""The loop in this process on a real encoder, compared with an independent implementation and with resumed runs."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive import fine_prune
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel
from whole_runs import copy_tokenizer, recorded_until

import raypp
from raypp.cluster.launch import train
from raypp.cluster.pipeline import make_job, prepare_plan
from raypp.cluster.session import Session
from raypp.cluster.trainer import Supervision, run_job
from raypp.commands.evaluate_model import evaluate_command
from raypp.commands.inspection import inspect_command
from raypp.config import ScoreInitialization, SyntheticSource, TrainSettings
from raypp.data.batches import plan_epoch
from raypp.data.features import Features
from raypp.data.sources import open_source
from raypp.errors import FailsAgain, WorkersLost
from raypp.events import PhaseStarted, ignore
from raypp.kinds import kind_of
from raypp.load_config import experiment_from
from raypp.models.loading import load_pretrained, resolve_model
from raypp.plan import make_plan
from raypp.pruning.pruner import initial_scores
from raypp.seeds import named_seed
from raypp.tasks import TASKS
from raypp.training.checkpoint import Checkpoint, Checkpoints
from raypp.training.metrics_file import whole_records

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

Experiment = Callable[..., dict[str, Any]]
PAIR_COLUMNS = ("sentence1", "sentence2", "label")
CURVE = [
    0.69922, 0.68987, 0.69532, 0.69919, 0.80945, 0.7904, 0.59185, 0.7552, 0.66961, 0.66423,
    0.78737, 0.66262, 0.71185, 0.73492, 0.67171, 0.71983, 0.68794, 0.70635, 0.69928, 0.70686,
]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def settings(tmp_path: Path, store: Path, minilm_dir: Path) -> Experiment:
    """A small experiment on the synthetic sentiment task, with sections replaced."""

    def make(**sections: Any) -> dict[str, Any]:
        return {
            "name": "small",
            "task": "sentiment",
            "data": {"source": {"kind": "synthetic", "train_rows": 96, "dev_rows": 48}, "max_length": 64},
            "student": {"model": str(minilm_dir)},
            "pruning": {"method": "topk", "final_density": 0.3, "final_warmup": 1},
            "train": {"max_steps": 8, "batch_size": 16, "log_every_steps": 1, "learning_rate": 1e-4},
            "cluster": {"workers": 0, "storage": str(tmp_path / "runs"), "store": str(store)},
            "tracking": {"wandb": "off"},
        } | sections

    return make


def run(values: dict[str, Any], **options: Any) -> dict[str, Any]:
    return raypp.train(experiment_from(values), **options)


def records(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(result["paths"]["metrics"]).read_text().splitlines()]


def stored_features(values: dict[str, Any]) -> Features:
    """Those of the training split that a run has left in the store."""
    plan = make_plan(experiment_from(values))
    artifact = plan.store.find("features", plan.features_key("train", plan.student.tokenizer))
    assert artifact is not None
    return Features.from_table(artifact.read_table())


def losses(result: dict[str, Any]) -> list[float]:
    return [record["train/loss"] for record in records(result) if "train/loss" in record]


def weights(result: dict[str, Any]) -> dict[str, np.ndarray]:
    return load_file(Path(result["paths"]["model"], "model.safetensors"))


def without_dropout(source: Path, folder: Path, layers: int | None = None) -> Path:
    """A copy of a model without dropout, and optionally with fewer layers, so that two implementations agree step by
    step."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config |= {"num_hidden_layers": layers} if layers else {}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def a_teacher(student: Path, folder: Path, task: str = "mrpc") -> Path:
    """A classifier that looks fine-tuned: the student's encoder with a head that gives large logits."""
    model = load_pretrained(student, kind_of(TASKS[task]), seed=7)
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    model.save_pretrained(folder)
    copy_tokenizer(student, folder)
    return folder


def a_small_encoder(tokenizer: Path, folder: Path) -> Path:
    """A random encoder, narrower and with fewer layers than MiniLM, but with the same tokenizer."""
    torch.manual_seed(3)
    BertModel(
        BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96)
    ).save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)
    return folder


def pairs_to_learn(task: str, source: dict[str, Any]) -> list[tuple[str, str, int]]:
    """The two texts and the label of 160 rows. The official files are read without raypp."""
    if task == "mrpc":
        lines = Path(source["directory"], "train.tsv").read_text(encoding="utf-8-sig").split("\n")[1:161]
        cells = [line.rstrip("\r").split("\t") for line in lines]
        return [(cell[3], cell[4], int(cell[0])) for cell in cells]
    raw = open_source(kind_of(TASKS[task]), SyntheticSource.model_validate(source))
    columns = [[row[name] for batch in raw.read("train") for row in batch.to_pylist()] for name in PAIR_COLUMNS]
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize(
    ("task", "method", "teacher"),
    [
        ("paraphrase", "topk", True),
        pytest.param("mrpc", "topk", True, marks=pytest.mark.slow),
        pytest.param("mrpc", "sigmoid_threshold", False, marks=pytest.mark.slow),
    ],
)
def test_twenty_steps_have_the_losses_of_the_naive_implementation(
    task: str,
    method: str,
    teacher: bool,
    settings: Experiment,
    tmp_path: Path,
    minilm_dir: Path,
    request: pytest.FixtureRequest,
) -> None:
    student = without_dropout(minilm_dir, tmp_path / "student", layers=2)  # with all six, sorting takes a minute
    source: dict[str, Any] = {"kind": "synthetic", "train_rows": 160, "dev_rows": 16}
    if task == "mrpc":
        source = {"kind": "official", "directory": str(request.getfixturevalue("glue_dir") / "MRPC")}
    followed = a_teacher(student, tmp_path / "teacher", task) if teacher else None
    scheduled: dict[str, Any] = {"method": method, "initial_warmup": 1, "final_warmup": 2, "mask_learning_rate": 3e-2}
    # No scores are equal, because raypp's order of equal scores is its own.
    scheduled["score_initialization"] = {"kind": "uniform", "scale": 0.1}
    if method == "topk":
        initial, final = 1.0, 0.3
        scheduled |= {"initial_density": initial, "final_density": final}
    else:
        initial, final = 0.0, 0.499
        scheduled |= {"initial_threshold": initial, "final_threshold": final}
        scheduled["penalty"] = {"kind": "l1", "final_lambda": 10.0}
    values = settings(
        task=task,
        data={"source": source, "max_train_rows": 160, "max_length": 64},
        student={"model": str(student)},
        teacher={"model": str(followed)} if followed else None,
        pruning=scheduled,
        # With the usual epsilon, the sign of a gradient near 0, which depends on rounding, would decide a whole step.
        train={
            "max_steps": 20,
            "warmup_steps": 3,
            "batch_size": 8,
            "log_every_steps": 1,
            "learning_rate": 3e-5,
            "adam_epsilon": 1e-5,
        },
    )
    result = run(values)
    got = losses(result)
    assert result["density"]["linear"] < 0.9, "masks took part"

    lengths = stored_features(values).lengths
    rows = pairs_to_learn(task, source)
    batches = [batch.indices.tolist() for batch in plan_epoch(lengths, TrainSettings(batch_size=8), 0, micro_batches=1)]
    expected, _ = fine_prune(
        student,
        followed,
        [(first, second) for first, second, _ in rows],
        [label for *_, label in rows],
        batches,
        method=method,
        total=20,
        warmup=3,
        initial=initial,
        final=final,
        initial_warmup=1,
        final_warmup=2,
        learning_rate=3e-5,
        mask_learning_rate=3e-2,
        adam_epsilon=1e-5,
        max_length=64,
        scores_of=lambda name, shape: initial_scores(
            shape, ScoreInitialization(kind="uniform", scale=0.1), named_seed(42, name)
        ),
        final_lambda=10.0 if method == "sigmoid_threshold" else 0.0,
    )
    assert len(got) == len(expected) == 20
    np.testing.assert_allclose(got, expected, rtol=2e-3)


def test_the_losses_of_twenty_steps_are_pinned(settings: Experiment) -> None:
    """Pinned, with the default dropout, to detect any change of data, batches, dropout, masks or optimizer. Between
    processors and numbers of threads the losses differ by at most 2e-4, between seeds by 3e-3 to 0.3."""
    values = settings(
        data={"source": {"kind": "synthetic", "train_rows": 160, "dev_rows": 16}, "max_length": 64},
        train={
            "max_steps": 20,
            "warmup_steps": 3,
            "batch_size": 8,
            "log_every_steps": 1,
            "learning_rate": 1e-4,
            "adam_epsilon": 1e-5,
        },
    )
    np.testing.assert_allclose(losses(run(values)), CURVE, rtol=2e-3)


def test_two_workers_equal_one_and_evaluate_every_row_once(settings: Experiment, tmp_path: Path) -> None:
    # Enough dev rows that the second worker predicts some of them.
    source = {"kind": "synthetic", "train_rows": 96, "dev_rows": 150}
    results = []
    for workers in (0, 2):
        cluster = {"workers": workers, "storage": str(tmp_path / str(workers)), "store": settings()["cluster"]["store"]}
        cluster |= {"cpus_per_worker": 1} if workers else {}
        values = settings(
            data={"source": source, "max_length": 64},
            cluster=cluster,
            train={**settings()["train"], "max_steps": 4, "micro_batches": 2},
            tracking={"wandb": "off", "figures": "main"},
        )
        results.append(run(values))
    one, two = results
    assert two["run"] == one["run"]
    assert len(losses(two)) == 4
    # If a gradient is near 0, the order of summation decides the sign of a whole step of Adam.
    np.testing.assert_allclose(losses(two), losses(one), rtol=2e-3)
    tables = [
        [line.split("\t") for line in Path(each["paths"]["run"], "predictions.tsv").read_text().splitlines()[1:]]
        for each in results
    ]
    assert [row[:3] for row in tables[1]] == [row[:3] for row in tables[0]], "every row once, in the source's order"
    expected, found = (np.array([row[4:] for row in table], float) for table in tables)
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert two["metrics"]["eval/accuracy"] == np.mean([row[2] == row[3] for row in tables[1]]), "over all rows"


def test_speed_and_shares_of_the_time_are_those_of_the_training(settings: Experiment) -> None:
    """By the batches' own tokens, and by the clock. Evaluation and checkpoint come after the last step's line."""
    values = settings(train={"max_steps": 2, "batch_size": 16, "micro_batches": 2, "log_every_steps": 1})
    began = time.monotonic()
    result = run(values)
    wall_seconds = time.monotonic() - began
    first_step, last_step, evaluation, last = records(result)
    assert "perf/share_forward" in last_step
    assert "perf/share_evaluation" not in last_step
    assert "eval/accuracy" in evaluation
    assert last.pop("step") == 2
    assert last == {key: result["perf"][key] for key in last}

    lengths = stored_features(values).lengths
    batches = plan_epoch(lengths, TrainSettings(batch_size=16), 0, micro_batches=2)[:2]
    shares_of_batches = [lengths[share] for batch in batches for share in batch.shares]
    assert [len(share) for share in shares_of_batches] == [8, 8, 8, 8]
    tokens = sum(int(share.sum()) for share in shares_of_batches)
    computed_tokens = sum(len(share) * 8 * math.ceil(share.max() / 8) for share in shares_of_batches)
    assert tokens < computed_tokens, "some is padding"
    assert last["perf/padding_efficiency"] == tokens / computed_tokens
    seconds = 2 / last["perf/steps_per_second"]
    assert last["perf/tokens_per_second"] * seconds == pytest.approx(tokens)
    assert result["tokens_per_second"] * result["seconds"] == pytest.approx(tokens)
    assert result["seconds"] < seconds < wall_seconds, "the checkpoint has the time until it is written"

    shares = {key.removeprefix("perf/share_"): value for key, value in last.items() if "/share_" in key}
    assert shares.keys() == {"data", "masks", "forward", "backward", "optimizer", "evaluation", "checkpoint"}
    assert min(shares.values()) > 0
    assert sum(shares.values()) < 1, "loading the model has no share"
    step_seconds = first_step["perf/step_seconds"] + last_step["perf/step_seconds"]
    in_steps = sum(shares[name] for name in ("masks", "forward", "backward", "optimizer")) * seconds
    assert in_steps < step_seconds, "they are parts of the steps"


def cut(finished: Path, storage: Path) -> None:
    """Copies a finished run's storage and cuts it to the state after a kill -9: nothing is delivered, and the log is
    ahead of the checkpoint of step 6."""
    shutil.copytree(finished, storage)
    (folder,) = (storage / "small").iterdir()
    shutil.rmtree(folder / "model")
    for file in ("result.json", "predictions.tsv"):
        (folder / file).unlink()
    (folder / "checkpoints" / "step-00000008" / "manifest.json").unlink()


def assert_goes_on(whole: dict[str, Any], resumed: dict[str, Any]) -> None:
    """The resumed run continues after step 6, and its result is the same."""
    first, second = (recorded_until(Path(result["paths"]["run"]), 6) for result in (whole, resumed))
    assert second == first
    assert resumed["metrics"] == whole["metrics"]
    first_step = "perf/seconds_to_first_step"
    assert resumed["perf"][first_step] == whole["perf"][first_step], "of the run, and not of its last session"
    assert losses(resumed) == losses(whole)
    assert [record["step"] for record in records(resumed)] == [record["step"] for record in records(whole)]
    assert weights(resumed).keys() == weights(whole).keys()
    for name, value in weights(whole).items():
        assert np.array_equal(value, weights(resumed)[name]), name


@pytest.mark.parametrize(
    "teacher",
    [
        pytest.param("given, as wide as the student", marks=pytest.mark.slow),
        "trained first, wider than the student",
    ],
)
def test_a_run_with_a_hidden_loss_learns_and_resumes_from_a_checkpoint(
    teacher: str, settings: Experiment, tmp_path: Path, minilm_dir: Path
) -> None:
    train_settings = {**settings()["train"], "micro_batches": 2}
    if teacher.startswith("given"):
        followed: Any = {"model": str(a_teacher(minilm_dir, tmp_path / "teacher", "sentiment"))}
        student, pruning = minilm_dir, settings()["pruning"]
        distillation = {"hidden_weight": 0.5, "hidden_layers": [[3, 3], [6, 6]], "hidden_kind": "cosine"}
    else:
        followed = {"model": str(minilm_dir), "train": {"max_steps": 3, "batch_size": 16}}
        student, pruning = a_small_encoder(minilm_dir, tmp_path / "student"), None
        train_settings["learning_rate"] = 1e-2
        distillation = {"hidden_weight": 2.0, "soft_weight": 0.0, "hard_weight": 1.0}

    def values(storage: str) -> dict[str, Any]:
        cluster = {**settings()["cluster"], "checkpoint_every_steps": 3, "storage": str(tmp_path / storage)}
        cluster["store"] = str(tmp_path / "store")
        return settings(
            student={"model": str(student)},
            teacher=followed,
            pruning=pruning,
            distillation=distillation,
            train=train_settings,
            cluster=cluster,
        )

    whole = run(values("whole"))
    log = [record for record in records(whole) if "train/loss" in record]
    weights_of_terms = {"hard": 0.1, "soft": 0.9, "hidden": 0.0}
    weights_of_terms |= {
        name.removesuffix("_weight"): value for name, value in distillation.items() if "weight" in name
    }
    for record in log:
        terms = {name: record[f"train/{name}_loss"] for name, weight in weights_of_terms.items() if weight}
        expected = sum(weights_of_terms[name] * value for name, value in terms.items())
        assert record["train/loss"] == pytest.approx(expected, rel=1e-6)
        assert record["perf/share_teacher"] > 0
    made = any((tmp_path / "store").glob("*/logits"))
    assert made == bool(weights_of_terms["soft"]), "logits that no loss reads are not made"
    if pruning is None:
        assert log[-1]["train/hidden_loss"] < 0.9 * log[0]["train/hidden_loss"]
    delivered = AutoModelForSequenceClassification.from_pretrained(whole["paths"]["model"])
    assert weights(whole).keys() <= delivered.state_dict().keys(), "projections are not delivered"
    at_checkpoints = evaluate_command(whole["paths"]["run"], all_checkpoints=True)
    assert at_checkpoints["step 8 dev"]["accuracy"] == whole["metrics"]["eval/accuracy"]

    cut(tmp_path / "whole", tmp_path / "cut")
    assert_goes_on(whole, run(values("cut")))


def test_resuming_with_scores_that_are_running_means_gives_the_same_model(settings: Experiment, tmp_path: Path) -> None:
    pruning = {"method": "fisher", "final_density": 0.2, "scope": "global", "initial_warmup": 0, "final_warmup": 0}

    def values(storage: str) -> dict[str, Any]:
        cluster = {**settings()["cluster"], "checkpoint_every_steps": 3, "storage": str(tmp_path / storage)}
        return settings(pruning=pruning, cluster=cluster)

    whole = run(values("whole"))
    assert not any("mask_learning_rate" in key for record in records(whole) for key in record)
    cut(tmp_path / "whole", tmp_path / "cut")
    assert_goes_on(whole, run(values("cut")))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_fisher_score_counts_a_short_last_batch_by_its_rows(
    workers: int, settings: Experiment, tmp_path: Path, minilm_dir: Path
) -> None:
    """Compared with plain autograd, on weights that do not change: a batch of 16 rows, and one of a single row."""
    student = without_dropout(a_small_encoder(minilm_dir, tmp_path / "encoder"), tmp_path / "student")
    cluster = settings()["cluster"] | {"workers": workers, "checkpoint_every_steps": 1, "keep_checkpoints": 3}
    values = settings(
        student={"model": str(student)},
        data={"source": {"kind": "synthetic", "train_rows": 17, "dev_rows": 8}, "max_length": 64},
        pruning={"method": "fisher", "fisher_decay": 0.9, "initial_warmup": 1, "final_warmup": 0},
        train={"max_steps": 3, "warmup_steps": 1, "batch_size": 16, "micro_batches": 2, "learning_rate": 1e-12},
        cluster=cluster | ({"cpus_per_worker": 1} if workers else {}),
        tracking={"wandb": "off", "figures": "main"},
    )
    result = run(values)
    saved = load_file(Path(result["paths"]["run"], "checkpoints", "step-00000002", "model.safetensors"))

    features = stored_features(values)
    model = load_pretrained(student, kind_of(TASKS["sentiment"]), seed=42)
    names = [name for name in saved if name.endswith("mask_scores")]
    assert len(names) == 12
    weights = [model.get_parameter(name.replace("mask_scores", "weight")) for name in names]
    expected = [torch.zeros_like(weight) for weight in weights]
    batches = [batch.indices for batch in plan_epoch(features.lengths, TrainSettings(batch_size=16), 0, 1)]
    assert [len(batch) for batch in batches] == [16, 1]
    for batch in batches:
        loss = model(**features.collate(batch, 0)).loss
        for mean, weight, gradient in zip(expected, weights, torch.autograd.grad(loss, weights), strict=True):
            mean.mul_(0.9).add_(0.1 * len(batch) * (weight * gradient).detach() ** 2)
    for name, mean in zip(names, expected, strict=True):
        np.testing.assert_allclose(saved[name], mean.numpy(), rtol=1e-3, atol=1e-5 * float(mean.max()), err_msg=name)


@pytest.mark.parametrize("method", ["sigmoid_threshold", pytest.param("l0", marks=pytest.mark.slow)])
def test_resuming_with_a_target_density_gives_the_uninterrupted_lambdas_and_model(
    method: str, settings: Experiment, tmp_path: Path
) -> None:
    values = settings(
        pruning={
            "method": method,
            "target_density": 0.2,
            "final_warmup": 1,
            "mask_learning_rate": 3e-2,
            "layers": {"include": [r"layer\.[01]\."]},
        }
    )
    saved_often = {"workers": 0, "store": values["cluster"]["store"], "checkpoint_every_steps": 3}
    whole = run(values | {"cluster": {**saved_often, "storage": str(tmp_path / "whole")}})
    cut(tmp_path / "whole", tmp_path / "cut")
    resumed = run(values | {"cluster": {**saved_often, "storage": str(tmp_path / "cut")}})
    assert_goes_on(whole, resumed)
    columns = ("step", "prune/penalty_lambda", "prune/requested_density", "prune/threshold", "prune/density")
    logged = [[record.get(column) for column in columns] for record in records(whole)]
    assert [[record.get(column) for column in columns] for record in records(resumed)] == logged
    assert len({row[1] for row in logged}) > 5, "lambda moves"
    # The target appears in the name, the result and the model.
    assert Path(whole["paths"]["run"]).name.startswith(f"{method.replace('_', '-')}-0.2-")
    assert whole["requested_density"] == 0.2
    assert whole["density"]["linear"] == pytest.approx(0.2, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "target", "fields"),
    [
        # In 120 steps at 3e-2 scores can move by 1.5 until the final warmup. The threshold is within this distance.
        ("sigmoid_threshold", 0.1, {"final_threshold": 0.3}),
        ("sigmoid_threshold", 0.5, {"final_threshold": 0.3}),
        ("l0", 0.1, {"score_initialization": {"kind": "constant", "scale": -1.5}}),
    ],
)
def test_lambda_itself_brings_a_real_model_near_its_target_density(
    method: str, target: float, fields: dict[str, Any], settings: Experiment
) -> None:
    result = run(
        settings(
            pruning={"method": method, "target_density": target, "mask_learning_rate": 3e-2, **fields},
            train={"max_steps": 120, "batch_size": 16, "log_every_steps": 1, "learning_rate": 1e-4},
        )
    )
    assert result["density"]["linear"] == pytest.approx(target, rel=0.05)
    arrival = next(record for record in records(result) if record["prune/requested_density"] == target)
    assert arrival["prune/density_by_lambda"] == pytest.approx(target, rel=0.3)


@pytest.mark.slow  # a minute on a CPU that does not compute in bfloat16
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_learns_equally_well(precision: str, settings: Experiment) -> None:
    # For four seeds, bfloat16's second loss differs from float32's by 0.001 to 0.015, and float16's by up to 0.003.
    train_settings = {**settings()["train"], "seed": 2}
    exact = losses(run(settings(train=train_settings)))
    rounded = losses(run(settings(train={**train_settings, "precision": precision})))
    # The first loss differs only by rounding, because no weight has moved yet. Later, single losses depend on the
    # processor: if a gradient is near 0, its rounding decides the sign of a whole step of Adam.
    np.testing.assert_allclose(rounded[0], exact[0], atol=1e-3)
    np.testing.assert_allclose(rounded[1], exact[1], atol=0.01)
    np.testing.assert_allclose(np.mean(rounded), np.mean(exact), atol=0.02)
    assert rounded != exact


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_rows(settings: Experiment, tmp_path: Path) -> None:
    student = without_dropout(Path(settings()["student"]["model"]), tmp_path / "broken")
    tensors = load_file(student / "model.safetensors")
    tensors["encoder.layer.3.output.dense.bias"][0] = np.inf
    save_file(tensors, student / "model.safetensors", {"format": "pt"})
    with pytest.raises(FailsAgain, match="not finite") as caught:
        run(settings(student={"model": str(student)}))
    message = str(caught.value)
    assert message.startswith("step 0:")
    assert "learning rates: weights 0.0001, mask 0.01;" in message
    assert len(message.rsplit("rows of the batch: ")[1].split("; ")[0].split(", ")) == 16
    assert "smaller learning rates may help" in message


def test_a_trial_reports_an_evaluation_before_its_checkpoint_is_written_and_may_then_be_stopped(
    settings: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_from(settings(evaluation={"every_steps": 4}))
    plan = make_plan(experiment)
    checkpoints, reported, write = Checkpoints(plan.run / "checkpoints", keep=2), threading.Event(), Checkpoints._write

    def write_after_the_report(self: Checkpoints, checkpoint: Checkpoint, best_step: int | None) -> None:
        if not reported.wait(60):
            raise OSError("nothing was reported")
        write(self, checkpoint, best_step)

    def stop(metrics: dict[str, Any]) -> None:
        assert checkpoints.steps() == []
        assert whole_records(plan.run / "metrics.jsonl")[-1].items() >= metrics.items(), "what decides is on record"
        reported.set()
        raise SystemExit(0)  # as Ray Tune does in a report

    monkeypatch.setattr(Checkpoints, "_write", write_after_the_report)
    with Session(experiment.cluster) as session:
        job = make_job(plan, prepare_plan(plan, session, ignore), phase="student")
        with pytest.raises(SystemExit):
            run_job(job, session, Supervision(ignore, stop, may_be_stopped=True))


def test_the_best_at_the_final_density_is_delivered(settings: Experiment) -> None:
    result = run(
        settings(
            evaluation={"every_steps": 1, "select": "best"},
            pruning={"method": "topk", "initial_density": 1.0, "final_density": 0.5, "final_warmup": 4},
            train={"max_steps": 8, "warmup_steps": 1, "batch_size": 16, "learning_rate": 1e-4},
        )
    )
    evaluations = [record for record in records(result) if "eval/accuracy" in record]
    final = [record for record in evaluations if record["prune/requested_density"] == 0.5]
    assert 1 < len(final) < len(evaluations)
    best = max(final, key=lambda record: record["eval/accuracy"])
    assert result["best"] == {"step": best["step"], "value": best["eval/accuracy"]}
    assert result["metrics"]["eval/accuracy"] == best["eval/accuracy"]
    assert result["density"]["linear"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("pruning", "density"),
    [
        ({"method": "topk", "scope": "global", "final_density": 0.25}, 0.25),
        pytest.param({"method": "magnitude", "final_density": 0.25}, 0.25, marks=pytest.mark.slow),
        ({"method": "fisher", "final_density": 0.25}, 0.25),
        ({"method": "sigmoid_threshold", "penalty": {"kind": "l1", "final_lambda": 100.0}}, None),
        pytest.param({"method": "threshold", "final_threshold": 0.001}, None, marks=pytest.mark.slow),
        ({"method": "l0", "penalty": {"kind": "l0", "final_lambda": 100.0}}, None),
        (None, None),
    ],
)
def test_every_method_runs_and_the_plain_model_has_the_reported_density(
    pruning: dict[str, Any] | None, density: float | None, settings: Experiment
) -> None:
    result = run(settings(pruning=pruning))
    if density is not None:
        assert result["density"]["linear"] == pytest.approx(density, abs=1e-5)
    elif pruning is not None:
        assert result["best"]["step"] == 8, "what was evaluated at step 6 may have had more weights"
    model = AutoModelForSequenceClassification.from_pretrained(result["paths"]["model"])
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.config.id2label == {0: "negative", 1: "positive"}
    kept = [
        (parameter != 0).float().mean().item()
        for name, parameter in model.named_parameters()
        if ".layer." in name and parameter.dim() == 2
    ]
    sizes = [p.numel() for n, p in model.named_parameters() if ".layer." in n and p.dim() == 2]
    assert np.average(kept, weights=sizes) == pytest.approx(result["density"]["linear"], abs=1e-6)
    embeddings = load_file(resolve_model(settings()["student"]["model"], None, "") / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    unchanged = np.array_equal(embeddings[name], weights(result)[f"bert.{name}"])
    assert unchanged == (pruning is not None), "embeddings are frozen when pruning, and only then"


def test_a_student_may_start_as_its_teacher(settings: Experiment, minilm_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    teacher = a_teacher(minilm_dir, folder, "sentiment")
    values = settings(
        student={"model": str(minilm_dir), "start": "teacher"},
        teacher={"model": str(teacher)},
        pruning=None,
        train={"max_steps": 1, "batch_size": 16, "learning_rate": 1e-9, "freeze_embeddings": True},
    )
    result = run(values)
    expected = load_file(teacher / "model.safetensors")
    assert weights(result).keys() == expected.keys()
    for name, weight in weights(result).items():
        np.testing.assert_allclose(weight, expected[name], atol=1e-6, err_msg=name)

    def change(event: Any) -> None:  # after the command has found the teacher, and before the run loads it
        if isinstance(event, PhaseStarted) and event.phase == "student":
            content = (teacher / "model.safetensors").read_bytes()
            (teacher / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    with pytest.raises(WorkersLost, match=rf"^teacher\.model: the copy of {teacher} on node"):
        train(experiment_from(values | {"run": "again"}), on_event=change)


@pytest.mark.slow
def test_a_run_trains_with_the_dropout_of_its_settings(settings: Experiment, minilm_dir: Path, tmp_path: Path) -> None:
    bare = without_dropout(minilm_dir, tmp_path / "bare")
    short = {"max_steps": 3, "batch_size": 16, "log_every_steps": 1, "learning_rate": 1e-4}
    expected = losses(run(settings(student={"model": str(bare)}, train=short)))
    assert losses(run(settings(train=short | {"dropout": 0.0}))) == expected
    assert losses(run(settings(student={"model": str(bare)}, train=short | {"dropout": 0.1}))) != expected
    assert losses(run(settings(train=short))) == losses(run(settings(train=short | {"dropout": 0.1})))


@pytest.mark.slow
def test_the_initial_model_of_a_student_of_its_teachers_layers_is_found_again(
    settings: Experiment, minilm_dir: Path, tmp_path: Path
) -> None:
    """The embeddings are in no checkpoint. They are those of the trained teacher, and not of the pretrained model."""
    values = settings(
        student={"model": str(minilm_dir), "layers": [0, 5], "start": "teacher"},
        teacher={"train": {"max_steps": 2, "batch_size": 16, "learning_rate": 1e-2}},
        pruning={"method": "magnitude", "final_density": 0.5, "initial_warmup": 0, "final_warmup": 0},
        train={"max_steps": 2, "batch_size": 16, "warmup_steps": 0},
    )
    result = run(values)
    found = evaluate_command(result["paths"]["run"], all_checkpoints=True)
    (last,) = (metrics for name, metrics in found.items() if name.startswith("step 2 "))
    assert {f"eval/{name}": value for name, value in last.items()} == pytest.approx(result["metrics"], abs=1e-6)
    inspect_command(result["paths"]["run"], save_to=str(tmp_path / "movement.png"), figure="movement")
    assert (tmp_path / "movement.png").stat().st_size > 0
