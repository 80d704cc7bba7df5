"""Settings of a sweep: its axes, its search, early stopping."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from raypp.config.base import Settings


class Axis(Settings):
    """The values that a sweep tries for one field: a list, or a range to draw from. A mapping is a whole section: what
    the experiment says there is not kept beside it."""

    choice: Annotated[tuple[Any, ...], Strict(False), Field(min_length=1)] | None = None
    """Values; a grid search takes each of them, the others draw one of them at a time."""
    grid: Annotated[tuple[Any, ...], Strict(False), Field(min_length=1)] | None = None
    """Values that every search takes in full: whatever it draws for the other axes is tried with each of them."""
    uniform: Annotated[tuple[float, float], Strict(False)] | None = None
    """[low, high]: any number between."""
    loguniform: Annotated[tuple[float, float], Strict(False)] | None = None
    """[low, high], both above 0: any number between, each order of magnitude as likely."""
    quniform: Annotated[tuple[float, float, float], Strict(False)] | None = None
    """[low, high, step]: a multiple of the step between, which both ends are."""
    randint: Annotated[tuple[int, int], Strict(False)] | None = None
    """[low, high]: an integer between, both included."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Field paths and the value (or list of values) that each must have for this axis to matter: `{pruning.method:
    topk}`. Where it does not, points that differ in it alone are one."""

    @property
    def kind(self) -> str:
        """The one way in which its values are given."""
        return next(name for name in AXIS_KINDS if getattr(self, name) is not None)

    @property
    def values(self) -> tuple[Any, ...] | None:
        """Its values, where they are listed; None for a range."""
        return self.choice if self.choice is not None else self.grid

    @model_validator(mode="after")
    def _one_way_that_makes_sense(self) -> Axis:
        given = [name for name in AXIS_KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(AXIS_KINDS)}, got {', '.join(given) or 'none'}")
        if self.values is None:
            low, high, *step = getattr(self, self.kind)
            if not low < high or (self.kind == "loguniform" and low <= 0) or (step and step[0] <= 0):
                raise ValueError(f"{self.kind}: low must be below high, and both fit it, got {[low, high, *step]}")
            if step and any(abs(end / step[0] - round(end / step[0])) > 1e-9 for end in (low, high)):
                raise ValueError(f"quniform: low and high must be multiples of the step, got {[low, high, *step]}")
        return self


AXIS_KINDS = ("choice", "grid", "uniform", "loguniform", "quniform", "randint")


class StoppingSettings(Settings):
    """Asynchronous successive halving (Li et al. 2020, ASHA) inside each stratum: trials of one requested density, or
    of one method, threshold and lambda where these decide it. The best of a stratum is never stopped."""

    grace_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Part of its steps that every trial has: the first rung. A trial's rung counts at its first evaluation from there
    on; the next rungs are at this times reduction_factor, its square, … of the steps."""
    reduction_factor: Annotated[float, Field(gt=1)] = 2.0
    """At each rung the best 1/reduction_factor of those of the stratum that have reached it go on."""


class SweepSettings(Settings):
    """Many trials of one experiment, each a run of its own, and the front of the best of them."""

    space: Annotated[dict[str, Axis], Field(min_length=1)]
    """What is tried, by field path, such as `pruning.final_density`. An axis may also be a whole section, such as
    `pruning`, beside axes of its fields."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination of the listed values; random: so many points drawn; optuna: drawn by Optuna's
    multi-objective TPE, which learns from the finished trials where the metric is high and the density low. Ranges
    are for random and optuna; of task, data, student and teacher optuna takes values given as grid alone."""
    trials: Annotated[int, Field(ge=1)] | None = None
    """Points that random and optuna draw, each for every value of the axes given as grid; a grid has as many as it
    has."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """Runs of each point, with training seeds one apart."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of what random and optuna draw."""
    stopping: StoppingSettings | None = None
    """When to stop a trial that others of its density are ahead of; null: every trial runs to its end. Seeds of a point
    compete, too: its mean is over those that finished. Densities, thresholds and lambdas must be values that several
    trials can have, so no uniform or loguniform range."""
    concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials at a time; null: as many as the cluster has room for, with the fewest workers each. With
    cluster.autoscaling it must be given."""

    @model_validator(mode="after")
    def _points_are_countable(self) -> SweepSettings:
        ranges = [name for name, axis in self.space.items() if axis.values is None]
        if self.search == "grid" and ranges:
            raise ValueError(
                f"a grid takes listed values only, but {', '.join(ranges)} is a range; use search: random or optuna"
            )
        if self.search == "grid" and self.trials is not None:
            raise ValueError(f"trials belongs to search: random and optuna, got {self.trials} with a grid")
        if self.search != "grid" and self.trials is None:
            raise ValueError(f"search: {self.search} needs trials, the number of points")
        if self.search == "optuna" and all(axis.grid is not None for axis in self.space.values()):
            raise ValueError("search: optuna has nothing to draw, every axis is given as grid; use search: grid")
        return self
