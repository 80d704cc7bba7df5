"""Points of an Optuna search: multi-objective TPE, which maximizes the headline metric and minimizes the density.

A suggestion is a pure function of the space, its number and the observations of the points before it. Optuna's own
state is rebuilt for each suggestion. An interrupted search therefore continues as it would have, from the recorded
points and the results in their run folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raypp.config import Axis
from raypp.errors import ConfigError
from raypp.sweeps.space import Changes, Space, draw, multiple_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STARTUP = 5  # finished points per combination of the grid axes before TPE learns from them
# Attempts to find a new valid point. With listed values, TPE soon repeats the same proposals; after a few of them,
# random draws, which are nearly free, find the remaining points.
MOST_UNFIT, MOST_KNOWN, MOST_KNOWN_OF_OPTUNA = 20, 200, 5
# Lost points per finished point that TPE learns from. TPE takes the best tenth of its points as the good ones, which
# must all be finished.
MOST_LOST = 9

Check = Callable[[int, Changes], object]


@dataclass(frozen=True)
class Observation:
    """The state of a point, and its result if it is finished."""

    point: Changes
    state: Literal["running", "finished", "lost"]
    """lost: none of its trials finished, because all were stopped or failed."""
    metric: float = 0.0
    """Headline metric, negative if lower is better: the mean over its finished trials."""
    density: float = 0.0
    """Achieved density of the linear weights: the mean over its finished trials."""


def first_points(space: Space, check: Check | None = None) -> list[Changes]:
    """The first points of a search, which do not depend on results; fewer if the space has no more.

    Raises:
        ConfigError: a combination of the grid axes has no valid point.
    """
    observations: list[Observation] = []
    while (point := _next(space, observations, min(STARTUP, space.settings.trials or 0), check)) is not None:
        observations.append(Observation(point, "running"))
    return [each.point for each in observations]


def suggest(space: Space, observations: Sequence[Observation], check: Check | None = None) -> Changes | None:
    """The next point, given the observations of all points before it; None if all points are drawn, or no new valid
    point is found.

    Each combination of the grid axes has its own search. The searches take turns; one that finds no more points is
    skipped.

    Args:
        check: called with the number and the point; raises ConfigError if the point is not valid, and another point is
            drawn.

    Raises:
        ConfigError: a combination has no point yet, and no valid one is found.
    """
    return _next(space, observations, space.settings.trials or 0, check)


def as_many_as_wanted(space: Space, points: Sequence[Changes]) -> list[Changes]:
    """The points of a search up to the first that exceeds the wanted number of its combination."""
    counts = [0] * len(space.grid("grid"))
    for number, owner in enumerate(_owners(space, points)):
        counts[owner] += 1
        if counts[owner] > (space.settings.trials or 0):
            return list(points[:number])
    return list(points)


def _next(space: Space, observations: Sequence[Observation], most: int, check: Check | None) -> Changes | None:
    """The next point of the combination that has the fewest points, fewer than `most`; if it has no more, of the
    next."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    grid, owners = space.grid("grid"), _owners(space, [each.point for each in observations])
    own = [[each for each, owner in zip(observations, owners, strict=True) if owner == i] for i in range(len(grid))]
    for fixed, known in sorted(zip(grid, own, strict=True), key=lambda pair: len(pair[1])):
        if len(known) < most and (point := _new_point(space, fixed, known, observations, check)) is not None:
            return point
    return None


def _owners(space: Space, points: Sequence[Changes]) -> list[int]:
    """The grid combination each point belongs to, by its number. If several match, because a grid axis does not apply,
    the one with the fewest points so far."""
    grid = space.grid("grid")
    counts, owners = [0] * len(grid), []
    for point in points:
        owner = min((i for i, fixed in enumerate(grid) if _has(fixed, point)), key=lambda i: counts[i])
        counts[owner] += 1
        owners.append(owner)
    return owners


def _has(fixed: Changes, point: Changes) -> bool:
    return all(point.get(name, value) == value for name, value in fixed.items())


