"""How many workers the nodes of a cluster have capacity for, from each node's total resources and one worker's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raypp.config import ClusterSettings
from raypp.errors import ConfigError

GPU_ACTOR = {"CPU": 1.0, "GPU": 1.0}  # an actor of Ray Data on a GPU takes a CPU, too
FIELDS = {"CPU": "cluster.cpus_per_worker", "GPU": "cluster.gpus_per_worker"}


def workers_on(node: Mapping[str, float], worker: Mapping[str, float]) -> int:
    """How many workers fit on a node. Both arguments are resources by Ray's names."""
    return min(_times(name, node.get(name, 0), each) for name, each in worker.items())


def groups_on(capacities: Sequence[int], size: int, placement: str) -> int:
    """How many groups of `size` workers fit on the nodes at once.

    Args:
        capacities: how many workers fit on each node.
        placement: as `cluster.placement`.
    """
    match placement:
        case "strict_pack":
            return sum(capacity // size for capacity in capacities)
        case "strict_spread":  # a node has at most one worker of each group
            possible = range(1, sum(capacities) // size + 1)
            return max(
                (count for count in possible if sum(min(each, count) for each in capacities) >= count * size), default=0
            )
        case _:
            return sum(capacities) // size


def even_cpus(nodes: Sequence[int], workers: int, placement: str) -> int:
    """The most CPUs that each worker can have.

    Args:
        nodes: CPUs of each node.

    Returns:
        1 if there are too few CPUs for all workers.
    """
    fitting = (
        each for each in range(1, max(nodes) + 1) if groups_on([cpus // each for cpus in nodes], workers, placement)
    )
    return max(fitting, default=1)


def check_capacity(
    settings: ClusterSettings, worker: Mapping[str, float], nodes: Sequence[Mapping[str, float]]
) -> None:
    """Refuses more workers than the nodes have resources for.

    Args:
        worker: resources of one worker.
        nodes: total resources of each node.

    Raises:
        ConfigError: it names the resources that are asked for and those of the cluster.
    """
    least = settings.min_workers
    totals = {name: sum(node.get(name, 0) for node in nodes) for name in worker}
    problems = [
        f"cluster.workers: {least} workers with {each:g} {name} each ({FIELDS[name]}) need {least * each:g} "
        f"{name}, but the cluster has {totals[name]:g}; ask for less, or set cluster.autoscaling=true if the cluster "
        "starts nodes when they are needed"
        for name, each in worker.items()
        if least * each > totals[name]
    ]
    if problems:
        raise ConfigError(problems)
    capacities = [workers_on(node, worker) for node in nodes]
    if not groups_on(capacities, least, settings.placement):
        where = placement_in_words(settings.placement)
        raise ConfigError(
            f"cluster.workers: the nodes have capacity for {sum(capacities)} workers with "
            + " and ".join(f"{each:g} {name} ({FIELDS[name]})" for name, each in worker.items())
            + f", not for {least}{where}; ask for less"
            + (", or for another cluster.placement" if where else "")
        )


def check_preparation(nodes: Sequence[Mapping[str, float]], gpus_per_worker: float = 0) -> None:
    """Refuses work of Ray Data that would wait forever, because no node has a CPU for it or, if asked for, a GPU.

    Args:
        nodes: total resources of each node.
        gpus_per_worker: the setting, for work that follows it; 0 for work that needs no GPU.

    Raises:
        ConfigError: no node can do the work.
    """
    otherwise = "set cluster.autoscaling=true if the cluster starts nodes when they are needed"
    if not any(workers_on(node, {"CPU": 1.0}) for node in nodes):
        raise ConfigError(
            "cluster: features and teacher logits are made on the cluster's nodes, but none of them has a CPU; add one "
            f"that has, or {otherwise}"
        )
    if gpus_per_worker and not any(workers_on(node, GPU_ACTOR) for node in nodes):
        raise ConfigError(
            f"cluster.gpus_per_worker: with {gpus_per_worker:g}, teacher logits are computed on GPUs, but no node has "
            f"a GPU and a CPU; set it to 0 to compute them on CPUs, or {otherwise}"
        )


def placement_in_words(placement: str) -> str:
    """What a placement requires of the nodes, in words that follow a number of workers."""
    return {"strict_pack": " on one node", "strict_spread": " on a node of its own each"}.get(placement, "")


def _times(name: str, total: float, each: float) -> int:
    """How often a share of a resource fits into the total. A worker's share of a GPU never spans two GPUs."""
    if name == "GPU" and each < 1:
        return math.floor(total) * math.floor(1 / each + 1e-9)
    return math.floor(total / each + 1e-9)
