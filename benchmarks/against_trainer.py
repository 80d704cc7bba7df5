"""raypp against transformers.Trainer: MiniLM, batches of 32, float32, both on a GPU where there is one.

1. A dense step of raypp against a step of Trainer, on the same padded batches.
2. An epoch of fine-pruning with a teacher, against an epoch of dense fine-tuning with Trainer as run_glue does it: rows
   in their order, padded to 128 tokens. An epoch is extrapolated from the mean of 20 steps of raypp and from a few
   steps of Trainer, which all take the same time. `--full` makes all steps of an epoch of the training file instead (on
   two cores 5 minutes for MRPC, an hour and a half for SST-2).

Neither side evaluates. The time for the teacher's logits is not counted: they are computed once for all epochs and
runs, and read from the store. The embeddings are frozen on both sides, as in all benchmarks of steps.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from workload import (
    BATCH_SIZE,
    ENCODER,
    MAX_LENGTH,
    STEPS,
    WARM_STEPS,
    Workload,
    median,
    raw_table,
    report,
    report_in_turn,
)

from raypp.config import DataSettings, TrainSettings
from raypp.data.batches import plan_epoch
from raypp.data.features import Features
from raypp.kinds import kind_of
from raypp.models.freezing import embeddings_of
from raypp.models.loading import load_pretrained, load_tokenizer, resolve_model

ROWS = 2048  # of the training file, without --full
PADDED_STEPS, PADDED_WARM_STEPS = 10, 3  # all take the same time
TARGETS = {"mrpc": 0.5, "sst2": 0.25}


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Records when each step of Trainer begins."""

    def __init__(self) -> None:
        self.began: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began.append(time.perf_counter())


class _Batches(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, batches: list[dict[str, torch.Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return self.batches[place]


def trainer_seconds(workload: Workload, batches: list[dict[str, torch.Tensor]]) -> list[float]:
    """Seconds of each step of Trainer on these batches, in their order."""
    model = load_pretrained(resolve_model(ENCODER, None, "student.model"), kind_of(workload.task), seed=0)
    for module in embeddings_of(model):
        module.requires_grad_(False)
    clock = _Clock()
    arguments = TrainingArguments(
        output_dir=str(workload.scratch / "trainer"),
        max_steps=len(batches),
        per_device_train_batch_size=1,  # an item is a batch
        train_sampling_strategy="sequential",
        learning_rate=3e-5,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_Batches(batches),
        data_collator=lambda items: items[0],
        callbacks=[clock],
    )
    trainer.train()
    clock.began.append(time.perf_counter())
    return [after - before for before, after in pairwise(clock.began)]


def dense_step(workload: Workload, bucketed: list[dict[str, torch.Tensor]]) -> None:
    """Measures raypp's steps before and after Trainer's, and compares."""
    ours = workload.step_seconds()
    theirs = trainer_seconds(workload, bucketed[:STEPS])[WARM_STEPS:]
    both = [statistics.fmean(pair) for pair in zip(ours, workload.step_seconds(), strict=True)]
    report_in_turn(f"dense step {workload.task.name}, same batches", both, theirs, "target <= 1.0")


def epoch(workload: Workload, steps: int, padded: list[dict[str, torch.Tensor]], full: bool) -> None:
    """Compares fine-pruning with a teacher with Trainer's dense fine-tuning on padded batches."""
    name, target = workload.task.name, f"target <= {TARGETS[workload.task.name]}"
    sections: dict[str, Any] = {
        "pruning": {"method": "topk", "final_density": 0.15},
        "teacher": {"model": str(workload.teacher)},
    }
    if full:
        ours = workload.step_seconds(steps=steps, warm=0, train={"max_steps": steps}, **sections)
        theirs = trainer_seconds(workload, padded)
        report(f"full epoch of {name}, {steps} steps", sum(ours), sum(theirs), "s", target)
        return
    ours = workload.step_seconds(**sections)
    theirs = trainer_seconds(workload, padded[:PADDED_STEPS])[PADDED_WARM_STEPS:]
    counted = f"mean of {len(ours)} steps against median of {len(theirs)}, no full epoch"
    # The batches of raypp differ in length, so that their mean counts; those of Trainer are all alike.
    report(f"epoch of {name}, {counted}", statistics.fmean(ours), median(theirs), "s a step", target)


def main(tasks: list[str], full: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        for task in tasks:
            workload = Workload(task, Path(scratch), train_rows=None if full else ROWS)
            tokenizer = load_tokenizer(resolve_model(ENCODER, None, "student.model"), "student.model")
            kind = kind_of(workload.task, DataSettings(max_length=MAX_LENGTH))
            rows = raw_table(workload.task, "train", None if full else ROWS)
            features = Features.from_table(kind.tokenize(rows, tokenizer))
            plan = plan_epoch(features.lengths, TrainSettings(batch_size=BATCH_SIZE), 0, micro_batches=1)
            padded = [
                features.collate(
                    range(start, min(start + BATCH_SIZE, rows.num_rows)),
                    tokenizer.pad_token_id,
                    multiple_of=MAX_LENGTH,
                )
                for start in range(0, rows.num_rows, BATCH_SIZE)
            ]
            if not full:
                bucketed = [features.collate(batch.indices, tokenizer.pad_token_id) for batch in plan[:STEPS]]
                dense_step(workload, bucketed)
            epoch(workload, len(plan), padded, full)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--full"]
    main(words or list(TARGETS), full="--full" in sys.argv)
