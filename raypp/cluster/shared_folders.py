"""Checks that the nodes of a cluster see the same folders.

A local path is enough on one machine, and on several machines that have mounted it (NFS, EFS). If it is each node's own
disk, one worker does not find the files of another. The path does not show which of these it is. So every node is asked
for a file that was just written or, if this node may only read, for an existing file.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from raypp.cluster.nodes import node_addresses
from raypp.errors import ConfigError, RunFailed, StorageFailed, WorkersLost
from raypp.storage import Location
from raypp.store import MANIFEST
from raypp.writable import not_written

ALLOWED = "allowed are a bucket (s3://, gs://) and a folder that all nodes have mounted"
RESPONSE_SECONDS = 60.0  # for a node to start a process and look for the files


def check_shared(folders: Mapping[str, Location]) -> None:
    """Asks every other node of the cluster whether it sees the folders that are local paths.

    Args:
        folders: by the setting that names them. Remote ones need no check.

    Raises:
        ConfigError: a node does not see a file that this node wrote or read there.
        RunFailed: a node does not respond.
    """
    import ray

    local = {field: folder for field, folder in folders.items() if folder.is_local}
    nodes = node_addresses()
    nodes.pop(ray.get_runtime_context().get_node_id())
    if not local or not nodes:
        return
    with contextlib.ExitStack() as stack:
        probes = {field: stack.enter_context(_probe(folder, field)) for field, folder in local.items()}
        unseen = _ask(probes, nodes)
    blind = {field: sorted(nodes[node] for node, fields in unseen.items() if field in fields) for field in local}
    problems = [
        f"{field}: {local[field]} is not the same folder on every node: a file that this node sees there is not seen "
        f"on {', '.join(addresses)}; {ALLOWED}"
        for field, addresses in blind.items()
        if addresses
    ]
    if problems:
        raise ConfigError(problems)


def check_seen(run: Location) -> None:
    """Checks that this node sees the folder of a run or sweep that the command has started.

    The node may have joined the cluster after `check_shared` asked all nodes.

    Raises:
        WorkersLost: this node does not see the file that the command has written there; another node may.
    """
    if run.is_local and not (run / "experiment.yaml").is_file():
        import ray.util

        raise WorkersLost(
            f"cluster.storage or cluster.store: {run.parent} is not the same folder on every node: the file that "
            f"the command has written there is not seen on {ray.util.get_node_ip_address()}; {ALLOWED}"
        )


@contextlib.contextmanager
def _probe(folder: Location, field: str) -> Iterator[str]:
    """Path of a file in a local folder to ask other nodes for: a new one or, in a read-only folder, an existing one."""
    probe = folder / f".raypp-{uuid.uuid4().hex}"
    try:
        folder.make_folder()
        probe.write_bytes(b"")
    except OSError as error:
        refused = not_written(folder, field, error)
        if isinstance(refused, StorageFailed):
            raise refused from error
        # A checkpoint's manifest does not count, because a run that trains removes its older checkpoints.
        files = (path for name in (MANIFEST, "result.json") for path in Path(folder.path).rglob(name))
        finished = next((path for path in files if "checkpoints" not in path.parts), None)
        if finished is None:  # the folder has no file to read, either
            raise refused from None
        yield str(finished)
        return
    try:
        yield probe.path
    finally:
        probe.delete()


def _ask(paths: Mapping[str, str], nodes: Mapping[str, str]) -> dict[str, list[str]]:
    """Asks the nodes (id to address) for files. Returns the settings whose file a node does not see, by node.

    A node that has left the cluster is not in the result, because nothing will run there.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look: Any = ray.remote(num_cpus=0, max_retries=0)(fields_unseen)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(paths): node
        for node in nodes
    }
    ready, missing = ray.wait(list(asked), num_returns=len(asked), timeout=RESPONSE_SECONDS)
    if missing:
        addresses = ", ".join(sorted(nodes[asked[response]] for response in missing))
        raise RunFailed(f"no response within {RESPONSE_SECONDS:g} s from {addresses}; is it still in the cluster?")
    unseen = {}
    for response in ready:
        try:
            unseen[asked[response]] = list(ray.get(response))
        except RayError:
            if asked[response] in node_addresses():
                raise
    return unseen


def fields_unseen(paths: Mapping[str, str]) -> Collection[str]:
    """The settings whose file this node does not see. Runs on the node that is asked."""
    return [field for field, path in paths.items() if not Path(path).is_file()]
