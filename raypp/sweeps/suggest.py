"""Points that learn from finished trials: Optuna's multi-objective TPE, headline metric up and achieved density down.

A suggestion is a pure function of the space, its number and what is known of the points before it. Optuna's own state
is made anew for each one, so a search that was interrupted goes on as it would have, from the points that are recorded
and the results in their run folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raypp.config import Axis
from raypp.errors import ConfigError
from raypp.sweeps.space import Changes, Space, draw, multiple_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STARTUP = 5  # finished points, of each combination of the grid axes, before anything is learned from
# Tries for a new point that fits. Of listed values TPE soon proposes the same again and again: then chance, which costs
# next to nothing, finds what is left.
MOST_UNFIT, MOST_KNOWN, MOST_KNOWN_OF_OPTUNA = 20, 200, 5
# Lost points for each finished one, of which a tenth is Optuna's good part: it must be of finished ones.
MOST_LOST = 9

Check = Callable[[int, Changes], object]


@dataclass(frozen=True)
class Observation:
    """What is known of a point."""

    point: Changes
    state: Literal["running", "finished", "lost"]
    """lost: none of its trials finished; they were stopped, or failed."""
    metric: float = 0.0
    """Headline metric, negative where less is better: the mean of its finished trials."""
    density: float = 0.0
    """Achieved density of the linear weights, likewise."""


def first_points(space: Space, check: Check | None = None) -> list[Changes]:
    """The points that a search begins with, whatever comes of them; fewer where the space has no more.

    Raises:
        ConfigError: of a combination of the grid axes, no point fits.
    """
    told: list[Observation] = []
    while (point := _next(space, told, min(STARTUP, space.settings.trials or 0), check)) is not None:
        told.append(Observation(point, "running"))
    return [each.point for each in told]


def suggest(space: Space, told: Sequence[Observation], check: Check | None = None) -> Changes | None:
    """The next point after those told; None where all are drawn, or nothing new that fits is found.

    Each combination of the grid axes has a search of its own. They take turns, and those that have no more points let
    the others go on.

    Args:
        check: called with the number and the point; raises ConfigError where it does not fit, and another is drawn.

    Raises:
        ConfigError: a combination has no point before it, and none that fits.
    """
    return _next(space, told, space.settings.trials or 0, check)


def as_many_as_wanted(space: Space, points: Sequence[Changes]) -> list[Changes]:
    """The points of a search up to where one of its combinations has more than it is to have."""
    counts = [0] * len(space.grid("grid"))
    for number, owner in enumerate(_owners(space, points)):
        counts[owner] += 1
        if counts[owner] > (space.settings.trials or 0):
            return list(points[:number])
    return list(points)


def _next(space: Space, told: Sequence[Observation], most: int, check: Check | None) -> Changes | None:
    """The next point of the combination that has the fewest, and fewer than `most`; of another where it has no more."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    grid, owners = space.grid("grid"), _owners(space, [each.point for each in told])
    own = [[each for each, owner in zip(told, owners, strict=True) if owner == i] for i in range(len(grid))]
    for fixed, known in sorted(zip(grid, own, strict=True), key=lambda pair: len(pair[1])):
        if len(known) < most and (point := _drawn(space, fixed, known, told, check)) is not None:
            return point
    return None


def _owners(space: Space, points: Sequence[Changes]) -> list[int]:
    """Whose each point is, by the number of its combination of the grid axes; where some of these do not matter at a
    point, several have it, and it is the one's that had the fewest."""
    grid = space.grid("grid")
    counts, owners = [0] * len(grid), []
    for point in points:
        owner = min((i for i, fixed in enumerate(grid) if _has(fixed, point)), key=lambda i: counts[i])
        counts[owner] += 1
        owners.append(owner)
    return owners


def _has(fixed: Changes, point: Changes) -> bool:
    return all(point.get(name, value) == value for name, value in fixed.items())


def _drawn(
    space: Space, fixed: Changes, known: Sequence[Observation], told: Sequence[Observation], check: Check | None
) -> Changes | None:
    """A new point of a combination, learned from those `known` of it; None where none is found."""
    number = len(told)
    problems: list[str] = []
    finished = sum(each.state == "finished" for each in known)
    lessons = [_frozen(space, each) for each in _lessons(known)] if finished >= STARTUP else []
    unfit = repeated = 0
    while unfit < MOST_UNFIT and repeated < MOST_KNOWN:
        attempt = unfit + repeated
        numbers = (space.settings.seed, number, attempt)
        trial = _ask(lessons, *numbers) if repeated < MOST_KNOWN_OF_OPTUNA else None
        random = np.random.default_rng(numbers)
        point: Changes = {}
        for name, axis in space.axes.items():
            if not space.matters(name, point):
                continue
            if axis.kind == "grid":
                point[name] = fixed[name]
            else:
                point[name] = draw(axis, random) if trial is None else _suggested(trial, name, axis)
        if any(each.point == point for each in told):
            repeated += 1
            continue
        try:
            (check or space.trials)(number, point)
        except ConfigError as error:
            problems += error.problems  # the ends of the ranges fit, this combination does not
            unfit += 1
            continue
        return point
    if problems and not any(_has(fixed, each.point) for each in told):
        raise ConfigError(list(dict.fromkeys(problems)))
    return None


def _ask(lessons: Sequence[FrozenTrial], *numbers: int) -> Any:
    """A trial of Optuna's that learns from others; without any, of chance. The numbers make its seed."""
    import optuna

    seed = int.from_bytes(hashlib.blake2b(repr(numbers).encode()).digest()[:4])
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=0)
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=sampler if lessons else optuna.samplers.RandomSampler(seed)
    )
    study.add_trials(lessons)
    return study.ask()


def _lessons(known: Sequence[Observation]) -> list[Observation]:
    """What is learned from: all finished points, and the latest of those that were lost."""
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


def _frozen(space: Space, told: Observation) -> FrozenTrial:
    """A point as Optuna knows it."""
    from optuna.trial import TrialState, create_trial

    drawn = {name: value for name, value in told.point.items() if space.axes[name].kind != "grid"}
    parameters = {name: _parameter(space.axes[name], value) for name, value in drawn.items()}
    state = {"running": TrialState.RUNNING, "finished": TrialState.COMPLETE, "lost": TrialState.PRUNED}[told.state]
    return create_trial(
        state=state,
        values=[told.metric, told.density] if told.state == "finished" else None,
        params={name: parameter for name, (parameter, _) in parameters.items()},
        distributions={name: distribution for name, (_, distribution) in parameters.items()},
    )


def _parameter(axis: Axis, value: Any) -> tuple[Any, BaseDistribution]:
    """What `_suggested` made the value from, and its distribution."""
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
