"""raypp against transformers.Trainer, MiniLM, batch 32, float32.

1. A dense step of ours against Trainer's on the very same padded batches.
2. Fine-pruning with a teacher over the rows of an epoch, against Trainer's dense fine-tuning as run_glue does it:
   batches as they come, padded to 128 tokens.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from workload import BATCH_SIZE, ENCODER, STEPS, WARM_STEPS, Workload, median, raw_table, report

from raypp.config import DataSettings, TrainSettings
from raypp.data.batches import plan_epoch
from raypp.data.features import Features
from raypp.freezing import embeddings_of
from raypp.kinds import kind_of
from raypp.models import load_pretrained, load_tokenizer, resolve_model

MAX_LENGTH = 128
PADDED_STEPS = 10  # every one costs the same
TARGETS = {"mrpc": 0.5, "sst2": 0.25}


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Notes when each step of Trainer begins."""

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


def trainer_seconds(workload: Workload, batches: list[dict[str, torch.Tensor]], warm: int) -> list[float]:
    """Seconds of each of Trainer's steps on these batches, in its own shuffled order, without the first few."""
    model = load_pretrained(resolve_model(ENCODER, None, "student.model"), workload.task, seed=0)
    for module in embeddings_of(model):
        module.requires_grad_(False)
    clock = _Clock()
    arguments = TrainingArguments(
        output_dir=str(workload.scratch / "trainer"),
        max_steps=len(batches),
        per_device_train_batch_size=1,  # an item is a batch
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
    return [after - before for before, after in pairwise(clock.began[warm:])]


def main(tasks: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        for task in tasks:
            workload = Workload(task, Path(scratch))
            folder = resolve_model(ENCODER, None, "student.model")
            tokenizer = load_tokenizer(folder, "student.model")
            kind = kind_of(workload.task, DataSettings(max_length=MAX_LENGTH))
            features = Features.from_table(kind.tokenize(raw_table(workload.task, "train", 2048), tokenizer))
            plan = plan_epoch(features.lengths, TrainSettings(batch_size=BATCH_SIZE), 0, micro_batches=1)
            bucketed = [features.collate(batch.indices, tokenizer.pad_token_id) for batch in plan[:STEPS]]
            padded = [
                features.collate(range(start, start + BATCH_SIZE), tokenizer.pad_token_id, multiple_of=MAX_LENGTH)
                for start in range(0, PADDED_STEPS * BATCH_SIZE, BATCH_SIZE)
            ]
            ours = workload.step_seconds()
            theirs = trainer_seconds(workload, bucketed, WARM_STEPS)
            again = workload.step_seconds()
            report(f"dense step {task}", median(ours + again), median(theirs), "s", "target <= 1.0")
            pruned = workload.step_seconds(
                pruning={"method": "topk", "final_density": 0.15}, teacher={"model": str(workload.teacher)}
            )
            slow = trainer_seconds(workload, padded, 3)
            mean = sum(pruned) / len(pruned)  # the batches differ in length: an epoch is their sum
            report(f"epoch {task}, per step", mean, median(slow), "s", f"target <= {TARGETS[task]}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(TARGETS))
