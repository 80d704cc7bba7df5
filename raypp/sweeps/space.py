"""The space of a sweep: its axes, the axes that a point has, and the checks before anything starts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raypp.config import ALTERNATIVES, Axis, Experiment, SweepSettings, method_name
from raypp.config.fields import DISCRIMINATORS, PATH_FIELDS, is_setting
from raypp.errors import ConfigError
from raypp.load_config import as_yaml, expanded, with_changes, within

Changes = dict[str, Any]
UNCHANGED = "no change"  # the point that is the experiment itself
COMMON = ("name", "run", "cluster", "tracking", "sweep")  # sections that do not change a run's result
# Sections that determine what is built before the first trial, and the section by which the teacher is evaluated.
PREPARED = ("task", "data", "student", "teacher")
MEASURED = "evaluation.answers"
# Fields that determine the density; trials with the same values compete with each other.
LEVELS = ("final_density", "target_density", "final_threshold", "final_lambda")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    point: int
    """Number of its point; the trials of a point differ only in their seed."""
    changes: Mapping[str, Any]
    """The settings of its point, by field path."""
    experiment: Experiment
    """Its whole experiment, without the sweep."""


@dataclass(frozen=True)
class Space:
    """The axes of a sweep, and the experiment that they change."""

    experiment: Experiment
    """The experiment without the sweep."""
    settings: SweepSettings
    axes: Mapping[str, Axis]
    """The axes by field path, in the order in which values are applied: a section before its fields, a method or kind
    before the other fields of its section, and each axis after the axes that its `when` refers to."""

    @classmethod
    def of(cls, experiment: Experiment) -> Space:
        """The space of an experiment's sweep.

        Raises:
            ConfigError: lists every problem of the axes, including the ends of the ranges.
        """
        settings = experiment.sweep
        if settings is None:
            raise ConfigError(
                "sweep: is missing; give axes under sweep.space, for example "
                "{pruning.final_density: {choice: [0.3, 0.15, 0.1]}}, or sweep.variants"
            )
        problems = _problems_of_axes(settings, has_target=_has_target(experiment))
        if experiment.run is not None:
            problems.append(f"run: the trials of a sweep get their own names, got {experiment.run!r}; leave it out")
        if problems:
            raise ConfigError(problems)
        axes = _in_order(settings.space)
        space = cls(experiment.model_copy(update={"sweep": None}), settings, axes)
        if problems := list(space._problems_of_ends()):
            raise ConfigError(list(dict.fromkeys(problems)))
        return space

    def grid(self, *kinds: str) -> list[Changes]:
        """All combinations of the values of the axes of these kinds; a single empty one if there are no such axes."""
        lists = {name: axis.values or () for name, axis in self.axes.items() if axis.kind in kinds}
        return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]

    @property
    def variants(self) -> list[Changes]:
        """The variants, each with its values in the order in which they are applied; a single empty one if there are
        none."""
        return [{name: each[name] for name in sorted(each, key=_rank)} for each in self.settings.variants or ({},)]

    def point(self, choose: Callable[[str], Any], variant: Mapping[str, Any] | None = None) -> Changes:
        """A point: the values of a variant, and those of the axes whose `when` holds.

        Args:
            choose: returns the value of an axis, given its name; called in the order of the axes that the point has.
            variant: its values, which are applied before those of the axes.
        """
        point: Changes = dict(variant or {})
        for name in self.axes:
            if self._holds(name, point):
                point[name] = choose(name)
        return point

    def _holds(self, name: str, point: Changes) -> bool:
        """Whether the `when` of an axis holds, given the values of the axes before it."""
        when = self.axes[name].when
        if not when:
            return True
        try:
            settings = with_changes(self.experiment, point).model_dump(mode="json")
        except ConfigError:
            return True  # the values are invalid, which is reported for the whole point
        return all(
            within(settings, path.split("."))
            in [_resolved(path, value) for value in (allowed if isinstance(allowed, list) else [allowed])]
            for path, allowed in when.items()
        )

    def trials(self, number: int, point: Changes) -> list[Trial]:
        """The trials of a point, one for each seed.

        Raises:
            ConfigError: the point is not valid; names its settings and every problem.
        """
        try:
            experiment = self._changed(point)
        except ConfigError as error:
            at = f"{place_of_points(self.settings)}: {as_overrides(point) or UNCHANGED}"
            raise ConfigError([f"{at}: {problem}" for problem in error.problems]) from None
        trials = []
        for seed in range(self.settings.seeds):
            seeded = experiment.train.model_copy(update={"seed": experiment.train.seed + seed})
            trials.append(Trial(number, point, experiment.model_copy(update={"train": seeded})))
        return trials

    def _changed(self, changes: Changes) -> Experiment:
        """The experiment of a point; ConfigError if another value overwrites one of its values."""
        changed = with_changes(self.experiment, changes)
        values = changed.model_dump(mode="json")
        lost = []
        for name, value in changes.items():
            if not isinstance(value, dict):
                again = with_changes(changed, {name: _resolved(name, value)}).model_dump(mode="json")
                if within(again, name.split(".")) != within(values, name.split(".")):
                    lost.append(f"{name} has no effect, because another value overwrites it")
        if lost:
            raise ConfigError(lost)
        return changed

    def _problems_of_ends(self) -> Iterator[str]:
        """The problems of the ends of the ranges, tried in every corner of the space."""
        for name, axis in self.axes.items():
            if axis.values is not None:
                continue
            for end in getattr(axis, axis.kind)[:2]:
                for others in self._corners(name):
                    changes = self.point({**others, name: end}.__getitem__)
                    try:
                        self._changed(changes)
                    except ConfigError as error:
                        yield from (f"sweep.space: {as_overrides(changes)}: {problem}" for problem in error.problems)

    def _corners(self, axis: str) -> Iterator[Changes]:
        """Combinations of values of all axes: all values of an axis that determines which fields exist or whether
        `axis` has its condition fulfilled, and only the first value of any other axis."""
        lists = []
        for name, other in self.axes.items():
            values = other.values if other.values is not None else getattr(other, other.kind)[:1]
            decides = name.split(".")[-1] in DISCRIMINATORS or any(isinstance(value, dict) for value in values)
            lists.append(values if decides or name in self.axes[axis].when else values[:1])
        for values in itertools.product(*lists):
            yield dict(zip(self.axes, values, strict=True))


def place_of_points(settings: SweepSettings) -> str:
    """The setting that lists the points, for errors: the axes, the variants, or both together."""
    return "sweep" if settings.space and settings.variants else "sweep.variants" if settings.variants else "sweep.space"


def as_overrides(changes: Mapping[str, Any]) -> str:
    """A point in the form of overrides on the command line."""
    return ", ".join(f"{name}={as_yaml(value)}" for name, value in changes.items())


def draw(axis: Axis, random: np.random.Generator) -> Any:
    """A random value of an axis."""
    if axis.values is not None:
        return axis.values[int(random.integers(len(axis.values)))]
    low, high, *step = getattr(axis, axis.kind)
    match axis.kind:
        case "randint":
            return int(random.integers(low, high, endpoint=True))
        case "loguniform":
            return math.exp(random.uniform(math.log(low), math.log(high)))
        case "quniform":
            return multiple_of(step[0], round(random.uniform(low, high) / step[0]))
        case _:
            return float(random.uniform(low, high))


def multiple_of(step: float, count: int) -> float:
    """A value of a `quniform` axis without rounding errors, so that three times 0.1 is 0.3 and gives the same run."""
    return round(count * step, 12)


def changed_fields(sweep: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The field paths in which points may differ, and the listed values of each (none of a range).

    Args:
        sweep: the settings of the sweep as in JSON; those of earlier versions have no variants.
    """
    found = {name: [*(axis.get("choice") or ()), *(axis.get("grid") or ())] for name, axis in sweep["space"].items()}
    for variant in sweep.get("variants") or ():
        for name, value in variant.items():
            found.setdefault(name, []).append(value)
    return found


