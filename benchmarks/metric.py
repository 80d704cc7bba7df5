"""Whether raypp's step learns as well as the naive step of the parity tests: the dev metric of the same short
fine-pruning runs, for raypp in float32 and in bfloat16. The target: equal within seed noise, 3 seeds, MRPC and CoLA.
Nothing is timed here, and everything runs on the CPU.

Both sides have the same rows, batches, initial scores and trained teacher, and the student starts as the teacher. The
noise of dropout, the padding and the order of sums differ. Seed noise is the standard deviation over the seeds, pooled
from both sides; two means are equal if they differ by no more than that. The comparison is meaningless where a side
gives the same answer to every row, so the metric of a constant answer is printed, too. For the same reason the density
is high: the runs are short, and a lower density needs more epochs, as in `metric.py mrpc --density 0.5 --epochs 6`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from naive import fine_prune
from torch import nn
from workload import ENCODER, Workload, raw_table, texts_of

from raypp.cluster.launch import train
from raypp.cluster.pipeline import prepare
from raypp.config import Experiment, ScoreInitialization, TopKPruning
from raypp.data.batches import plan_epoch
from raypp.data.features import Features
from raypp.evaluation.evaluate import headline_key
from raypp.evaluation.metrics import class_metrics
from raypp.load_config import experiment_from
from raypp.models.loading import load_tokenizer, resolve_model
from raypp.plan import Plan, make_plan
from raypp.pruning.pruner import initial_scores
from raypp.seeds import named_seed

SEEDS = (1, 2, 3)
TEACHER = {"epochs": 5, "learning_rate": 1e-4, "warmup_steps": 20}
DENSITY, EPOCHS = 0.98, 1
# Training rows, and the number of tokens that they are cut to. The naive step is slow, and pads all rows to it.
SIZES = {"mrpc": (2048, 64), "cola": (4096, 32)}
UNIFORM = ScoreInitialization(kind="uniform", scale=0.01)
SCHEDULE = {"initial_warmup": 1, "final_warmup": 2, "mask_learning_rate": 1e-2}
RATE, WARMUP = 1e-4, 6


def experiment(workload: Workload, density: float, epochs: int, seed: int, precision: str = "float32") -> Experiment:
    files = {split: str(workload.scratch / f"{split}.parquet") for split in ("train", "dev")}
    length: dict[str, Any] = {"epochs": epochs, "learning_rate": RATE, "warmup_steps": WARMUP}
    return experiment_from(
        {
            "name": "metric",
            "task": workload.task.name,
            "data": {"source": {"kind": "files", **files}, "max_length": SIZES[workload.task.name][1]},
            "student": {"model": ENCODER, "start": "teacher"},
            "teacher": {"train": TEACHER},
            "pruning": {
                "method": "topk",
                "final_density": density,
                "score_initialization": UNIFORM.model_dump(),
                **SCHEDULE,
            },
            "train": {**length, "seed": seed, "precision": precision},
            "cluster": {"workers": 0, "storage": str(workload.scratch / "runs")},
            "tracking": {"wandb": "off"},
        }
    )


def naive_metric(workload: Workload, plan: Plan, teacher: Path) -> float:
    """The headline metric of the naive run on the same batches."""
    settings, pruning, task = plan.experiment.train, plan.experiment.pruning, workload.task
    assert isinstance(pruning, TopKPruning)
    assert settings.epochs is not None
    artifact = plan.store.find("features", plan.features_key("train", plan.student.tokenizer))
    assert artifact is not None, "prepared before"
    lengths = Features.from_table(artifact.read_table()).lengths
    batches = [
        batch.indices.tolist()
        for epoch in range(int(settings.epochs))
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
        final=pruning.final_density,
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
    return _headline(workload, torch.cat(logits).numpy(), labels)


def constant_metric(workload: Workload) -> float:
    """The headline metric of answering every row with the most frequent label."""
    labels = _columns(workload, "dev", None)[1]
    logits = np.zeros((len(labels), 2), np.float32)
    logits[:, statistics.mode(labels)] = 1.0
    return _headline(workload, logits, labels)


def _headline(workload: Workload, logits: np.ndarray, labels: list[int]) -> float:
    return class_metrics(workload.task.metrics, logits, np.array(labels))[workload.task.headline]


def _columns(workload: Workload, split: str, rows: int | None) -> tuple[list[tuple[str, ...]], list[int]]:
    table = raw_table(workload.task, split, rows)
    return texts_of(table, workload.task), table["label"].to_pylist()


def said(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def compared(ours: list[float], naive: list[float], constant: float) -> str:
    """The difference of the means, and whether seed noise explains it, or that it says nothing because a side gives
    constant answers only."""
    difference = statistics.fmean(ours) - statistics.fmean(naive)
    noise = math.sqrt((statistics.variance(ours) + statistics.variance(naive)) / 2)
    verdict = "equal within it" if abs(difference) <= noise else "not equal"
    if any(all(math.isclose(value, constant) for value in values) for values in (ours, naive)):
        verdict = "says nothing, one gives a constant answer"
    return f"difference {difference:+.3f}, seed noise {noise:.3f}: {verdict}"


def main(tasks: list[str], density: float, epochs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        for name in tasks:
            workload = Workload(name, Path(scratch), train_rows=SIZES[name][0], dev_rows=None)
            found: dict[str, list[float]] = {"float32": [], "bfloat16": [], "naive": []}
            for seed in SEEDS:
                prepare(experiment(workload, density, epochs, seed))
                for precision in ("float32", "bfloat16"):
                    result = train(experiment(workload, density, epochs, seed, precision))
                    found[precision].append(result["metrics"][headline_key(workload.task)])
                plan = make_plan(experiment(workload, density, epochs, seed))
                assert plan.teacher_plan is not None
                with plan.teacher_plan.trained_model() as teacher:
                    found["naive"].append(naive_metric(workload, plan, teacher.folder))
                last = ", ".join(f"{each} {values[-1]:.3f}" for each, values in found.items())
                print(f"{name}, seed {seed}: {last}", flush=True)
            constant = constant_metric(workload)
            question = f"{workload.task.headline} {name}, density {density}, epochs {epochs}, {len(SEEDS)} seeds"
            for precision, unit in (("float32", ""), ("bfloat16", " in bfloat16")):
                print(
                    f"{question}{unit}: {said(found[precision])}, reference {said(found['naive'])}, "
                    f"{compared(found[precision], found['naive'], constant)}; a constant answer {constant:.3f} "
                    "(target: equal within seed noise, 3 seeds, MRPC and CoLA)",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Dev metric against the naive step's.")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(SIZES)}; all")
    parser.add_argument("--density", type=float, default=DENSITY)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    main(options.tasks or list(SIZES), options.density, options.epochs)
