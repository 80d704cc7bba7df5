"""The space of a sweep: its axes, which of them matter at a point, and what is refused before anything starts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raypp.config import ALTERNATIVES, Axis, Experiment, SweepSettings, method_name
from raypp.config.fields import DISCRIMINATORS, PATH_FIELDS, is_setting
from raypp.errors import ConfigError
from raypp.load_config import as_yaml, expanded, with_changes, within

Changes = dict[str, Any]
COMMON = ("name", "run", "cluster", "tracking", "sweep")  # sections that say nothing of a run's result
PREPARED = ("task", "data", "student", "teacher")  # sections that say what is built before the first trial …
MEASURED = "evaluation.answers"  # … and how a teacher that is trained then is measured
# What decides the density, where trials compete with those of the same.
LEVELS = ("final_density", "target_density", "final_threshold", "final_lambda")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    point: int
    """Number of its point; trials of one point differ in their seed alone."""
    changes: Mapping[str, Any]
    """What the point sets, by field path."""
    experiment: Experiment
    """The whole of it, without the sweep."""


@dataclass(frozen=True)
class Space:
    """The axes of a sweep, and the experiment that they change."""

    experiment: Experiment
    """Without the sweep."""
    settings: SweepSettings
    axes: Mapping[str, Axis]
    """By field path: sections before their fields, what starts a section anew before what else is in it, and each after
    those that its `when` refers to."""

    @classmethod
    def of(cls, experiment: Experiment) -> Space:
        """The space of an experiment's sweep.

        Raises:
            ConfigError: with every problem of the axes, the ends of the ranges among them.
        """
        settings = experiment.sweep
        if settings is None:
            raise ConfigError(
                "sweep: is missing; say what to try under sweep.space, for example "
                "{pruning.final_density: {choice: [0.3, 0.15, 0.1]}}"
            )
        problems = _problems_of_axes(settings, has_target=_has_target(experiment))
        if experiment.run is not None:
            problems.append(f"run: trials are named by their settings, got {experiment.run!r}; leave it out")
        if problems:
            raise ConfigError(problems)
        axes = _in_order(settings.space)
        space = cls(experiment.model_copy(update={"sweep": None}), settings, axes)
        if problems := list(space._problems_of_ends()):
            raise ConfigError(list(dict.fromkeys(problems)))
        return space

    def grid(self, *kinds: str) -> list[Changes]:
        """Every combination of the values of the axes that are given in one of these ways; one, empty, where none
        is."""
        lists = {name: axis.values or () for name, axis in self.axes.items() if axis.kind in kinds}
        return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]

    def point(self, values: Mapping[str, Any]) -> Changes:
        """Of values of all axes, those whose `when` holds, given the experiment and the values before them."""
        chosen: Changes = {}
        for name in self.axes:
            if self.matters(name, chosen):
                chosen[name] = values[name]
        return chosen

    def matters(self, name: str, chosen: Changes) -> bool:
        """Whether an axis matters, given the values chosen for the axes before it."""
        when = self.axes[name].when
        if not when:
            return True
        try:
            settings = with_changes(self.experiment, chosen).model_dump(mode="json")
        except ConfigError:
            return True  # what is wrong with the values before is said of the point as a whole
        return all(
            within(settings, path.split("."))
            in [_resolved(path, value) for value in (allowed if isinstance(allowed, list) else [allowed])]
            for path, allowed in when.items()
        )

    def trials(self, number: int, point: Changes) -> list[Trial]:
        """The trials of a point, one a seed.

        Raises:
            ConfigError: the point does not fit, and how.
        """
        try:
            experiment = self._changed(point)
        except ConfigError as error:
            at = f"sweep.space: {as_overrides(point)}"
            raise ConfigError([f"{at}: {problem}" for problem in error.problems]) from None
        trials = []
        for seed in range(self.settings.seeds):
            seeded = experiment.train.model_copy(update={"seed": experiment.train.seed + seed})
            trials.append(Trial(number, point, experiment.model_copy(update={"train": seeded})))
        return trials

    def _changed(self, changes: Changes) -> Experiment:
        """The experiment of a point; ConfigError where a value has no effect: to set it once more would change it."""
        changed = with_changes(self.experiment, changes)
        values = changed.model_dump(mode="json")
        lost = []
        for name, value in changes.items():
            if not isinstance(value, dict):
                again = with_changes(changed, {name: _resolved(name, value)}).model_dump(mode="json")
                if within(again, name.split(".")) != within(values, name.split(".")):
                    lost.append(f"{name} has no effect, another axis sets it anew")
        if lost:
            raise ConfigError(lost)
        return changed

    def _problems_of_ends(self) -> Iterator[str]:
        """What is wrong with the ends of the ranges, wherever they matter."""
        for name, axis in self.axes.items():
            if axis.values is not None:
                continue
            for end in getattr(axis, axis.kind)[:2]:
                for others in self._corners(name):
                    changes = self.point({**others, name: end})
                    try:
                        self._changed(changes)
                    except ConfigError as error:
                        yield from (f"sweep.space: {as_overrides(changes)}: {problem}" for problem in error.problems)

    def _corners(self, axis: str) -> Iterator[Changes]:
        """The values of all axes: each of those that decide which fields there are, or whether `axis` matters; the
        first of the others."""
        lists = []
        for name, other in self.axes.items():
            values = other.values if other.values is not None else getattr(other, other.kind)[:1]
            decides = name.split(".")[-1] in DISCRIMINATORS or any(isinstance(value, dict) for value in values)
            lists.append(values if decides or name in self.axes[axis].when else values[:1])
        for values in itertools.product(*lists):
            yield dict(zip(self.axes, values, strict=True))


def as_overrides(changes: Mapping[str, Any]) -> str:
    """A point as a user would write it."""
    return ", ".join(f"{name}={as_yaml(value)}" for name, value in changes.items())


def draw(axis: Axis, random: np.random.Generator) -> Any:
    """A value of an axis."""
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
    """A value of a `quniform` axis, as one would write it: three times 0.1 is 0.3, and so the run of that setting."""
    return round(count * step, 12)


def varies(field: str, axes: Iterable[str]) -> bool:
    """Whether a field, by path, is an axis, or in a section that is one."""
    return any(_holds(axis, field) for axis in axes)


def distinguishing_settings(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The points by single fields (a section's mapping is taken apart), without what is the same wherever it stands.
    A point of which this leaves nothing, or what it leaves of another, keeps all that not every point has; a single
    one keeps everything."""
    flat = [dict(_single_fields(point)) for point in points]
    values: dict[str, list[Any]] = {}
    for point in flat:
        for name, value in point.items():
            values.setdefault(name, []).append(value)
    varied = {name for name, of_all in values.items() if any(value != of_all[0] for value in of_all)}
    short = [{name: value for name, value in point.items() if name in varied} for point in flat]
    shared = {name for name in values.keys() - varied if len(values[name]) == len(points) > 1}

    def tells(point: dict[str, Any], kept: dict[str, Any]) -> bool:
        return bool(kept) and all(other == point for other, its in zip(flat, short, strict=True) if its == kept)

    return [
        kept if tells(point, kept) else {name: value for name, value in point.items() if name not in shared}
        for point, kept in zip(flat, short, strict=True)
    ]


