"""What a run remembers of itself while it trains: the log's window, the progress a checkpoint carries, the files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raypp.config import DensitySchedule, Experiment, PruningSettings
from raypp.figures import run_figures, save
from raypp.pruning.density import LayerDensity
from raypp.pruning.schedule import SchedulePoint
from raypp.storage import Location
from raypp.tracking import MetricsFile, Tracker, make_tracker
from raypp.worker import Worker


@dataclass
class Window:
    """Sums since the last line of the log."""

    terms: tuple[str, ...]
    sums: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    steps: int = 0
    norms: float = 0.0
    tokens: int = 0
    computed_tokens: int = 0

    def add(self, sums: list[float], rows: int, norm: float) -> None:
        """Adds one step: the sum of each term, then real and computed tokens; rows; the gradient norm before clipping."""
        *terms, tokens, computed = sums
        for name, value in zip(self.terms, terms, strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.rows += rows
        self.steps += 1
        self.norms += norm
        self.tokens += int(tokens)
        self.computed_tokens += int(computed)

    def drain(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Means over the window, which starts anew."""
        means = {f"train/{name}": value / self.rows for name, value in self.sums.items()}
        means["train/loss"] = sum(weights[name] * means[f"train/{name}"] for name in self.terms)
        means["train/gradient_norm"] = self.norms / self.steps
        means["perf/padding_efficiency"] = self.tokens / max(1, self.computed_tokens)
        self.__init__(self.terms)  # type: ignore[misc]
        return means


@dataclass
class Progress:
    """What a checkpoint carries besides the model."""

    steps: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Wall-clock time of all sessions that the model has seen, in seconds."""
    tokens: int = 0
    """Real tokens trained on."""
    best: dict[str, float] | None = None
    """Step and headline value of the best evaluation at the final density; the first of equals."""

    def note(self, step: int, value: float, eligible: bool) -> None:
        """Takes an evaluation into account."""
        if eligible and (self.best is None or value > self.best["value"]):
            self.best = {"step": step, "value": value}


def schedule_metrics(settings: PruningSettings | None, point: SchedulePoint) -> dict[str, float]:
    """What the schedule asks for at a step: the density or the threshold, and the penalty's lambda."""
    metrics = {}
    if isinstance(settings, DensitySchedule) and point.value is not None:
        metrics["prune/requested_density"] = point.value
    elif point.value is not None:
        metrics["prune/threshold"] = point.value
    if getattr(settings, "penalty", None) is not None:
        metrics["prune/lambda"] = point.penalty_lambda
    return metrics


class Recorder:
    """metrics.jsonl, W&B and figures of one run; on any worker but the first it does nothing."""

    def __init__(self, run: Location, folder: Path, metrics: MetricsFile, tracker: Tracker) -> None:
        self.run, self.folder, self.metrics, self.tracker = run, folder, metrics, tracker

    @classmethod
    def open(cls, run: Location, experiment: Experiment, worker: Worker, resume_step: int | None) -> Recorder:
        """Starts recording, or goes on: what was logged after `resume_step` is cut, since it will be logged again."""
        if not worker.is_first:
            return SilentRecorder()
        folder = Path(run.path) if run.is_local else Path(tempfile.mkdtemp(prefix="raypp-"))
        folder.mkdir(parents=True, exist_ok=True)
        metrics = MetricsFile(folder / "metrics.jsonl")
        if not run.is_local and (run / "metrics.jsonl").is_file():
            metrics.path.write_bytes((run / "metrics.jsonl").read_bytes())
        metrics.cut(resume_step or 0)
        tracker = make_tracker(
            experiment.tracking,
            run_folder=folder,
            run_name=f"{experiment.name}/{run.name}",
            run_id=run.name,
            group=experiment.name,
            config=experiment.model_dump(mode="json"),
            resume_step=resume_step,
            rank=worker.rank,
        )
        return cls(run, folder, metrics, tracker)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, one step of W&B."""
        self.metrics.log(step, metrics)
        self.tracker.log(step, dict(metrics))

    def save(self) -> None:
        """Uploads metrics.jsonl where the run's folder is not local."""
        if not self.run.is_local:
            (self.run / "metrics.jsonl").write_bytes(self.metrics.path.read_bytes())

    def finish(self, result: Mapping[str, Any], layers: Sequence[LayerDensity]) -> str | None:
        """Draws the figures and closes W&B; returns the command that syncs an offline run."""
        figures = {}
        (self.folder / "figures").mkdir(exist_ok=True)
        for name, figure in run_figures(self.metrics.records(), layers).items():
            figures[name] = self.folder / "figures" / f"{name}.png"
            save(figure, figures[name])
        self.tracker.log_figures(figures)
        self.tracker.summary({key: value for key, value in result["metrics"].items()} | _flat_density(result))
        self.tracker.finish(0)
        self.save()
        if not self.run.is_local:
            (self.run / "figures").upload(self.folder / "figures")
        return self.tracker.sync_command()


class SilentRecorder(Recorder):
    """What the other workers have."""

    def __init__(self) -> None:
        pass

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def save(self) -> None:
        pass

    def finish(self, result: Mapping[str, Any], layers: Sequence[LayerDensity]) -> str | None:
        return None


def _flat_density(result: Mapping[str, Any]) -> dict[str, float]:
    return {f"prune/{name}_density": value for name, value in (result["density"] or {}).items()}
