"""Which trials of a sweep are not worth going on with: successive halving inside each stratum of requested density.

Accuracy falls with density, so a halving over all trials would stop every sparse one, and the front would end where it
begins to be of interest. Here a trial is compared with trials of its own stratum only, at the same part of its
schedule, and of the trials of a stratum that reached a rung the best always goes on: every stratum ends with a finished
trial. Asynchronous (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", ASHA): a trial is judged
when it reaches a rung, by those that were there before it; nobody waits.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from raypp.config import Experiment, StoppingSettings


def stratum_of(experiment: Experiment) -> str:
    """Whom a trial competes with: those of the same requested density, or, where nothing but a method's threshold and
    lambda decides the density, of the same method, threshold and lambda."""
    pruning = experiment.pruning
    if pruning is None:
        return "dense"
    for field in ("final_density", "target_density"):
        if (density := getattr(pruning, field, None)) is not None:
            return f"density {density:g}"
    parts: list[str] = [pruning.method]
    if (threshold := getattr(pruning, "final_threshold", None)) is not None:
        parts.append(f"threshold {threshold:g}")
    if (penalty := getattr(pruning, "penalty", None)) is not None:
        parts.append(f"lambda {penalty.final_lambda:g}")
    return " ".join(parts)


def rungs_of(settings: StoppingSettings) -> tuple[float, ...]:
    """Fractions of the steps at which a trial is judged, ascending."""
    rungs = [settings.grace_fraction]
    while (following := rungs[-1] * settings.reduction_factor) < 1:
        rungs.append(following)
    return tuple(rungs)


@dataclass(frozen=True)
class Judgement:
    """What was decided of a trial at a rung."""

    trial: str
    stratum: str
    rung: float
    """The rung, as a fraction of the steps."""
    fraction: float
    """Where its evaluation was."""
    metric: float
    cut: float
    """The metric that was needed to go on."""
    compared: int
    """Trials of its stratum at this rung so far, itself included."""
    lower_is_better: bool = False
    """Of the metric."""

    @property
    def stops(self) -> bool:
        return self.metric > self.cut if self.lower_is_better else self.metric < self.cut

    def __str__(self) -> str:
        return (
            f"at {self.rung:.0%} of its steps its metric was {self.metric:.4f}; {self.cut:.4f} was needed to be among "
            f"the best of {self.compared} with {self.stratum}"
        )


class Halving:
    """The rungs of all strata, and who reached them with which metric."""

    def __init__(self, settings: StoppingSettings, lower_is_better: bool = False) -> None:
        self.settings, self.lower_is_better = settings, lower_is_better
        self.rungs = rungs_of(settings)
        self._metrics: dict[tuple[str, float], dict[str, float]] = defaultdict(dict)

    def judge(self, trial: str, stratum: str, fraction: float, metric: float) -> Judgement | None:
        """Records an evaluation and judges the trial at the highest rung it has reached. None where there is nothing to
        judge: no rung is reached yet, the trial is at its end, or it was judged at this rung before."""
        reached = [rung for rung in self.rungs if rung <= fraction + 1e-9]
        if not reached or fraction >= 1 or trial in self._metrics[stratum, reached[-1]]:
            return None
        metrics = self._metrics[stratum, reached[-1]]
        metrics[trial] = metric
        keep = math.ceil(len(metrics) / self.settings.reduction_factor)
        cut = sorted(metrics.values(), reverse=not self.lower_is_better)[keep - 1]
        return Judgement(trial, stratum, reached[-1], fraction, metric, cut, len(metrics), self.lower_is_better)

    def note(self, trial: str, stratum: str, evaluations: Iterable[tuple[float, float]]) -> None:
        """Takes in the (fraction, metric) pairs that a trial had reached before, in order."""
        for fraction, metric in evaluations:
            self.judge(trial, stratum, fraction, metric)

    def forget(self, trial: str) -> None:
        """Takes out a trial that failed: nobody is measured by one that will not finish."""
        for metrics in self._metrics.values():
            metrics.pop(trial, None)
