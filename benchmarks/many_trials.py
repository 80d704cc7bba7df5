"""Whether the cost of a trial stays flat over a sweep of 300 trials: seconds per trial, and the memory of the command
and of all its processes. A trial makes two steps with a tiny encoder. The last 50 trials are compared with the second
50, because the first 50 start the processes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from transformers import BertConfig, BertModel
from workload import ENCODER, report

from raypp.models.loading import load_tokenizer, resolve_model

TRIALS = 300
GROUP = 50
SAMPLE_SECONDS = 5.0


@dataclass(frozen=True)
class Sample:
    """The state of the sweep at one moment."""

    seconds: float
    finished: int
    command: float
    """Memory of the command itself, in MiB."""
    all: float
    """Memory of the command and of all processes it started, in MiB; memory that several share counts once."""


def tiny_encoder(folder: Path) -> None:
    """Saves one layer of width 32 with random weights, and the tokenizer of the benchmarks' encoder."""
    tokenizer = load_tokenizer(resolve_model(ENCODER, None, "student.model"), "student.model")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def experiment(scratch: Path) -> Path:
    """The file of a random search over learning rates, in which every trial is a run of its own."""
    values = {
        "name": "many",
        "task": "sentiment",
        "data": {"source": {"kind": "synthetic", "train_rows": 64, "dev_rows": 32}, "max_length": 32},
        "student": {"model": str(scratch / "encoder")},
        "pruning": {"method": "magnitude", "final_density": 0.5, "initial_warmup": 0, "final_warmup": 1},
        "train": {"max_steps": 2, "batch_size": 8},
        "cluster": {"storage": str(scratch / "runs")},
        "tracking": {"wandb": "off"},
        "sweep": {
            "search": "random",
            "trials": TRIALS,
            "space": {"train.learning_rate": {"loguniform": [1e-6, 1e-3]}},
        },
    }
    path = scratch / "many.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def held(process: psutil.Process) -> float:
    """Memory of a process in MiB; memory that it shares with others counts in part."""
    try:
        return float(process.memory_full_info().pss) / 2**20
    except psutil.NoSuchProcess:
        return 0.0


def watch(command: subprocess.Popen[bytes], runs: Path) -> list[Sample]:
    """Takes samples until the command ends."""
    process, began, samples = psutil.Process(command.pid), time.monotonic(), []
    while command.poll() is None:
        finished = len(list(runs.glob("many/*/result.json")))
        own = held(process)
        everything = own + sum(held(child) for child in process.children(recursive=True))
        samples.append(Sample(time.monotonic() - began, finished, own, everything))
        time.sleep(SAMPLE_SECONDS)
    return samples


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
        folder = Path(scratch)
        tiny_encoder(folder / "encoder")
        words = [sys.executable, "-m", "raypp.cli", "sweep", str(experiment(folder))]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as command:
            samples = watch(command, folder / "runs")
        assert command.returncode == 0, f"the sweep ended with {command.returncode}"
    print("| trials finished | seconds since the one before | MiB of the command | MiB of all processes |")
    print("|---|---|---|---|")
    reached = [
        next((s for s in samples if s.finished >= count), samples[-1]) for count in range(GROUP, TRIALS + 1, GROUP)
    ]
    paces, before = [], samples[0]
    for sample in reached:
        paces.append((sample.seconds - before.seconds) / max(1, sample.finished - before.finished))
        print(
            f"| {sample.finished} | {sample.seconds - before.seconds:.0f} | {sample.command:.0f} | {sample.all:.0f} |"
        )
        before = sample
    report(f"a trial of {TRIALS}, the last {GROUP}", paces[-1], paces[1], "s", "flat")
    report("memory of the command then", reached[-1].command, reached[1].command, "MiB", "flat")


if __name__ == "__main__":
    main()
