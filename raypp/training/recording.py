"""What a run remembers of itself while it trains: the means of the log, a checkpoint's progress, the files."""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raypp.config import Experiment
from raypp.errors import Interrupted
from raypp.evaluation.direction import merit
from raypp.events import Message
from raypp.pruning.weight_statistics import STATISTICS, WeightStatistics
from raypp.storage import Location
from raypp.training.metrics_file import MetricsFile
from raypp.training.parameter_statistics import parameter_histograms, parameter_statistics
from raypp.training.tracking import NullTracker, Tracker, make_tracker, upload_recorded
from raypp.training.worker import Worker

logger = logging.getLogger("raypp")


@dataclass(frozen=True)
class StepSums:
    """What is added up over all workers in one step, beside the gradients: each adds its own part."""

    terms: tuple[float, ...]
    """Sum of each term of the loss over the global batch."""
    tokens: int
    """Real tokens."""
    computed_tokens: int
    """The same with padding."""
    interrupted: bool
    """Whether a worker is to leave: one is enough."""

    @staticmethod
    def pack(terms: Tensor, tokens: int, computed_tokens: int, interrupted: bool) -> Tensor:
        """One worker's part as numbers that can be added up: float64 [terms + 3], on the device of `terms`."""
        counted = torch.tensor([tokens, computed_tokens, interrupted], dtype=torch.float64)
        return torch.cat([terms, counted.to(terms.device)])

    @classmethod
    def unpack(cls, summed: Tensor) -> StepSums:
        """From the sum of all workers' parts; a GPU is waited for."""
        *terms, tokens, computed_tokens, interrupted = summed.tolist()
        return cls(tuple(terms), int(tokens), int(computed_tokens), bool(interrupted))


