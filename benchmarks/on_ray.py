"""What Ray costs: steps per second of one TorchTrainer worker against the same loop in this process; and how long a
command takes to its first optimizer step with everything in the store."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from workload import ENCODER, Workload, median, report

STEPS = 100
LOG_EVERY = 5  # steps whose mean is one sample
WARM = 4  # samples that do not count


def run(workload: Workload, workers: int) -> tuple[list[float], float]:
    """Seconds of each step, and from the command to the first one, of a run in a process of its own."""
    files = {split: str(workload.scratch / f"{split}.parquet") for split in ("train", "dev")}
    settings = {
        "task": workload.task.name,
        "run": f"on-{workers}",
        "data.source": {"kind": "files", **files},
        "student.model": ENCODER,
        "teacher.model": str(workload.teacher),
        "pruning": {"method": "topk", "final_density": 0.15},
        "train.max_steps": STEPS,
        "train.log_every_steps": LOG_EVERY,
        "cluster.workers": workers,
        "cluster.storage": str(workload.scratch / "runs"),
        "tracking.wandb": "off",
    }
    experiment = workload.scratch / "experiment.yaml"
    experiment.write_text(f"task: {workload.task.name}\nstudent: {{model: {ENCODER!r}}}\n")
    overrides = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    command = [sys.executable, "-m", "raypp.cli", "train", str(experiment), *overrides, "--fresh"]
    subprocess.run(command, check=True, capture_output=True)
    (metrics,) = (workload.scratch / "runs").glob(f"*/on-{workers}/metrics.jsonl")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [record for record in records if "perf/step_seconds" in record]
    return [record["perf/step_seconds"] for record in steps[WARM:]], steps[0]["perf/seconds_to_first_step"]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        workload = Workload("sst2", Path(scratch))
        run(workload, 0)  # fills the store
        alone, start = run(workload, 0)
        on_ray, start_on_ray = run(workload, 1)
        again, start_again = run(workload, 0)
        report("step on a TorchTrainer worker", median(on_ray), median(alone + again), "s", "target <= 1.02")
        print(f"command to first step, workers: 0: {min(start, start_again):.1f} s (target <= 8)")
        print(f"command to first step, one TorchTrainer worker: {start_on_ray:.1f} s")


if __name__ == "__main__":
    main()