def _new_point(
    space: Space, fixed: Changes, known: Sequence[Observation], observations: Sequence[Observation], check: Check | None
) -> Changes | None:
    """A new valid point of the combination `fixed`, learned from its `known` points; None if none is found."""
    number = len(observations)
    problems: list[str] = []
    finished = sum(each.state == "finished" for each in known)
    lessons = [_frozen(space, each) for each in _lessons(known)] if finished >= STARTUP else []
    unfit = repeated = 0
    while unfit < MOST_UNFIT and repeated < MOST_KNOWN:
        attempt = unfit + repeated
        numbers = (space.settings.seed, number, attempt)
        trial = _ask(lessons, *numbers) if repeated < MOST_KNOWN_OF_OPTUNA else None
        point = space.point(partial(_value, space, fixed, trial, np.random.default_rng(numbers)))
        if any(each.point == point for each in observations):
            repeated += 1
            continue
        try:
            (check or space.trials)(number, point)
        except ConfigError as error:
            problems += error.problems  # the ends of the ranges are valid, but not this combination
            unfit += 1
            continue
        return point
    if problems and not any(_has(fixed, each.point) for each in observations):
        raise ConfigError(list(dict.fromkeys(problems)))
    return None


def _value(space: Space, fixed: Changes, trial: Any | None, random: np.random.Generator, name: str) -> Any:
    """The value of an axis: the combination's, the suggestion of Optuna's trial, or a random value without a trial."""
    axis = space.axes[name]
    if axis.kind == "grid":
        return fixed[name]
    return draw(axis, random) if trial is None else _suggested(trial, name, axis)


def _ask(lessons: Sequence[FrozenTrial], *numbers: int) -> Any:
    """A trial of Optuna's that learns from other trials, or is random without any. The numbers make its seed."""
    import optuna

    seed = int.from_bytes(hashlib.blake2b(repr(numbers).encode()).digest()[:4])
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=0)
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=sampler if lessons else optuna.samplers.RandomSampler(seed)
    )
    study.add_trials(lessons)
    return study.ask()


def _lessons(known: Sequence[Observation]) -> list[Observation]:
    """The points that TPE learns from: all finished points, and the latest of the lost ones."""
    finished = sum(each.state == "finished" for each in known)
    lost = [place for place, each in enumerate(known) if each.state == "lost"]
    forgotten = set(lost[: max(0, len(lost) - MOST_LOST * finished)])
    return [each for place, each in enumerate(known) if each.state != "running" and place not in forgotten]


def _suggested(trial: Any, name: str, axis: Axis) -> Any:
    if axis.values is not None:
        return axis.values[trial.suggest_categorical(name, range(len(axis.values)))]
    low, high, *step = getattr(axis, axis.kind)
    match axis.kind:
        case "randint":
            return trial.suggest_int(name, low, high)
        case "loguniform":
            return trial.suggest_float(name, low, high, log=True)
        case "quniform":
            return multiple_of(step[0], trial.suggest_int(name, round(low / step[0]), round(high / step[0])))
        case _:
            return trial.suggest_float(name, low, high)


def _frozen(space: Space, observation: Observation) -> FrozenTrial:
    """A point in the form of Optuna's trials."""
    from optuna.trial import TrialState, create_trial

    drawn = {name: value for name, value in observation.point.items() if space.axes[name].kind != "grid"}
    parameters = {name: _parameter(space.axes[name], value) for name, value in drawn.items()}
    state = {"running": TrialState.RUNNING, "finished": TrialState.COMPLETE, "lost": TrialState.PRUNED}[
        observation.state
    ]
    return create_trial(
        state=state,
        values=[observation.metric, observation.density] if observation.state == "finished" else None,
        params={name: parameter for name, (parameter, _) in parameters.items()},
        distributions={name: distribution for name, (_, distribution) in parameters.items()},
    )


def _parameter(axis: Axis, value: Any) -> tuple[Any, BaseDistribution]:
    """The parameter from which `_suggested` makes the value, and its distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.values is not None:
        return axis.values.index(value), CategoricalDistribution(tuple(range(len(axis.values))))
    low, high, *step = getattr(axis, axis.kind)
    match axis.kind:
        case "randint":
            return value, IntDistribution(low, high)
        case "loguniform":
            return value, FloatDistribution(low, high, log=True)
        case "quniform":
            return round(value / step[0]), IntDistribution(round(low / step[0]), round(high / step[0]))
        case _:
            return value, FloatDistribution(low, high)
