"""What pruning and distillation add to a fine-tuning step: every method with soft loss, against our own dense step.

Same batches, same frozen embeddings, float32, in turn. On a GPU where there is one: `--bert-base` takes an encoder of
BERT-base's size, with random weights, and batches of 128, which is what the target for GPUs speaks of.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import BertConfig, BertModel
from workload import BATCH_SIZE, ENCODER, Workload, report_in_turn

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
BERT_BASE_BATCH_SIZE, BERT_BASE_TARGET = 128, "1.05 on a GPU"


def bert_base(folder: Path) -> str:
    """An encoder of BERT-base's size, and the benchmarks' tokenizer, which has BERT's vocabulary."""
    tokenizer = load_tokenizer(resolve_model(ENCODER, None, "student.model"), "student.model")
    BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def main(tasks: list[str], methods: list[str], large: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        encoder = bert_base(Path(scratch) / "bert-base") if large else ENCODER
        batch_size = BERT_BASE_BATCH_SIZE if large else BATCH_SIZE
        for task in tasks:
            workload = Workload(task, Path(scratch), encoder=encoder, batch_size=batch_size)
            teacher = {"model": str(workload.teacher)}
            for method in methods:
                runs = {"dense": {}, method: {"pruning": METHODS[method], "teacher": teacher}}
                dense, pruned = workload.in_turn(runs).values()
                target = BERT_BASE_TARGET if large else TARGETS[task].get(method, USUAL_TARGETS[task])
                size = ", BERT-base, batch 128" if large else ""
                report_in_turn(f"step {task} {method}{size}", pruned, dense, f"target <= {target}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        [a for a in arguments if a in USUAL_TARGETS] or list(USUAL_TARGETS),
        [a for a in arguments if a in METHODS] or list(METHODS),
        large="--bert-base" in arguments,
    )
