"""Early stopping behind Ray Tune's scheduler interface. `raypp.sweeps.stopping` makes the decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raypp.cluster.trial_report import TrialReport, last_report
from raypp.sweeps.stopping import Halving, Judgement


class StratifiedHalvingScheduler(FIFOScheduler):  # type: ignore[misc]
    """Asynchronous successive halving among the trials of each stratum.

    Args:
        on_stop: is called with every judgement that stops a trial, before Tune stops it.
    """

    def __init__(self, halving: Halving, on_stop: Callable[[Judgement], None]) -> None:
        super().__init__()
        self.halving = halving
        self.on_stop = on_stop

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        report = TrialReport.of(result)
        if report.failed is not None:
            self.halving.forget(report.trial)
        if report.metric is None:
            return str(TrialScheduler.CONTINUE)
        judgement = self.halving.judge(report.trial, report.stratum, report.fraction, report.metric)
        if judgement is None or not judgement.stops:
            return str(TrialScheduler.CONTINUE)
        self.on_stop(judgement)
        return str(TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        # A trial that is retried resumes: it is not judged again at the rungs that it has passed.
        if (report := last_report(trial)) is not None and not trial.should_recover():
            self.halving.forget(report.trial)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its scheduler, but a sweep resumes from its run folders."""
        return {}
