"""Stopping early, as Ray Tune asks for it. What is decided is `raypp.sweeps.stopping`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raypp.sweeps.stopping import Halving, Judgement


class StratifiedHalvingScheduler(FIFOScheduler):  # type: ignore[misc]
    """Asynchronous successive halving among the trials of each stratum.

    Reads of a trial's reports `trial`, `stratum`, `fraction` (of its steps) and `metric`, which is
    None in a report that is no evaluation.

    Args:
        on_stop: called with every judgement that stops a trial, before Tune is told.
    """

    def __init__(self, halving: Halving, on_stop: Callable[[Judgement], None]) -> None:
        super().__init__()
        self.halving = halving
        self.on_stop = on_stop

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["failed"] is not None:
            self.halving.forget(result["trial"])
        if result["metric"] is None:
            return str(TrialScheduler.CONTINUE)
        judgement = self.halving.judge(result["trial"], result["stratum"], result["fraction"], result["metric"])
        if judgement is None or not judgement.stops:
            return str(TrialScheduler.CONTINUE)
        self.on_stop(judgement)
        return str(TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        # One that is tried again goes on where it was: at the rungs that it has passed it is not judged twice.
        if trial.last_result and not trial.should_recover():
            self.halving.forget(trial.last_result["trial"])

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its scheduler, but what a sweep goes on from are its run folders."""
        return {}
