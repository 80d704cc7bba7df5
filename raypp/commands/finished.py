"""The folder of a finished run or sweep, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypp.errors import ConfigError
from raypp.figures import Picture
from raypp.figures.run import overview_figure, run_figures
from raypp.pruning.weight_statistics import STATISTICS, WeightStatistics
from raypp.runs import recorded_settings
from raypp.storage import Location
from raypp.sweeps.front import Front
from raypp.sweeps.front_figure import front_figure
from raypp.sweeps.result import finished_points
from raypp.sweeps.space import changed_fields, varies
from raypp.training.metrics_file import read_records


@dataclass(frozen=True)
class FinishedFolder:
    """The folder of a finished run or sweep, with the content of its files."""

    folder: Location
    settings: Mapping[str, Any]
    """The resolved experiment."""
    versions: Mapping[str, str]
    """The versions with which it was started."""
    result: Mapping[str, Any]
    """The content of its result.json."""

    @property
    def is_sweep(self) -> bool:
        return self.settings["sweep"] is not None

    @property
    def title(self) -> str:
        return f"{self.result['name']} / {self.folder.name}"

    @classmethod
    def of(cls, folder: Location) -> FinishedFolder:
        """Opens a folder; ConfigError if it is not that of a finished run or sweep."""
        if not (folder / "experiment.yaml").is_file():
            sweeps = [str(child) for child in folder.children() if child.name.startswith("sweep-")]
            hint = f"; it contains {', '.join(sweeps)}" if sweeps else ""
            raise ConfigError(
                f"RUN_OR_SWEEP: {folder} is not the folder of a run or sweep: it has no experiment.yaml{hint}"
            )
        settings, provenance = recorded_settings(folder)
        if not (folder / "result.json").is_file():
            what, verb = ("run", "train") if settings["sweep"] is None else ("sweep", "sweep")
            raise ConfigError(f"RUN_OR_SWEEP: the {what} {folder} is not finished; `raypp {verb}` resumes it")
        return cls(folder, settings, provenance["versions"], (folder / "result.json").read_json())

    def varies(self, field: str) -> bool:
        """Whether the trials of a sweep differ in a field, given by its path."""
        return self.is_sweep and varies(field, changed_fields(self.settings["sweep"]))

    def front(self, name: str | None = None) -> Front:
        """A sweep's front, with published results for its task and encoder.

        Args:
            name: its name in the figure; None: the experiment's name.
        """
        return Front.of(self.settings, name or self.result["name"], finished_points(self.result), self.result)

    def figures(self) -> dict[str, Picture]:
        """All figures by name: `front` for a sweep; `overview` and those of `run_figures` for a run."""
        if self.is_sweep:
            return {"front": front_figure([self.front()], self.result["headline"])}
        records = read_records(self.folder / "metrics.jsonl")
        file = self.folder / "figures" / STATISTICS
        statistics = WeightStatistics.load(file) if file.is_file() else None
        return {"overview": overview_figure(records), **run_figures(records, statistics)}


def draw(reference: str | Path) -> dict[str, Picture]:
    """All figures of a finished run or sweep (path or URI), by name; see `FinishedFolder.figures`."""
    return FinishedFolder.of(Location.of(reference, "RUN_OR_SWEEP")).figures()
