"""What Ray costs: steps per second of one TorchTrainer worker against the same loop in this process, with as many
threads as CPUs and with one; and how long a command takes to its first optimizer step with everything in the store,
against a TorchTrainer with an empty loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from workload import ENCODER, Workload, median, report

STEPS = 100
LOG_EVERY = 5  # steps whose mean is one sample
WARM = 4  # samples that do not count


def run(workload: Workload, workers: int, threads: int | None = None) -> tuple[list[float], float]:
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
        "cluster.cpus_per_worker": threads or "auto",
        "cluster.storage": str(workload.scratch / "runs"),
        "tracking.wandb": "off",
    }
    experiment = workload.scratch / "experiment.yaml"
    experiment.write_text(f"task: {workload.task.name}\nstudent: {{model: {ENCODER!r}}}\n")
    overrides = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    command = [sys.executable, "-m", "raypp.cli", "train", str(experiment), *overrides, "--fresh"]
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    (metrics,) = (workload.scratch / "runs").glob(f"*/on-{workers}/metrics.jsonl")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [record for record in records if "perf/step_seconds" in record]
    return [record["perf/step_seconds"] for record in steps[WARM:]], steps[0]["perf/seconds_to_first_step"]


EMPTY = """
import time
began = time.time()
from raypp.cluster.session import Session
from raypp.config import ClusterSettings
with Session(ClusterSettings()) as session:
    session.start()
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    cpus = {{"CPU": session.cpus_per_worker()}}
    scaling = ScalingConfig(num_workers=1, resources_per_worker=cpus)
    trainer = TorchTrainer(lambda: time.time(), scaling_config=scaling, run_config=RunConfig(storage_path={storage!r}))
    print(trainer.fit().return_value - began)
"""


def empty_trainer(storage: Path) -> float:
    """Seconds from the start of a process to the first line of a TorchTrainer's loop in which nothing else is done."""
    script = EMPTY.format(storage=str(storage))
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        workload = Workload("sst2", Path(scratch))
        run(workload, 0)  # fills the store
        alone, start = run(workload, 0)
        on_ray, start_on_ray = run(workload, 1)
        empty = empty_trainer(workload.scratch / "empty")
        again, start_again = run(workload, 0)
        one_thread, with_ray = run(workload, 0, threads=1)[0], run(workload, 1, threads=1)[0]
        report("step on a TorchTrainer worker, all CPUs", median(on_ray), median(alone + again), "s", "target <= 1.02")
        report("step on a TorchTrainer worker, one CPU", median(with_ray), median(one_thread), "s", "target <= 1.02")
        print(f"command to first step, workers: 0: {min(start, start_again):.1f} s (target <= 8)")
        print(
            f"command to first step, one TorchTrainer worker: {start_on_ray:.1f} s, an empty TorchTrainer's start "
            f"{empty:.1f} s, {start_on_ray - empty:.1f} s more (target <= 4)"
        )


if __name__ == "__main__":
    main()
