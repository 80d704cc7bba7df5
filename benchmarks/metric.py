"""Whether the fast step learns as well as the naive one of the parity tests: dev metric of the same short fine-pruning
runs over three seeds, ours in float32 and bfloat16. Nothing is timed here.

Same rows, same batches, same trained teacher, which the students start as, same initial scores; what differs is
dropout's noise, padding and the order of sums. The density is mild, so that the model is better than a constant answer.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from workload import ENCODER, Workload, raw_table, texts_of

from raypp.cluster.launch import train
from raypp.cluster.pipeline import prepare
from raypp.config import Experiment, ScoreInitialization
from raypp.data.batches import plan_epoch
from raypp.data.features import Features
from raypp.evaluate import headline_key
from raypp.load_config import experiment_from
from raypp.metrics import class_metrics
from raypp.models import load_tokenizer, resolve_model
from raypp.plan import Plan, make_plan
from raypp.pruning.masks import named_seed
from raypp.pruning.pruner import initial_scores

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from naive import fine_prune

SEEDS = (1, 2, 3)
EPOCHS = 1
TEACHER = {"epochs": 5, "learning_rate": 1e-4, "warmup_steps": 20}
DENSITY = 0.98
# Rows to train on, and the length that they are cut to: the naive step is slow, and pads all to it.
SIZES = {"mrpc": (2048, 64), "cola": (4096, 32)}
UNIFORM = ScoreInitialization(kind="uniform", scale=0.01)
SCHEDULE = {"initial_warmup": 1, "final_warmup": 2, "mask_learning_rate": 1e-2}
RATE, WARMUP = 1e-4, 6


def experiment(workload: Workload, seed: int, precision: str) -> Experiment:
    files = {split: str(workload.scratch / f"{split}.parquet") for split in ("train", "dev")}
    length: dict[str, Any] = {"epochs": EPOCHS, "learning_rate": RATE, "warmup_steps": WARMUP}
    return experiment_from(
        {
            "name": "metric",
            "task": workload.task.name,
            "data": {"source": {"kind": "files", **files}, "max_length": SIZES[workload.task.name][1]},
            "student": {"model": ENCODER, "start": "teacher"},
            "teacher": {"train": TEACHER},
            "pruning": {
                "method": "topk",
                "final_density": DENSITY,
                "score_initialization": UNIFORM.model_dump(),
                **SCHEDULE,
            },
            "train": {**length, "seed": seed, "precision": precision},
            "cluster": {"workers": 0, "storage": str(workload.scratch / "runs")},
            "tracking": {"wandb": "off"},
        }
    )


def naive_metric(workload: Workload, plan: Plan, teacher: Path) -> float:
    """Headline metric of the naive run on the same batches."""
    settings, task = plan.experiment.train, workload.task
    artifact = plan.store.find("features", plan.features_key("train", plan.student.tokenizer))
    assert artifact is not None, "prepared before"
    lengths = Features.from_table(artifact.read_table()).lengths
    batches = [
        batch.indices.tolist()
        for epoch in range(EPOCHS)
        for batch in plan_epoch(lengths, settings, epoch, micro_batches=1)
    ]
    rows, longest = SIZES[task.name]
    texts, labels = _columns(workload, "train", rows)
    _, model = fine_prune(
        teacher,
        teacher,
        texts,
        labels,
        batches,
        method="topk",
        total=len(batches),
        warmup=WARMUP,
        initial=1.0,
        final=DENSITY,
        initial_warmup=int(SCHEDULE["initial_warmup"]),
        final_warmup=int(SCHEDULE["final_warmup"]),
        learning_rate=RATE,
        mask_learning_rate=SCHEDULE["mask_learning_rate"],
        adam_epsilon=settings.adam_epsilon,
        seed=settings.seed,
        max_length=longest,
        scores_of=lambda name, shape: initial_scores(torch.Size(shape), UNIFORM, named_seed(settings.seed, name)),
    )
    return _evaluated(workload, model, longest)


@torch.inference_mode()
def _evaluated(workload: Workload, model: nn.Module, longest: int) -> float:
    texts, labels = _columns(workload, "dev", None)
    tokenizer = load_tokenizer(resolve_model(ENCODER, None, "student.model"), "student.model")
    logits = []
    for start in range(0, len(texts), 128):
        columns = [list(column) for column in zip(*texts[start : start + 128], strict=True)]
        inputs = tokenizer(*columns, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        logits.append(model.eval()(**inputs).logits)
    scores = class_metrics(workload.task.metrics, torch.cat(logits).numpy(), torch.tensor(labels).numpy())
    return scores[workload.task.headline]


def _columns(workload: Workload, split: str, rows: int | None) -> tuple[list[tuple[str, ...]], list[int]]:
    table = raw_table(workload.task, split, rows)
    return texts_of(table, workload.task), table["label"].to_pylist()


def said(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def main(tasks: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        for name in tasks:
            workload = Workload(name, Path(scratch), train_rows=SIZES[name][0], dev_rows=None)
            found: dict[str, list[float]] = {"float32": [], "bfloat16": [], "naive": []}
            for seed in SEEDS:
                prepare(experiment(workload, seed, "float32"))
                for precision in ("float32", "bfloat16"):
                    result = train(experiment(workload, seed, precision))
                    found[precision].append(result["metrics"][headline_key(workload.task)])
                plan = make_plan(experiment(workload, seed, "float32"))
                assert plan.teacher_plan is not None
                with plan.teacher_plan.trained_model() as teacher:
                    found["naive"].append(naive_metric(workload, plan, teacher.folder))
                last = ", ".join(f"{each} {values[-1]:.3f}" for each, values in found.items())
                print(f"{name}, seed {seed}: {last}", flush=True)
            difference = statistics.fmean(found["float32"]) - statistics.fmean(found["naive"])
            print(
                f"{workload.task.headline} {name}, {len(SEEDS)} seeds: {said(found['float32'])}, in bfloat16 "
                f"{said(found['bfloat16'])}, naive {said(found['naive'])}, difference {difference:+.3f} "
                "(target: within the spread of seeds)",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:] or list(SIZES))
