"""For how many workers nodes have room, given what each of them has in all, and each worker takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raypp.config import ClusterSettings
from raypp.errors import ConfigError

FIELDS = {"CPU": "cluster.cpus_per_worker", "GPU": "cluster.gpus_per_worker"}


def workers_on(node: Mapping[str, float], worker: Mapping[str, float]) -> int:
    """Workers that fit on a node; both are resources by Ray's names."""
    return min(_times(name, node.get(name, 0), each) for name, each in worker.items())


def groups_on(rooms: Sequence[int], size: int, placement: str) -> int:
    """Groups of so many workers that fit at once on nodes with room for so many workers each.

    Args:
        placement: as `cluster.placement`.
    """
    match placement:
        case "strict_pack":
            return sum(room // size for room in rooms)
        case "strict_spread":  # a node has at most one worker of each group
            possible = range(1, sum(rooms) // size + 1)
            return max((count for count in possible if sum(min(r, count) for r in rooms) >= count * size), default=0)
        case _:
            return sum(rooms) // size


def even_cpus(nodes: Sequence[int], workers: int, placement: str) -> int:
    """The most CPUs that each of so many workers can have, where nodes have so many; 1 where there are too few."""
    fitting = (
        each for each in range(1, max(nodes) + 1) if groups_on([cpus // each for cpus in nodes], workers, placement)
    )
    return max(fitting, default=1)


def check_room(settings: ClusterSettings, worker: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuses more workers than nodes have resources for.

    Args:
        worker: what each of them takes.
        nodes: what each node has.

    Raises:
        ConfigError: with what was asked and what there is.
    """
    least = settings.min_workers
    there = {name: sum(node.get(name, 0) for node in nodes) for name in worker}
    problems = [
        f"cluster.workers: {least} workers with {each:g} {name} each ({FIELDS[name]}) need {least * each:g} "
        f"{name}, but the cluster has {there[name]:g}; ask for less, or, if it starts nodes as they are "
        "needed, say so with cluster.autoscaling=true"
        for name, each in worker.items()
        if least * each > there[name]
    ]
    if problems:
        raise ConfigError(problems)
    rooms = [workers_on(node, worker) for node in nodes]
    if not groups_on(rooms, least, settings.placement):
        where = where_workers_go(settings.placement)
        raise ConfigError(
            f"cluster.workers: the nodes have room for {sum(rooms)} workers with "
            + " and ".join(f"{each:g} {name} ({FIELDS[name]})" for name, each in worker.items())
            + f", not for {least}{where}; ask for less"
            + (", or for another cluster.placement" if where else "")
        )


def where_workers_go(placement: str) -> str:
    """What a placement demands of the nodes, to follow a number of workers."""
    return {"strict_pack": " on one node", "strict_spread": " on a node of its own each"}.get(placement, "")


def _times(name: str, there: float, each: float) -> int:
    """How often so much of a resource fits into what is there: several parts of a GPU into one, but none over two."""
    if name == "GPU" and each < 1:
        return math.floor(there) * math.floor(1 / each + 1e-9)
    return math.floor(there / each + 1e-9)