@dataclass
class LogMeans:
    """Sums since the last line of the log."""

    terms: tuple[str, ...]
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    skipped_steps: int = 0
    norms: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    computed_tokens: int = 0

    def add(self, sums: StepSums, counts: Mapping[str, int], norm: float, seconds: float) -> None:
        """Adds one step: its sums; the count of each term; the gradient norm before clipping; the time it took. Of a
        step that float16's scaler skipped, loss and norm mean nothing."""
        self.steps += 1
        self.seconds += seconds
        self.tokens += sums.tokens
        self.computed_tokens += sums.computed_tokens
        if not (math.isfinite(norm) and all(map(math.isfinite, sums.terms))):
            self.skipped_steps += 1
            return
        for name, value in zip(self.terms, sums.terms, strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + counts[name]
        self.norms += norm

    def values(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Means of the steps since the last line."""
        means = {"perf/step_seconds": self.seconds / self.steps}
        if self.skipped_steps:
            means["train/skipped_steps"] = self.skipped_steps
        if taken := self.steps - self.skipped_steps:
            means |= {f"train/{name}": value / self.counts[name] for name, value in self.sums.items()}
            means["train/loss"] = sum(weights[name] * means[f"train/{name}"] for name in self.terms)
            means["train/gradient_norm"] = self.norms / taken
        return means


@dataclass
class RunProgress:
    """What a checkpoint carries besides the model."""

    steps: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Wall-clock time of all sessions that the model has seen, in seconds."""
    device_seconds: float = 0.0
    """The same, times what trained in each session: GPUs, or threads of CPUs, over all workers."""
    tokens: int = 0
    """Real tokens trained on."""
    computed_tokens: int = 0
    """The same with padding."""
    best: dict[str, float] | None = None
    """Step and headline value of the best evaluation at the final density; the first of equals."""

    def note(self, step: int, headline: str, metrics: Mapping[str, float], eligible: bool) -> None:
        """Takes an evaluation into account."""
        value = metrics[headline]
        if eligible and (self.best is None or merit(headline, value) > merit(headline, self.best["value"])):
            self.best = {"step": step, "value": value}


def moved(command: str, here: Path, there: Location) -> str:
    """A command on a folder below one place, for the same folder where it is in a bucket: fetched first."""
    words = [Path(word) for word in shlex.split(command)]
    (folder,) = (word for word in words if word.is_relative_to(here))
    new = [folder.name if word == folder else str(word) for word in words]
    return f"{shlex.join(new)}  # fetched first from {there / folder.relative_to(here).as_posix()}"


class Recorder:
    """metrics.jsonl, W&B and figures of one run. Use as a context manager: what fails is recorded as failed, what a
    sweep stops early as finished.

    On any worker but the first it does nothing.
    """

    def __init__(self, run: Location, experiment: Experiment, worker: Worker, group: str | None) -> None:
        self.run, self.experiment, self.worker = run, experiment, worker
        self.group = group or experiment.name
        self.statistics: WeightStatistics | None = None
        """Of the weights at the end, for the figures; None of a dense run."""
        self.tracker: Tracker = NullTracker()
        self.folder = Path(run.path)  # of a remote run, a local one until what is recorded is uploaded
        self.metrics = MetricsFile(self.folder / "metrics.jsonl")
        self._scratch = contextlib.ExitStack()

    def __enter__(self) -> Recorder:
        if self.worker.is_first and not self.run.is_local:
            self.folder = Path(self._scratch.enter_context(tempfile.TemporaryDirectory(prefix="raypp-")))
            self.metrics = MetricsFile(self.folder / "metrics.jsonl")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        with self._scratch:
            self.metrics.close()
            if kind is not None:
                # By SystemExit(0) Ray Tune ends a trial that the sweep has stopped early, and its workers are asked to
                # leave: nothing failed.
                stopped = (isinstance(error, SystemExit) and error.code == 0) or (
                    isinstance(error, Interrupted) and self.worker.stops_for_good()
                )
                if stopped:
                    self.tracker.summary({"stopped_early": True})
                self.tracker.finish(0 if stopped else 1)
                try:
                    self.save()
                except OSError as error:  # what ends the run is what must be said
                    logger.warning("the last metrics cannot be written to %s: %s", self.run, error)

    def start(self, resume_step: int | None) -> None:
        """Starts recording, or goes on: what was logged after `resume_step` is cut, since it will be logged again."""
        if not self.worker.is_first:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.run.is_local and (self.run / "metrics.jsonl").is_file():
            self.metrics.path.write_bytes((self.run / "metrics.jsonl").read_bytes())
        self.metrics.cut(resume_step or 0)
        self.tracker = make_tracker(
            self.experiment.tracking,
            run_folder=self.folder,
            run_name=f"{self.experiment.name}/{self.run.name}",
            run_id=f"{self.experiment.name}-{self.run.name}",
            group=self.group,
            config=self.experiment.model_dump(mode="json"),
            resume_step=resume_step,
            warn=lambda text: self.worker.on_event(Message(text)),
        )

    def recorded(self, prefix: str) -> dict[str, float]:
        """The last values of the metrics of this prefix, after `start`; none on any worker but the first."""
        records = self.metrics.records() if self.worker.is_first else []
        return {key: value for record in records for key, value in record.items() if key.startswith(prefix)}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, one step of W&B."""
        if self.worker.is_first:
            self.metrics.log(step, metrics)
            self.tracker.log(step, metrics)

    def log_parameters(self, step: int, model: nn.Module) -> None:
        """Statistics of every parameter and gradient, and for W&B their histograms."""
        if not self.worker.is_first:
            return
        self.log(step, parameter_statistics(model.named_parameters()))
        if self.experiment.tracking.wandb != "off":
            self.tracker.log_histograms(step, parameter_histograms(model.named_parameters()))

    def save_metrics(self) -> None:
        """Has the log so far outlast the machine, as the checkpoint will that it goes with: on the disk of a local run,
        uploaded of another one. From any thread."""
        if not self.worker.is_first:
            return
        if self.run.is_local:
            self.metrics.sync()
        else:
            (self.run / "metrics.jsonl").write_bytes(self.metrics.path.read_bytes())

    def save(self) -> None:
        """Uploads all that is recorded, where the run's folder is not local; once the tracker has finished."""
        if self.worker.is_first and not self.run.is_local:
            upload_recorded(self.folder, self.run)

    def finish(self, result: Mapping[str, Any]) -> str | None:
        """Draws the figures and closes W&B; returns the command that syncs an offline run. On the first worker only."""
        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        if self.statistics is not None:
            self.statistics.save(Location.of(folder / STATISTICS))
        self._draw(folder)
        self.tracker.summary(result["metrics"] | result["perf"] | _flat_density(result))
        self.tracker.finish(0)
        self.save()
        command = self.tracker.sync_command()
        # Of a remote run, the files lie in the run's folder now, and are to be fetched from there first.
        return command if command is None or self.run.is_local else moved(command, self.folder, self.run)

    def _draw(self, folder: Path) -> None:
        # Only here: matplotlib takes its time to import, which the first step would wait for.
        from raypp.figures.run import FIGURES, MAIN_FIGURES, run_figures

        names = MAIN_FIGURES if self.experiment.tracking.figures == "main" else FIGURES
        figures = {}
        for name, figure in run_figures(self.metrics.records(), self.statistics, names).items():
            figures[name] = folder / f"{name}.png"
            figure.save(figures[name])
        self.tracker.log_figures(figures)


def _flat_density(result: Mapping[str, Any]) -> dict[str, float]:
    return {f"prune/{name}_density": value for name, value in (result["density"] or {}).items()}
