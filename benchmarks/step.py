"""What pruning and distillation add to a fine-tuning step: every method with soft loss, against our own dense step.

Same batches, same frozen embeddings, float32. The dense run is measured before and after each method.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from workload import Workload, median, report

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


def main(tasks: list[str], methods: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        for task in tasks:
            workload = Workload(task, Path(scratch))
            dense = workload.step_seconds()
            for method in methods:
                pruned = workload.step_seconds(pruning=METHODS[method], teacher={"model": str(workload.teacher)})
                after = workload.step_seconds()
                target = TARGETS[task].get(method, USUAL_TARGETS[task])
                report(f"step {task} {method}", median(pruned), median(dense + after), "s", f"target <= {target}")
                dense = after


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        [a for a in arguments if a in USUAL_TARGETS] or list(USUAL_TARGETS),
        [a for a in arguments if a in METHODS] or list(METHODS),
    )