def _single_fields(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in changes.items():
        if isinstance(value, Mapping):
            yield from _single_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _in_order(space: Mapping[str, Axis]) -> dict[str, Axis]:
    """The axes, each after those that it depends on; ConfigError where these go in a circle."""

    def rank(name: str) -> tuple[int, bool]:
        parts = name.split(".")
        return len(parts), parts[-1] not in DISCRIMINATORS

    def depends(name: str, other: str) -> bool:
        when = space[name].when
        if name == other:
            return any(_holds(name, path) or _holds(path, name) for path in when)
        return _makes(other, name) or any(
            _makes(other, path) or _holds(path, other) or _says_instead(other, path) for path in when
        )

    left, ordered = sorted(space, key=rank), dict[str, Axis]()
    while left:
        free = next((name for name in left if not any(depends(name, other) for other in left)), None)
        if free is None:
            raise ConfigError(
                f"sweep.space: `when`: whether {', '.join(left)} matter depends on each other in a circle, or on the "
                "axis itself; let `when` refer to others"
            )
        ordered[free] = space[free]
        left.remove(free)
    return ordered


def _holds(section: str, name: str) -> bool:
    """Whether a field is the section, or in it."""
    return f"{name}.".startswith(f"{section}.")


def _makes(axis: str, name: str) -> bool:
    """Whether a field is that of an axis, or in the section that the axis gives or starts anew."""
    section, _, last = axis.rpartition(".")
    return name.startswith(f"{section}.") if last in DISCRIMINATORS else _holds(axis, name)


def _says_instead(axis: str, name: str) -> bool:
    """Whether an axis and a field are two ways to say one thing."""
    (section, _, way), (other_section, _, other_way) = axis.rpartition("."), name.rpartition(".")
    return section == other_section and any({way, other_way} == set(pair) for pair in ALTERNATIVES)


def _has_target(experiment: Experiment) -> bool:
    """Whether every trial has a target density, by which they compete then, whatever else they differ in."""
    name, axes = "pruning.target_density", experiment.sweep.space if experiment.sweep else {}
    if name in axes:
        return not axes[name].when and None not in (axes[name].values or ())
    return getattr(experiment.pruning, "target_density", None) is not None and not any(
        _makes(axis, name) for axis in axes
    )


def _problems_of_axes(settings: SweepSettings, has_target: bool) -> list[str]:
    problems = []
    if settings.search == "grid" and settings.seed:
        problems.append(
            f"sweep.seed: belongs to search: random and optuna, got {settings.seed} with a grid; leave it out"
        )
    levels = [name for name in LEVELS if name.endswith("_density") or not has_target]
    for name, axis in settings.space.items():
        section, last = name.split(".")[0], name.split(".")[-1]
        if section in COMMON:
            problems.append(f"sweep.space: {name} is the same for all trials; give it outside of the sweep")
        problems += [
            f"sweep.space: {name}: when: there is no setting {path!r}" for path in axis.when if not is_setting(path)
        ]
        is_prepared = section in PREPARED or _holds(MEASURED, name) or _holds(name, MEASURED)
        if settings.search == "optuna" and is_prepared and axis.kind != "grid":
            problems.append(
                f"sweep.space: {name} says what is prepared before the first trial, which optuna cannot wait to draw; "
                f"give its values as grid, not as {axis.kind}"
            )
        if settings.stopping is not None and last in levels and axis.kind in ("uniform", "loguniform"):
            problems.append(
                f"sweep.space: {name}: with sweep.stopping, trials compete with those of the same density, but of a "
                f"{axis.kind} range no two are the same; give choice, grid or quniform"
            )
    return problems


def _resolved(path: str, value: Any) -> Any:
    """A value of a field as an experiment holds it."""
    if not isinstance(value, str):
        return value
    return expanded(value) if path in PATH_FIELDS else method_name(value)
