"""The points of a sweep: which settings each trial has, known and checked before anything starts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raypp.config import METHOD_ALIASES, Axis, Experiment, SweepSettings
from raypp.errors import ConfigError
from raypp.load_config import DISCRIMINATORS, with_changes

Changes = dict[str, Any]
COMMON = ("name", "run", "cluster", "tracking", "sweep")  # sections that say nothing of a run's result
MOST_DRAWS = 20  # draws for each point that is wanted, before a space counts as exhausted


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    point: int
    """Number of its point; trials of one point differ in their seed alone."""
    changes: Mapping[str, Any]
    """What the point sets, by field path."""
    experiment: Experiment
    """The whole of it, without the sweep."""


def trials_of(experiment: Experiment) -> list[Trial]:
    """Every trial of an experiment's sweep, in the order in which they are started.

    Raises:
        ConfigError: with every problem of every point, and of the ends of every range.
    """
    settings = experiment.sweep
    if settings is None:
        raise ConfigError(
            "sweep: is missing; say what to try under sweep.space, for example "
            "{pruning.final_density: {choice: [0.3, 0.15, 0.1]}}"
        )
    single = experiment.model_copy(update={"sweep": None})
    space = _in_order(settings.space)
    problems = [
        f"sweep.space: {name} is the same for all trials; give it outside of the sweep"
        for name in space
        if name.split(".")[0] in COMMON
    ]
    if experiment.run is not None:
        problems.append(f"run: trials are named by their settings, got {experiment.run!r}; leave it out")
    if problems:
        raise ConfigError(problems)
    problems = _problems_of_ends(single, space)
    points = list(_grid(single, space) if settings.search == "grid" else _drawn(single, space, settings))
    if unused := [name for name in space if not any(name in changes for changes in points)]:
        problems += [f"sweep.space: {name} matters in no point: its `when` never holds" for name in unused]
    trials = []
    for number, changes in enumerate(points):
        try:
            trial = _changed(single, changes)
        except ConfigError as error:
            problems += [f"sweep.space: {_said(changes)}: {problem}" for problem in error.problems]
            continue
        for seed in range(settings.seeds):
            seeded = trial.train.model_copy(update={"seed": trial.train.seed + seed})
            trials.append(Trial(number, changes, trial.model_copy(update={"train": seeded})))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return trials


def _in_order(space: Mapping[str, Axis]) -> dict[str, Axis]:
    """Sections before their fields, and what starts a section anew before what else is in it."""

    def rank(name: str) -> tuple[int, bool]:
        parts = name.split(".")
        return len(parts), parts[-1] not in DISCRIMINATORS

    return {name: space[name] for name in sorted(space, key=rank)}


def _changed(experiment: Experiment, changes: Changes) -> Experiment:
    """The experiment of a point; ConfigError where a value would not be what the point says."""
    changed = with_changes(experiment, changes)
    values = changed.model_dump(mode="json")
    lost = [
        f"{name} has no effect, another axis sets it anew"
        for name, value in changes.items()
        if not isinstance(value, dict) and _within(values, name.split(".")) != _plain(value)
    ]
    if lost:
        raise ConfigError(lost)
    return changed


def _plain(value: Any) -> Any:
    """A value as an experiment holds it."""
    return METHOD_ALIASES.get(value, value) if isinstance(value, str) else value


def _said(changes: Changes) -> str:
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def _grid(experiment: Experiment, space: Mapping[str, Axis]) -> Iterator[Changes]:
    """Every combination; one that differs from another only in an axis that does not matter comes once."""
    seen: list[Changes] = []
    for values in itertools.product(*(axis.choice or () for axis in space.values())):
        changes = _that_matter(experiment, space, dict(zip(space, values, strict=True)))
        if changes not in seen:
            seen.append(changes)
            yield changes


def _drawn(experiment: Experiment, space: Mapping[str, Axis], settings: SweepSettings) -> Iterator[Changes]:
    """So many different points, or all that a space of choices has; each draw has a stream of its own, so that a longer
    search begins with the same points."""
    wanted = settings.trials or 0
    seen: list[Changes] = []
    for number in range(wanted * MOST_DRAWS):
        random = np.random.default_rng([settings.seed, number])
        changes = _that_matter(experiment, space, {name: _draw(axis, random) for name, axis in space.items()})
        if changes not in seen:
            seen.append(changes)
            yield changes
        if len(seen) == wanted:
            return


def _draw(axis: Axis, random: np.random.Generator) -> Any:
    if axis.choice is not None:
        return axis.choice[int(random.integers(len(axis.choice)))]
    low, high, *step = getattr(axis, axis.kind)
    match axis.kind:
        case "randint":
            return int(random.integers(low, high, endpoint=True))
        case "loguniform":
            return math.exp(random.uniform(math.log(low), math.log(high)))
        case "quniform":
            return min(high, max(low, round(random.uniform(low, high) / step[0]) * step[0]))
        case _:
            return float(random.uniform(low, high))


def _that_matter(experiment: Experiment, space: Mapping[str, Axis], values: Changes) -> Changes:
    """The values whose `when` holds, given the experiment and the values before them."""
    chosen: Changes = {}
    for name, value in values.items():
        if not space[name].when or _holds(experiment, chosen, space[name].when):
            chosen[name] = value
    return chosen


def _holds(experiment: Experiment, chosen: Changes, when: Mapping[str, Any]) -> bool:
    try:
        settings = with_changes(experiment, chosen).model_dump(mode="json")
    except ConfigError:
        return True  # what is wrong with the values before is said of the point as a whole
    return all(
        _within(settings, path.split(".")) in map(_plain, allowed if isinstance(allowed, list) else [allowed])
        for path, allowed in when.items()
    )


def _within(value: Any, parts: list[str]) -> Any:
    for part in parts:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _problems_of_ends(experiment: Experiment, space: Mapping[str, Axis]) -> list[str]:
    """What is wrong with the ends of the ranges, wherever they matter."""
    problems = []
    for name, axis in space.items():
        if axis.kind == "choice":
            continue
        for end in getattr(axis, axis.kind)[:2]:
            for others in _corners(space, name):
                changes = _that_matter(experiment, space, {**others, name: end})
                try:
                    _changed(experiment, changes)
                except ConfigError as error:
                    problems += [f"sweep.space: {_said(changes)}: {problem}" for problem in error.problems]
    return problems


def _corners(space: Mapping[str, Axis], axis: str) -> Iterator[Changes]:
    """The values of all axes: each of those that decide which fields there are, or whether `axis` matters; the first of
    the others."""
    lists = []
    for name, other in space.items():
        values = other.choice if other.choice is not None else getattr(other, other.kind)[:1]
        decides = name.split(".")[-1] in DISCRIMINATORS or any(isinstance(value, dict) for value in values)
        lists.append(values if decides or name in space[axis].when else values[:1])
    for values in itertools.product(*lists):
        yield dict(zip(space, values, strict=True))
