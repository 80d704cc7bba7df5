"""The points of a sweep that are known before anything starts: every combination of a grid, or so many draws."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from raypp.config import Experiment
from raypp.errors import ConfigError
from raypp.sweeps.space import Changes, Space, Trial, draw
from raypp.sweeps.suggest import first_points

MOST_DRAWS = 20  # draws for each point that is wanted, before a space counts as exhausted


def trials_of(experiment: Experiment) -> list[Trial]:
    """Every trial of an experiment's sweep that no result decides, in the order in which they are started.

    Raises:
        ConfigError: with every problem of every point, and of the ends of every range.
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
        problems += [f"sweep.space: {name} matters in no point: its `when` never holds" for name in unused]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return trials


def known_points(space: Space) -> list[Changes]:
    """All points of a grid or a random search; of another, those that it begins with."""
    match space.settings.search:
        case "grid":
            return list(_grid(space))
        case "random":
            return list(_drawn(space))
        case _:
            return first_points(space)


def _grid(space: Space) -> Iterator[Changes]:
    """Every combination; one that differs from another only in an axis that does not matter comes once."""
    seen: list[Changes] = []
    for values in space.grid("choice", "grid"):
        point = space.point(values)
        if point not in seen:
            seen.append(point)
            yield point


def _drawn(space: Space) -> Iterator[Changes]:
    """So many different draws, each with every combination of the grid axes, or all that a space of lists has; each
    draw has a stream of its own, so that a longer search begins with the same points."""
    wanted = space.settings.trials or 0
    grid, seen, draws = space.grid("grid"), list[Changes](), 0
    for number in range(wanted * MOST_DRAWS):
        random = np.random.default_rng([space.settings.seed, number])
        drawn = {name: draw(axis, random) for name, axis in space.axes.items() if axis.kind != "grid"}
        new = [point for point in (space.point({**drawn, **fixed}) for fixed in grid) if point not in seen]
        for point in new:
            if point not in seen:  # two values of a grid axis that does not matter are one point
                seen.append(point)
                yield point
        draws += bool(new)
        if draws == wanted:
            return
