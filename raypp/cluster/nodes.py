"""The nodes of the cluster that are alive, as Ray knows them."""

from __future__ import annotations

from typing import Any


def node_resources() -> list[dict[str, float]]:
    """The total resources of each node, by Ray's names."""
    return [node["Resources"] for node in _alive()]


def node_addresses() -> dict[str, str]:
    """The address of each node, by its id."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in _alive()}


def _alive() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]
