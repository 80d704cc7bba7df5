"""Settings of a sweep: its axes, its search and its early stopping."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from raypp.config.base import Settings


class Axis(Settings):
    """The values that a sweep tries for one field, as exactly one of: a list (choice, grid), or a range to draw from
    (uniform, loguniform, quniform, randint). A value that is a mapping replaces the whole section: the experiment's own
    settings of that section are dropped."""

    choice: Annotated[tuple[Any, ...], Strict(False), Field(min_length=1)] | None = None
    """List of values. `search: grid` tries all of them; `random` and `optuna` draw one for each point."""
    grid: Annotated[tuple[Any, ...], Strict(False), Field(min_length=1)] | None = None
    """List of values that every search tries in full: each point that is drawn for the other axes is tried with each of
    these values."""
    uniform: Annotated[tuple[float, float], Strict(False)] | None = None
    """[low, high]: a number between low and high."""
    loguniform: Annotated[tuple[float, float], Strict(False)] | None = None
    """[low, high], both above 0: a number whose logarithm is uniform, so every order of magnitude is equally likely."""
    quniform: Annotated[tuple[float, float, float], Strict(False)] | None = None
    """[low, high, step]: a multiple of step from low to high, which must be multiples, too."""
    randint: Annotated[tuple[int, int], Strict(False)] | None = None
    """[low, high]: an integer from low to high, both included."""
    when: dict[str, Any] = Field(default_factory=dict)
    """The condition under which a point has this axis: field paths, and the value or list of values that each field
    must have, such as `{pruning.method: topk}`. Points that differ only in an axis whose condition does not hold are
    the same point."""

    @property
    def kind(self) -> str:
        """The name of the setting that gives the values."""
        return next(name for name in AXIS_KINDS if getattr(self, name) is not None)

    @property
    def values(self) -> tuple[Any, ...] | None:
        """The listed values; None for a range."""
        return self.choice if self.choice is not None else self.grid

    @model_validator(mode="after")
    def _one_way_that_makes_sense(self) -> Axis:
        given = [name for name in AXIS_KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(AXIS_KINDS)}, got {', '.join(given) or 'none'}")
        if self.values is None:
            low, high, *step = getattr(self, self.kind)
            if not low < high or (self.kind == "loguniform" and low <= 0) or (step and step[0] <= 0):
                needs = {"loguniform": ", and both above 0", "quniform": ", and the step above 0"}.get(self.kind, "")
                raise ValueError(f"{self.kind}: low must be below high{needs}, got {[low, high, *step]}")
            if step and any(abs(end / step[0] - round(end / step[0])) > 1e-9 for end in (low, high)):
                raise ValueError(f"quniform: low and high must be multiples of the step, got {[low, high, *step]}")
        return self


AXIS_KINDS = ("choice", "grid", "uniform", "loguniform", "quniform", "randint")


class StoppingSettings(Settings):
    """Early stopping by asynchronous successive halving (ASHA, Li et al. 2020) within each stratum. A stratum is the
    trials of the same requested density or, where method, threshold and lambda decide the density, the trials that have
    these in common. The best trial of a stratum is never stopped."""

    grace_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """The first rung: the fraction of its steps that every trial completes. The next rungs are at this fraction times
    reduction_factor, times its square, and so on. A trial is judged at its first evaluation at or after a rung."""
    reduction_factor: Annotated[float, Field(gt=1)] = 2.0
    """At each rung, the best 1/reduction_factor of the stratum's trials that have reached it continue."""


class SweepSettings(Settings):
    """A sweep: many trials of one experiment, each an ordinary run, and their Pareto front. A point is one combination
    of a variant and of values in the space; a trial is one run of a point."""

    space: dict[str, Axis] = Field(default_factory=dict)
    """The axes of the sweep, by field path, such as `pruning.final_density`. An axis may also be a whole section, such
    as `pruning`, next to axes of that section's fields. Required without variants."""
    variants: Annotated[tuple[dict[str, Any], ...], Strict(False), Field(min_length=1)] | None = None
    """Variants of the experiment, as for a study of one factor at a time. Each is a mapping of field paths to values:
    `{}` is the experiment itself, `{train.dropout: 0.1}` changes one setting, and a value that is a mapping replaces
    the whole section. Each variant is tried with all combinations of the axes. Only for `search: grid`."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """How points are chosen. grid: all combinations of the listed values; random: drawn at random; optuna: drawn by
    Optuna's multi-objective TPE, which learns from finished trials where the metric is high and the density low. Ranges
    require random or optuna. With optuna, axes of task, data, student and teacher must be given as `grid`."""
    trials: Annotated[int, Field(ge=1)] | None = None
    """Number of points, not of runs, that random and optuna draw. Each point has `seeds` runs, so with `seeds: 2` there
    are twice as many runs as points. With axes given as `grid`, this many points are drawn for each combination of
    their values. Required for random and optuna; not allowed with `search: grid`, which has as many points as there are
    combinations."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """Number of runs of each point. It is a count, not a seed: the runs of a point are trained with train.seed,
    train.seed + 1, and so on."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the search: it decides which points random and optuna draw. Training uses train.seed instead (and
    seeds)."""
    stopping: StoppingSettings | None = None
    """When to stop trials early that fall behind others of their requested density; null: every trial runs to its end.
    The seeds of a point compete with each other, too; the point's mean is over the trials that finished. Densities,
    thresholds and lambdas must then be values that several trials can share, so a uniform or loguniform range of them
    is refused."""
    concurrent: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of trials that run at a time; null: as many as the cluster has resources for, with the minimum of
    workers each. Required with cluster.autoscaling."""

    @model_validator(mode="after")
    def _points_are_countable(self) -> SweepSettings:
        if not self.space and self.variants is None:
            raise ValueError("give axes (sweep.space), variants (sweep.variants) or both; both are missing")
        if self.search != "grid" and self.variants is not None:
            raise ValueError(f"variants is for search: grid, got search: {self.search}; give them as axes")
        ranges = [name for name, axis in self.space.items() if axis.values is None]
        if self.search == "grid" and ranges:
            raise ValueError(
                f"search: grid needs listed values, but {', '.join(ranges)} is a range; use search: random or optuna"
            )
        if self.search == "grid" and self.trials is not None:
            raise ValueError(f"trials is for search: random and optuna, got {self.trials} with search: grid")
        if self.search != "grid" and self.trials is None:
            raise ValueError(f"search: {self.search} needs trials, the number of points to draw")
        if self.search == "optuna" and all(axis.grid is not None for axis in self.space.values()):
            raise ValueError("search: optuna has nothing to draw: every axis is given as grid; use search: grid")
        return self
