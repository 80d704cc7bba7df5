"""The records of a sweep in its own folder and in its run folders, from which an interrupted sweep resumes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from raypp.evaluation.evaluate import headline_key
from raypp.runs import finished_result
from raypp.storage import Location
from raypp.sweeps.plan import PlannedTrial
from raypp.sweeps.stopping import Judgement
from raypp.training.metrics_file import whole_records

logger = logging.getLogger("raypp")

RECORD_EVERY_SECONDS = 10.0
LEAVE_SECONDS = 5.0


class SweepClock:
    """The seconds that all commands of a sweep have taken together. As a context manager, it records them in the
    sweep's folder regularly, so a command that is killed loses only its last seconds."""

    def __init__(self, folder: Location, began: float) -> None:
        """
        Args:
            began: the start of this command, by `time.monotonic`.
        """
        self.file = folder / "seconds.json"
        self.earlier: float = self.file.read_json()["seconds"] if self.file.is_file() else 0.0
        self.began = began
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._record, name="spent", daemon=True)

    @property
    def seconds(self) -> float:
        """The seconds of this command and all commands before it."""
        return self.earlier + time.monotonic() - self.began

    def __enter__(self) -> SweepClock:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join(LEAVE_SECONDS)  # do not wait longer for failing storage: other code retries and reports it

    def _record(self) -> None:
        left = False
        while True:
            try:
                self.file.write_json({"seconds": self.seconds})
            except OSError as error:  # no failure: more important files are written there, too, and report it
                logger.warning("%s cannot be written: %s", self.file, error)
            if left:
                return
            left = self._left.wait(RECORD_EVERY_SECONDS)


def read_results(trials: Iterable[PlannedTrial]) -> dict[str, dict[str, Any]]:
    """The results of the finished trials (as in their result.json), by run name.

    Raises:
        ConfigError: a run folder contains a run with other settings.
    """
    found = {each.name: finished_result(each.plan.run, each.plan.digest) for each in trials}
    return {name: result for name, result in found.items() if result is not None}


def read_stopped(folder: Location) -> dict[str, Judgement]:
    """The judgements that stopped trials early, by run name."""
    files = (folder / "stopped").children()
    judgements = [Judgement(**file.read_json()) for file in files if file.name.endswith(".json")]
    return {judgement.trial: judgement for judgement in judgements}


def record_stopped(folder: Location, judgement: Judgement) -> None:
    """Records the judgement that stops a trial early."""
    (folder / "stopped").make_folder()
    (folder / "stopped" / f"{judgement.trial}.json").write_json(asdict(judgement))


def evaluations_of(trial: PlannedTrial) -> list[tuple[float, float, float]]:
    """The recorded evaluations of a trial, in order: fraction of its steps, headline metric and density."""
    return _evaluations(trial, whole_records(trial.plan.run / "metrics.jsonl"))


def judged_evaluations_of(trial: PlannedTrial) -> list[tuple[float, float, float]]:
    """Those evaluations of an unfinished trial that its command has certainly judged.

    A trial trains on when its evaluation has been judged. If its log ends with an evaluation, the command may have been
    killed before that.
    """
    records = whole_records(trial.plan.run / "metrics.jsonl")
    if records and headline_key(trial.plan.task) in records[-1]:
        records.pop()
    return _evaluations(trial, records)


def _evaluations(trial: PlannedTrial, records: Iterable[Mapping[str, Any]]) -> list[tuple[float, float, float]]:
    headline, total = headline_key(trial.plan.task), trial.plan.steps.total
    return [(each["step"] / total, each[headline], each["prune/density"]) for each in records if headline in each]
