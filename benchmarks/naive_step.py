"""A fine-pruning step with a teacher, against the naive step of the parity tests (naive.py): a sort at every forward
pass, batches padded to 128 tokens, the teacher run at every step. raypp's step is measured in float32 before and after
the naive one, and then in bfloat16, all on the CPU.

The naive batches are rows in their order, which all take the same time because they are padded to 128 tokens; raypp's
have rows of similar length. The naive step tokenizes its batch, which takes little of its time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from naive import fine_prune
from workload import BATCH_SIZE, ENCODER, Workload, median, raw_table, report, texts_of

from raypp.config import ScoreInitialization
from raypp.models.loading import resolve_model
from raypp.pruning.pruner import initial_scores
from raypp.seeds import named_seed

NAIVE_STEPS = 8
TARGETS = {"mrpc": 1 / 3.5, "sst2": 1 / 8}
UNIFORM = ScoreInitialization(kind="uniform", scale=0.1)


def naive_seconds(workload: Workload, steps: int) -> float:
    """The median seconds of a naive step, without the first one."""
    table = raw_table(workload.task, "train", steps * BATCH_SIZE)
    times: list[float] = []

    def timed_batches() -> Iterator[list[int]]:
        for start in range(0, steps * BATCH_SIZE, BATCH_SIZE):
            times.append(time.perf_counter())
            yield list(range(start, start + BATCH_SIZE))
        times.append(time.perf_counter())

    fine_prune(
        resolve_model(ENCODER, None, "student.model"),
        workload.teacher,
        texts_of(table, workload.task),
        table["label"].to_pylist(),
        timed_batches(),
        method="topk",
        total=100,
        warmup=1,
        initial=1.0,
        final=0.15,
        initial_warmup=1,
        final_warmup=2,
        learning_rate=3e-5,
        mask_learning_rate=1e-2,
        adam_epsilon=1e-8,
        max_length=128,
        scores_of=lambda name, shape: initial_scores(torch.Size(shape), UNIFORM, named_seed(42, name)),
    )
    return median([after - before for before, after in pairwise(times[1:])])


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        for task, target in TARGETS.items():
            workload = Workload(task, Path(scratch), gpus=0)  # the naive one computes on the CPU
            sections: dict[str, Any] = {
                "pruning": {
                    "method": "topk",
                    "final_density": 0.15,
                    "score_initialization": UNIFORM.model_dump(),
                },
                "teacher": {"model": str(workload.teacher)},
            }
            ours = workload.step_seconds(**sections)
            naive = naive_seconds(workload, NAIVE_STEPS)
            ours += workload.step_seconds(**sections)
            in_bfloat16 = workload.step_seconds(**sections, train={"precision": "bfloat16"})
            # Batches of raypp differ in length, so that their mean counts.
            report(f"fine-pruning step {task}", fmean(ours), naive, "s", f"target <= {target:.3f}")
            report(f"fine-pruning step {task} in bfloat16", fmean(in_bfloat16), naive, "s", "no target")


if __name__ == "__main__":
    main()
