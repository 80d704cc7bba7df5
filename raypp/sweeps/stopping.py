"""Early stopping of a sweep's trials: asynchronous successive halving within each stratum of requested density.

Accuracy falls with density, so successive halving over all trials would stop every sparse trial, and the front would
lack its most interesting part. Here a trial is only compared with trials of its own stratum at the same fraction of
their steps. The best trial of a stratum always continues, so every stratum has a finished trial. The halving is
asynchronous (ASHA: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning"): when a trial reaches a
rung, it is judged against the trials that reached the rung before it, and no trial waits for another.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from raypp.config import Experiment, StoppingSettings


def stratum_of(experiment: Experiment) -> str:
    """The stratum in which a trial competes: its requested density, or, if the method's threshold and lambda determine
    the density, its method, threshold and lambda."""
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
    """The fractions of its steps at which a trial is judged, ascending."""
    rungs = [settings.grace_fraction]
    while (following := rungs[-1] * settings.reduction_factor) < 1:
        rungs.append(following)
    return tuple(rungs)


@dataclass(frozen=True)
class Judgement:
    """The decision on a trial at a rung."""

    trial: str
    stratum: str
    rung: float
    """The rung, as a fraction of the steps."""
    fraction: float
    """The fraction of the steps at the evaluation."""
    metric: float
    cut: float
    """The metric that was needed to continue."""
    compared: int
    """Number of trials of its stratum that have reached this rung, itself included."""
    lower_is_better: bool = False
    """Whether a lower metric is better."""

    @property
    def stops(self) -> bool:
        return self.metric > self.cut if self.lower_is_better else self.metric < self.cut

    def __str__(self) -> str:
        return (
            f"at {self.rung:.0%} of its steps its metric was {self.metric:.4f}; {self.cut:.4f} was needed to be among "
            f"the best of {self.compared} with {self.stratum}"
        )


class Halving:
    """The rungs of all strata, and the metric of each trial that has reached them."""

    def __init__(self, settings: StoppingSettings, lower_is_better: bool = False) -> None:
        self.settings, self.lower_is_better = settings, lower_is_better
        self.rungs = rungs_of(settings)
        self._metrics: dict[tuple[str, float], dict[str, float]] = defaultdict(dict)

    def judge(self, trial: str, stratum: str, fraction: float, metric: float) -> Judgement | None:
        """Records an evaluation and judges the trial at the highest rung that it has reached. None if the trial has
        reached no rung, has reached its end, or was judged at this rung before."""
        reached = [rung for rung in self.rungs if rung <= fraction + 1e-9]
        if not reached or fraction >= 1 or trial in self._metrics[stratum, reached[-1]]:
            return None
        metrics = self._metrics[stratum, reached[-1]]
        metrics[trial] = metric
        keep = math.ceil(len(metrics) / self.settings.reduction_factor)
        cut = sorted(metrics.values(), reverse=not self.lower_is_better)[keep - 1]
        return Judgement(trial, stratum, reached[-1], fraction, metric, cut, len(metrics), self.lower_is_better)

    def note(self, trial: str, stratum: str, evaluations: Iterable[tuple[float, float]]) -> None:
        """Records the earlier evaluations of a trial, as (fraction, metric) pairs in order."""
        for fraction, metric in evaluations:
            self.judge(trial, stratum, fraction, metric)

    def forget(self, trial: str) -> None:
        """Removes a trial that failed, so that no other trial is compared with it."""
        for metrics in self._metrics.values():
            metrics.pop(trial, None)
