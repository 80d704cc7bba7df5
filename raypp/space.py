"""The points of a sweep: which settings each trial has, known and checked before anything starts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raypp.config import Axis, Experiment, SweepSettings
from raypp.errors import ConfigError
from raypp.load_config import with_changes

Changes = dict[str, Any]


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
    problems = _problems_of_ends(single, settings)
    trials = []
    points = _grid(single, settings.space) if settings.search == "grid" else _drawn(single, settings)
    for number, changes in enumerate(points):
        for seed in range(settings.seeds):
            try:
                trial = with_changes(single, changes)
            except ConfigError as error:
                problems += [f"sweep.space: {problem}" for problem in error.problems if seed == 0]
                continue
            seeded = trial.train.model_copy(update={"seed": trial.train.seed + seed})
            trials.append(Trial(number, changes, trial.model_copy(update={"train": seeded})))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return trials


def _grid(experiment: Experiment, space: Mapping[str, Axis]) -> Iterator[Changes]:
    """Every combination; one that differs from another only in an axis that does not matter comes once."""
    seen = []
    for values in itertools.product(*(axis.choice or () for axis in space.values())):
        changes = _that_matter(experiment, space, dict(zip(space, values, strict=True)))
        if changes not in seen:
            seen.append(changes)
            yield changes


def _drawn(experiment: Experiment, settings: SweepSettings) -> Iterator[Changes]:
    """So many points; each has a stream of its own, so that more of them begin with the same ones."""
    for number in range(settings.trials or 0):
        random = np.random.default_rng([settings.seed, number])
        values = {name: _draw(axis, random) for name, axis in settings.space.items()}
        yield _that_matter(experiment, settings.space, values)


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
        if all(_value_at(experiment, chosen, path) in _listed(allowed) for path, allowed in space[name].when.items()):
            chosen[name] = value
    return chosen


def _value_at(experiment: Experiment, changes: Changes, path: str) -> Any:
    """What a field will be: as the last change of it or of a section around it says, else as the experiment has it."""
    parts = path.split(".")
    for changed, value in reversed(changes.items()):
        above = changed.split(".")
        if parts[: len(above)] == above and (found := _within(value, parts[len(above) :])) is not None:
            return found
    return _within(experiment.model_dump(mode="json"), parts)


def _within(value: Any, parts: list[str]) -> Any:
    for part in parts:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _listed(allowed: Any) -> list[Any]:
    return allowed if isinstance(allowed, list) else [allowed]


def _problems_of_ends(experiment: Experiment, settings: SweepSettings) -> list[str]:
    """What is wrong with the ends of the ranges, each with the first value of every other axis that matters."""
    problems = []
    for name, axis in settings.space.items():
        if axis.kind == "choice":
            continue
        for end in getattr(axis, axis.kind)[:2]:
            for others in _corners(experiment, settings.space, name):
                changes = _that_matter(experiment, settings.space, {**others, name: end})
                try:
                    with_changes(experiment, changes)
                except ConfigError as error:
                    problems += [f"sweep.space: {problem}" for problem in error.problems]
    return problems


def _corners(experiment: Experiment, space: Mapping[str, Axis], axis: str) -> Iterator[Changes]:
    """Every combination of the choices, and of the lower ends of the other ranges."""
    lists = [a.choice if a.choice is not None else getattr(a, a.kind)[:1] for a in space.values()]
    for values in itertools.product(*lists):
        yield dict(zip(space, values, strict=True))
