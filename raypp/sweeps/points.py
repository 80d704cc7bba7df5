"""The points of a sweep that are known before anything starts: all combinations of a grid, or random draws."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from raypp.config import Experiment
from raypp.errors import ConfigError
from raypp.sweeps.space import Changes, Space, Trial, draw
from raypp.sweeps.suggest import first_points

MOST_DRAWS = 20  # draws per wanted point until a space counts as exhausted


def trials_of(experiment: Experiment) -> list[Trial]:
    """All trials of an experiment's sweep that do not depend on results, in the order in which they start.

    Raises:
        ConfigError: lists every problem of every point and of the ends of every range.
    """
    space = Space.of(experiment)
    trials: list[Trial] = []
    problems: list[str] = []
    points = known_points(space)
    for number, point in enumerate(points):
        try:
            trials += space.trials(number, point)
        except ConfigError as error:
            problems += error.problems
    if space.settings.search != "optuna":
        unused = [name for name in space.axes if not any(name in point for point in points)]
        problems += [f"sweep.space: no point has the axis {name}, because its `when` never holds" for name in unused]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return trials


def known_points(space: Space) -> list[Changes]:
    """All points of a grid or random search; the first points of an Optuna search."""
    match space.settings.search:
        case "grid":
            return list(_grid(space))
        case "random":
            return list(_drawn(space))
        case _:
            return first_points(space)


def _grid(space: Space) -> Iterator[Changes]:
    """All combinations of variants and values. Those that are the same point, because an axis does not apply, come
    once."""
    seen: list[Changes] = []
    for variant, values in itertools.product(space.variants, space.grid("choice", "grid")):
        point = space.point(values.__getitem__, variant)
        if point not in seen:
            seen.append(point)
            yield point


def _drawn(space: Space) -> Iterator[Changes]:
    """As many different draws as wanted, or as the space has, each with all combinations of the grid axes. Each draw
    has its own random stream, so a longer search starts with the same points."""
    wanted = space.settings.trials or 0
    grid, seen, draws = space.grid("grid"), list[Changes](), 0
    for number in range(wanted * MOST_DRAWS):
        random = np.random.default_rng([space.settings.seed, number])
        drawn = {name: draw(axis, random) for name, axis in space.axes.items() if axis.kind != "grid"}
        points = [space.point({**drawn, **fixed}.__getitem__) for fixed in grid]
        new = [point for point in points if point not in seen]
        for point in new:
            if point not in seen:  # `new` has a point twice if a grid axis does not apply
                seen.append(point)
                yield point
        draws += bool(new)
        if draws == wanted:
            return
