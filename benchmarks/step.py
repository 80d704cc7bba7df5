"""What pruning and distillation add to a fine-tuning step: every method with soft loss, against our own dense step.

Same batches, same frozen embeddings, float32, in turn.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from workload import Workload, report_in_turn

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
            teacher = {"model": str(workload.teacher)}
            for method in methods:
                runs = {"dense": {}, method: {"pruning": METHODS[method], "teacher": teacher}}
                dense, pruned = workload.in_turn(runs).values()
                target = TARGETS[task].get(method, USUAL_TARGETS[task])
                report_in_turn(f"step {task} {method}", pruned, dense, f"target <= {target}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        [a for a in arguments if a in USUAL_TARGETS] or list(USUAL_TARGETS),
        [a for a in arguments if a in METHODS] or list(METHODS),
    )