def varies(field: str, changed: Iterable[str]) -> bool:
    """Whether a field (by path) or a section that contains it is among the changed ones."""
    return any(_contains(name, field) for name in changed)


def distinguishing_settings(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The settings of each point that distinguish it from the others, by single fields (a section's mapping is split
    into its fields).

    Drops fields equal in all points. If that would make a point empty or ambiguous, only fields shared by every point
    are dropped. A single point keeps all fields.
    """
    flat = [dict(_single_fields(point)) for point in points]
    values: dict[str, list[Any]] = {}
    for point in flat:
        for name, value in point.items():
            values.setdefault(name, []).append(value)
    varied = {name for name, of_all in values.items() if any(value != of_all[0] for value in of_all)}
    short = [{name: value for name, value in point.items() if name in varied} for point in flat]
    shared = {name for name in values.keys() - varied if len(values[name]) == len(points) > 1}

    def is_unambiguous(point: dict[str, Any], kept: dict[str, Any]) -> bool:
        return bool(kept) and all(other == point for other, its in zip(flat, short, strict=True) if its == kept)

    return [
        kept if is_unambiguous(point, kept) else {name: value for name, value in point.items() if name not in shared}
        for point, kept in zip(flat, short, strict=True)
    ]


def _single_fields(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from _single_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _in_order(space: Mapping[str, Axis]) -> dict[str, Axis]:
    """The axes, each after the axes that it depends on; ConfigError if the dependencies are circular."""

    def depends(name: str, other: str) -> bool:
        when = space[name].when
        if name == other:
            return any(_contains(name, path) or _contains(path, name) for path in when)
        return _resets(other, name) or any(
            _resets(other, path) or _contains(path, other) or _is_alternative(other, path) for path in when
        )

    left, ordered = sorted(space, key=_rank), dict[str, Axis]()
    while left:
        free = next((name for name in left if not any(depends(name, other) for other in left)), None)
        if free is None:
            raise ConfigError(
                f"sweep.space: `when` conditions of {', '.join(left)} are circular: an axis depends on itself; let "
                "`when` refer to other fields"
            )
        ordered[free] = space[free]
        left.remove(free)
    return ordered


def _rank(name: str) -> tuple[int, bool]:
    """Sorts a section before its fields, and a method or kind before the other fields of its section."""
    parts = name.split(".")
    return len(parts), parts[-1] not in DISCRIMINATORS


def _contains(section: str, name: str) -> bool:
    """Whether a field is the section or in the section."""
    return f"{name}.".startswith(f"{section}.")


def _resets(axis: str, name: str) -> bool:
    """Whether setting an axis replaces a field: it is the field or a section with it, or the method or kind of its
    section."""
    section, _, last = axis.rpartition(".")
    return name.startswith(f"{section}.") if last in DISCRIMINATORS else _contains(axis, name)


def _is_alternative(axis: str, name: str) -> bool:
    """Whether an axis and a field are alternatives to each other (`ALTERNATIVES`)."""
    (section, _, way), (other_section, _, other_way) = axis.rpartition("."), name.rpartition(".")
    return section == other_section and any({way, other_way} == set(pair) for pair in ALTERNATIVES)


def _has_target(experiment: Experiment) -> bool:
    """Whether every trial has a target density, which then determines its stratum."""
    name, axes = "pruning.target_density", experiment.sweep.space if experiment.sweep else {}
    if name in axes:
        return not axes[name].when and None not in (axes[name].values or ())
    return getattr(experiment.pruning, "target_density", None) is not None and not any(
        _resets(axis, name) for axis in axes
    )


def _problems_of_axes(settings: SweepSettings, has_target: bool) -> list[str]:
    problems = []
    if settings.search == "grid" and settings.seed:
        problems.append(
            f"sweep.seed: is for search: random and optuna, got {settings.seed} with search: grid; leave it out"
        )
    for name in changed_fields(settings.model_dump(mode="json")):
        if name.split(".")[0] in COMMON:
            of = "space" if name in settings.space else "variants"
            problems.append(f"sweep.{of}: {name} must be the same for all trials; set it outside of the sweep")
    # The axes are applied after a variant.
    problems += [
        f"sweep.variants: {as_overrides(variant)}: the axis {axis} of sweep.space replaces {name}; set {name} in the "
        "variants or in the axes, not in both"
        for variant in settings.variants or ()
        for name in variant
        for axis in settings.space
        if _resets(axis, name) or (axis.split(".")[-1] in DISCRIMINATORS and axis.rpartition(".")[0] == name)
    ]
    levels = [name for name in LEVELS if name.endswith("_density") or not has_target]
    for name, axis in settings.space.items():
        section, last = name.split(".")[0], name.split(".")[-1]
        problems += [
            f"sweep.space: {name}: when: there is no setting {path!r}" for path in axis.when if not is_setting(path)
        ]
        is_prepared = section in PREPARED or _contains(MEASURED, name) or _contains(name, MEASURED)
        if settings.search == "optuna" and is_prepared and axis.kind != "grid":
            problems.append(
                f"sweep.space: {name} determines what is built before the first trial, so optuna cannot draw it later; "
                f"give its values as grid, not as {axis.kind}"
            )
        if settings.stopping is not None and last in levels and axis.kind in ("uniform", "loguniform"):
            problems.append(
                f"sweep.space: {name}: with sweep.stopping, trials compete with trials of the same density, but no two "
                f"values drawn from a {axis.kind} range are the same; give choice, grid or quniform"
            )
    return problems


def _resolved(path: str, value: Any) -> Any:
    """A value of a field in the form that a loaded experiment has."""
    if not isinstance(value, str):
        return value
    return expanded(value) if path in PATH_FIELDS else method_name(value)
