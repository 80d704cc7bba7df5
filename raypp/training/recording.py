"""The records of a run while it trains: metrics.jsonl, W&B and figures, on local and remote storage."""

from __future__ import annotations

import contextlib
import logging
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from raypp.config import Experiment
from raypp.errors import Interrupted
from raypp.events import Message
from raypp.pruning.weight_statistics import STATISTICS, WeightStatistics
from raypp.storage import Location
from raypp.training.metrics_file import MetricsFile
from raypp.training.parameter_statistics import parameter_histograms, parameter_statistics
from raypp.training.tracking import NullTracker, Tracker, make_tracker, upload_recorded
from raypp.training.worker import Worker

logger = logging.getLogger("raypp")


def moved(command: str, here: Path, there: Location) -> str:
    """Rewrites a command on a local folder for the same folder in a bucket, from which it must be downloaded first.

    Args:
        command: names exactly one folder below `here`.
        here: local folder.
        there: location of the same folder in the bucket.
    """
    words = [Path(word) for word in shlex.split(command)]
    (folder,) = (word for word in words if word.is_relative_to(here))
    new = [folder.name if word == folder else str(word) for word in words]
    return f"{shlex.join(new)}  # download it first from {there / folder.relative_to(here).as_posix()}"


class Recorder:
    """Writes metrics.jsonl, W&B and figures of one run. Does nothing on workers other than the first.

    Use it as a context manager: W&B records a run that raises as failed, and a run that a sweep stops early as
    finished.
    """

    def __init__(self, run: Location, experiment: Experiment, worker: Worker, group: str | None) -> None:
        self.run, self.experiment, self.worker = run, experiment, worker
        self.group = group or experiment.name
        self.statistics: WeightStatistics | None = None
        """Statistics of the final weights, for the figures; None for a dense run."""
        self.tracker: Tracker = NullTracker()
        self.folder = Path(run.path)  # for a remote run, `__enter__` replaces it by a local scratch folder
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
                # Nothing failed if the sweep stopped the trial early: then Ray Tune ends a trial's own process by
                # SystemExit(0), and a trial's workers are asked to stop.
                stopped = (isinstance(error, SystemExit) and error.code == 0) or (
                    isinstance(error, Interrupted) and self.worker.stops_for_good()
                )
                if stopped:
                    self.tracker.summary({"stopped_early": True})
                self.tracker.finish(0 if stopped else 1)
                try:
                    self.save()
                except OSError as error:  # the user must see the error that ended the run, and not this one
                    logger.warning("the last metrics cannot be written to %s: %s", self.run, error)

    def start(self, resume_step: int | None) -> None:
        """Starts or resumes recording.

        Args:
            resume_step: log lines of later steps are removed, because those steps are run and logged again; None for a
                new run.
        """
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
        """The last values of the metrics with this prefix that are in the log after `start`; empty on workers other
        than the first."""
        records = self.metrics.records() if self.worker.is_first else []
        return {key: value for record in records for key, value in record.items() if key.startswith(prefix)}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs metrics to metrics.jsonl and W&B."""
        if self.worker.is_first:
            self.metrics.log(step, metrics)
            self.tracker.log(step, metrics)

    def log_parameters(self, step: int, model: nn.Module) -> None:
        """Logs statistics of every parameter and its gradient and, to W&B, their histograms."""
        if not self.worker.is_first:
            return
        self.log(step, parameter_statistics(model.named_parameters()))
        if self.experiment.tracking.wandb != "off":
            self.tracker.log_histograms(step, parameter_histograms(model.named_parameters()))

    def save_metrics(self) -> None:
        """Makes the log as durable as the checkpoint that follows: syncs it to disk, or uploads it for a remote run.
        May be called from any thread."""
        if not self.worker.is_first:
            return
        if self.run.is_local:
            self.metrics.sync()
        else:
            (self.run / "metrics.jsonl").write_bytes(self.metrics.path.read_bytes())

    def save(self) -> None:
        """Uploads all records of a remote run. Must be called after the tracker has finished."""
        if self.worker.is_first and not self.run.is_local:
            upload_recorded(self.folder, self.run)

    def finish(self, result: Mapping[str, Any]) -> str | None:
        """Draws the figures and closes W&B. Must be called on the first worker only.

        Returns:
            The command that uploads a run that W&B recorded offline; None if there is nothing to upload.
        """
        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        if self.statistics is not None:
            self.statistics.save(Location.of(folder / STATISTICS))
        self._draw(folder)
        self.tracker.summary(result["metrics"] | result["perf"] | _flat_density(result))
        self.tracker.finish(0)
        self.save()
        command = self.tracker.sync_command()
        # The files of a remote run are in its remote folder now, so the user must download them first.
        return command if command is None or self.run.is_local else moved(command, self.folder, self.run)

    def _draw(self, folder: Path) -> None:
        # Imported here, because importing matplotlib is slow and would delay the first step.
        from raypp.figures.run import FIGURES, MAIN_FIGURES, run_figures

        names = MAIN_FIGURES if self.experiment.tracking.figures == "main" else FIGURES
        figures = {}
        for name, figure in run_figures(self.metrics.records(), self.statistics, names).items():
            figures[name] = folder / f"{name}.png"
            figure.save(figures[name])
        self.tracker.log_figures(figures)


def _flat_density(result: Mapping[str, Any]) -> dict[str, float]:
    return {f"prune/{name}_density": value for name, value in (result["density"] or {}).items()}
