"""The cost of Ray, on the CPU.

1. The time of a step on one TorchTrainer worker, against the same loop without Ray, with as many threads as CPUs and
   with one thread.
2. The time from the start of a command to its first optimizer step, with everything in the store, and from its last
   step to its end, against a TorchTrainer with an empty loop. All are medians of three runs, made in turn.

The clock of a command starts at its first line, about 0.1 s after its process; that of the empty TorchTrainer starts
with its process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workload import ENCODER, Workload, median, report

ROUNDS = 3
STEPS = 100
LOG_EVERY = 5  # steps; their mean is one sample
WARM = 4  # first samples, which do not count
POLL_SECONDS = 0.02
SETTLE_SECONDS = 10.0  # before a command: Ray's processes of the last one take some seconds to end


@dataclass(frozen=True)
class Run:
    """One command, in a process of its own."""

    step_seconds: list[float]
    """Each is the mean of `LOG_EVERY` steps."""
    start: float
    """Seconds from the command to the first optimizer step."""
    end: float
    """Seconds from the last optimizer step to the end of the process."""


def run(workload: Workload, workers: int, threads: int | None = None) -> Run:
    """Runs `raypp train` with this number of TorchTrainer workers, or without Ray if 0."""
    files = {split: str(workload.scratch / f"{split}.parquet") for split in ("train", "dev")}
    settings: dict[str, Any] = {
        "name": "on-ray",
        "run": f"workers-{workers}",
        "data.source": {"kind": "files", **files},
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
    folder = workload.scratch / "runs/on-ray" / settings["run"]
    shutil.rmtree(folder, ignore_errors=True)
    overrides = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    command = [sys.executable, "-m", "raypp.cli", "train", str(experiment), *overrides]
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    time.sleep(SETTLE_SECONDS)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        last_step = _when_logged(folder / "metrics.jsonl", STEPS, process)
        _, errors = process.communicate()
        ended = time.time()
    if process.returncode:
        raise SystemExit(f"a command of the benchmark failed: {errors.decode()}")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "perf/step_seconds" in record]
    start = steps[0]["perf/seconds_to_first_step"]
    return Run([record["perf/step_seconds"] for record in steps[WARM:]], start, ended - last_step)


def _when_logged(metrics: Path, step: int, process: subprocess.Popen[bytes]) -> float:
    """The time at which a step is in the file, which is right after the step, or at which the process has ended."""
    while process.poll() is None:
        if metrics.is_file() and f'"step": {step},' in metrics.read_text():
            break
        time.sleep(POLL_SECONDS)
    return time.time()


EMPTY = """
import time
from raypp.cluster.session import Session
from raypp.config import ClusterSettings
with Session(ClusterSettings()) as session:
    session.start()
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    cpus = {{"CPU": session.cpus_per_worker()}}
    scaling = ScalingConfig(num_workers=1, resources_per_worker=cpus)
    trainer = TorchTrainer(lambda: time.time(), scaling_config=scaling, run_config=RunConfig(storage_path={storage!r}))
    print(trainer.fit().return_value)
"""


def empty_trainer(storage: Path) -> tuple[float, float]:
    """Seconds from the start of a process to the only line of a TorchTrainer's loop, and from there to the end of the
    process."""
    script = EMPTY.format(storage=str(storage))
    time.sleep(SETTLE_SECONDS)
    began = time.time()
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    ended = time.time()
    loop = float(done.stdout.split()[-1])
    return loop - began, ended - loop


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        workload = Workload("sst2", Path(scratch))
        run(workload, 0)  # fills the store
        alone, on_ray, empty = [], [], []
        for number in range(ROUNDS):
            alone.append(run(workload, 0))
            on_ray.append(run(workload, 1))
            empty.append(empty_trainer(workload.scratch / f"empty-{number}"))
        one_thread, with_ray = run(workload, 0, threads=1), run(workload, 1, threads=1)
    _report_steps("all CPUs", on_ray, alone)
    _report_steps("one CPU", [with_ray], [one_thread])
    starts, ends = ([each[place] for each in empty] for place in (0, 1))
    print(f"command to first step, workers: 0: {_said([each.start for each in alone])} (target <= 8 s)")
    _report_more("command to first step", [each.start for each in on_ray], starts, "target <= 4 s more")
    print(f"last step to the command's end, workers: 0: {_said([each.end for each in alone])} (no target)")
    _report_more("last step to the command's end", [each.end for each in on_ray], ends, "no target")


def _report_steps(cpus: str, on_ray: list[Run], alone: list[Run]) -> None:
    ours, reference = (median([s for each in runs for s in each.step_seconds]) for runs in (on_ray, alone))
    report(f"step on a TorchTrainer worker, {cpus}", ours, reference, "s", "target <= 1.02, reference workers: 0")


def _report_more(question: str, ours: list[float], reference: list[float], target: str) -> None:
    more = median(ours) - median(reference)
    print(
        f"{question}, one TorchTrainer worker: {_said(ours)}, reference an empty TorchTrainer's {_said(reference)}, "
        f"{more:.1f} s more, ratio {median(ours) / median(reference):.2f} ({target})"
    )


def _said(seconds: list[float]) -> str:
    return f"{median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"


if __name__ == "__main__":
    main()
