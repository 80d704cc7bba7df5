"""What is left of a run or sweep that has ended: its folder, opened; and every figure of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypp.errors import ConfigError
from raypp.figures import Picture
from raypp.figures.front import Front, front_figure
from raypp.figures.run import overview_figure, run_figures
from raypp.pruning.weight_statistics import STATISTICS, WeightStatistics
from raypp.runs import recorded_settings
from raypp.storage import Location
from raypp.sweeps.published import published_curves, published_student
from raypp.sweeps.result import finished_points
from raypp.sweeps.space import varies
from raypp.training.metrics_file import read_records


@dataclass(frozen=True)
class Finished:
    """The folder of a run or sweep that has ended."""

    folder: Location
    settings: Mapping[str, Any]
    """The resolved experiment."""
    versions: Mapping[str, str]
    """It was started with."""
    result: Mapping[str, Any]
    """The content of its result.json."""

    @property
    def is_sweep(self) -> bool:
        return self.settings["sweep"] is not None

    @property
    def title(self) -> str:
        return f"{self.result['name']} / {self.folder.name}"

    @classmethod
    def of(cls, folder: Location) -> Finished:
        """Opens a folder; ConfigError if it holds no run and no sweep, or an unfinished one."""
        if not (folder / "experiment.yaml").is_file():
            sweeps = [str(child) for child in folder.children() if child.name.startswith("sweep-")]
            hint = f"; it holds {', '.join(sweeps)}" if sweeps else ""
            raise ConfigError(f"RUN_OR_SWEEP: {folder} is no run's or sweep's folder: it has no experiment.yaml{hint}")
        settings, provenance = recorded_settings(folder)
        if not (folder / "result.json").is_file():
            what, verb = ("run", "train") if settings["sweep"] is None else ("sweep", "sweep")
            raise ConfigError(f"RUN_OR_SWEEP: the {what} {folder} is not finished; `raypp {verb}` goes on with it")
        return cls(folder, settings, provenance["versions"], (folder / "result.json").read_json())

    def varies(self, field: str) -> bool:
        """Whether a sweep's trials have different values of a field (path)."""
        return self.is_sweep and varies(field, self.settings["sweep"]["space"])

    def front(self, name: str | None = None) -> Front:
        """A sweep's front, with what is published for its task and encoder.

        Args:
            name: what it is called in the figure; None: the experiment's name.
        """
        result, settings = self.result, self.settings
        student = published_student(settings)
        published = published_curves(result["task"], student, result["headline"])
        return Front(name or result["name"], finished_points(result), result["teacher"], published)

    def figures(self) -> dict[str, Picture]:
        """Every figure there is, by name: of a sweep `front`; of a run `overview` and those of `run_figures`."""
        if self.is_sweep:
            return {"front": front_figure([self.front()], self.result["headline"])}
        records = read_records(self.folder / "metrics.jsonl")
        file = self.folder / "figures" / STATISTICS
        statistics = WeightStatistics.load(file) if file.is_file() else None
        return {"overview": overview_figure(records), **run_figures(records, statistics)}


def draw(reference: str | Path) -> dict[str, Picture]:
    """Every figure of a finished run or sweep (path or URI), by name; see `Finished.figures`."""
    return Finished.of(Location.of(reference, "RUN_OR_SWEEP")).figures()
