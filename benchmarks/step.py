"""What pruning and distillation add to a fine-tuning step: every method with soft loss, against our own dense step.

Same batches, same frozen embeddings, float32. The dense run is measured before and after each method.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from workload import Workload, median, report

STEPS = 22
CUBIC = {"initial_warmup": 1, "final_warmup": 2}  # the density falls from the third step on
METHODS: dict[str, dict[str, Any]] = {
    "topk": {"method": "topk", "final_density": 0.15, **CUBIC},
    "topk, global": {"method": "topk", "final_density": 0.15, "scope": "global", **CUBIC},
    "magnitude": {"method": "magnitude", "final_density": 0.15, **CUBIC},
    "sigmoid_threshold": {
        "method": "sigmoid_threshold",
        "final_threshold": 0.1,
        "penalty": {"kind": "l1", "final_lambda": 100},
        **CUBIC,
    },
    "l0": {"method": "l0", "penalty": {"kind": "l0", "final_lambda": 100}, **CUBIC},
}
TARGETS = {"mrpc": {"l0": 1.30}, "sst2": {}}
USUAL_TARGETS = {"mrpc": 1.10, "sst2": 1.35}


def main(tasks: list[str], methods: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        for task in tasks:
            workload = Workload(task, Path(scratch))
            dense = workload.step_seconds("dense", STEPS)
            for method in methods:
                pruned = workload.step_seconds(
                    "pruned", STEPS, pruning=METHODS[method], teacher={"model": str(workload.teacher)}
                )
                after = workload.step_seconds("dense", STEPS)
                target = TARGETS[task].get(method, USUAL_TARGETS[task])
                report(f"step {task} {method}", median(pruned), median(dense + after), "s", f"target <= {target}")
                dense = after


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        [a for a in arguments if a in USUAL_TARGETS] or list(USUAL_TARGETS),
        [a for a in arguments if a in METHODS] or list(METHODS),
    )
