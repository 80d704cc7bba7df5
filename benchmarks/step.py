"""What pruning and distillation add to a fine-tuning step: every method with soft loss, against raypp's dense step.

Both use the same batches, the same frozen embeddings and float32, on a GPU where there is one, and make their steps in
turn. `--bert-base` measures what the target for GPUs is about: an encoder of BERT-base's size with random weights, in
bfloat16, with batches of 32 and of 128 examples that all have 128 tokens.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import BertConfig, BertModel
from workload import ENCODER, GPUS, MAX_LENGTH, Workload, report_in_turn

from raypp.models.loading import load_tokenizer, resolve_model

METHODS: dict[str, dict[str, Any]] = {
    "topk": {"method": "topk", "final_density": 0.15},
    "topk, global": {"method": "topk", "final_density": 0.15, "scope": "global"},
    "magnitude": {"method": "magnitude", "final_density": 0.15},
    "sigmoid_threshold": {
        "method": "sigmoid_threshold",
        "final_threshold": 0.1,
        "penalty": {"kind": "l1", "final_lambda": 100},
    },
    "l0": {"method": "l0", "penalty": {"kind": "l0", "final_lambda": 100}},
    "fisher": {"method": "fisher", "final_density": 0.15},
}
TARGETS = {"mrpc": {"l0": 1.30}, "sst2": {}}
USUAL_TARGETS = {"mrpc": 1.10, "sst2": 1.35}
BERT_BASE_TARGETS = {32: "no target", 128: "target <= 1.05"}  # by batch size


def bert_base(folder: Path) -> str:
    """Saves an encoder of BERT-base's size, and the benchmarks' tokenizer, which has BERT's vocabulary."""
    tokenizer = load_tokenizer(resolve_model(ENCODER, None, "student.model"), "student.model")
    BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def compare(workload: Workload, methods: list[str], size: str, targets: dict[str, str], **sections: Any) -> None:
    """Compares each method's steps with dense steps, both with these sections of the experiment."""
    teacher = {"model": str(workload.teacher)}
    for method in methods:
        runs = {"dense": sections, method: {"pruning": METHODS[method], "teacher": teacher, **sections}}
        dense, pruned = workload.in_turn(runs).values()
        report_in_turn(f"step {workload.task.name} {method}{size}", pruned, dense, targets[method])


def main(tasks: list[str], methods: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        for task in tasks:
            targets = {method: f"target <= {TARGETS[task].get(method, USUAL_TARGETS[task])}" for method in methods}
            compare(Workload(task, Path(scratch)), methods, "", targets)


def main_bert_base(methods: list[str]) -> None:
    if not GPUS:
        raise SystemExit("--bert-base measures a GPU, and torch finds none")
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        encoder = bert_base(Path(scratch) / "bert-base")
        for batch_size, target in BERT_BASE_TARGETS.items():
            folder = Path(scratch) / f"batch-{batch_size}"
            workload = Workload("mrpc", folder, encoder=encoder, batch_size=batch_size, full_length=True)
            size = f", BERT-base, bfloat16, {batch_size} x {MAX_LENGTH} tokens"
            compare(workload, methods, size, dict.fromkeys(methods, target), train={"precision": "bfloat16"})


if __name__ == "__main__":
    words = sys.argv[1:]
    chosen = [word for word in words if word in METHODS] or list(METHODS)
    if "--bert-base" in words:
        main_bert_base(chosen)
    else:
        main([word for word in words if word in USUAL_TARGETS] or list(USUAL_TARGETS), chosen)
