"""Whether the nodes of a cluster see the same folders.

A local path does for one machine, and for several that have mounted it (NFS, EFS). Where it is a disk of each node's
own, one worker does not find what another wrote. The path does not tell which it is: so every node is asked for a file
that was just written or, where this one may only read, for one that is there.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from raypp.errors import ConfigError, RunFailed, StorageFailed
from raypp.storage import Location, is_definite
from raypp.store import MANIFEST

ALLOWED = "allowed are a bucket (s3://, gs://) and a folder that all nodes have mounted"
ANSWER_SECONDS = 60.0  # for a node to start a process and look


def check_shared(folders: Mapping[str, Location]) -> None:
    """Asks every other node of the cluster for the local ones of these folders.

    Args:
        folders: by the setting that names them; remote ones are shared by nature.

    Raises:
        ConfigError: some node does not see what this one has written, or may only read.
        RunFailed: some node does not answer.
    """
    import ray

    local = {field: folder for field, folder in folders.items() if folder.is_local}
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    nodes.pop(ray.get_runtime_context().get_node_id())
    if not local or not nodes:
        return
    with contextlib.ExitStack() as stack:
        probes = {field: stack.enter_context(_probe(folder, field)) for field, folder in local.items()}
        unseen = _ask(probes, nodes)
    blind = {field: sorted(nodes[node] for node, fields in unseen.items() if field in fields) for field in local}
    problems = [
        f"{field}: {local[field]} is not the same folder on every node: what this one sees there is not seen on "
        f"{', '.join(addresses)}; {ALLOWED}"
        for field, addresses in blind.items()
        if addresses
    ]
    if problems:
        raise ConfigError(problems)


def check_seen(run: Location) -> None:
    """Refuses to work on a run, or for a sweep, whose folder is another one here than where its command runs: this node
    may have come after that one has asked all.

    Raises:
        ConfigError: this node does not see what the command has written there.
    """
    if run.is_local and not (run / "experiment.yaml").is_file():
        import ray.util

        raise ConfigError(
            f"cluster.storage or cluster.store: {run.parent} is not the same folder on every node: what the command "
            f"has written there is not seen on {ray.util.get_node_ip_address()}; {ALLOWED}"
        )


@contextlib.contextmanager
def _probe(folder: Location, field: str) -> Iterator[str]:
    """Path of a file in a local folder to ask others for: a new one or, of a folder to read, one that is there."""
    probe = folder / f".raypp-{uuid.uuid4().hex}"
    try:
        folder.make_folder()
        probe.write_bytes(b"")
    except OSError as error:
        if not is_definite(error):
            raise StorageFailed(f"{folder} cannot be written to: {error}") from error
        # Of a checkpoint not: a run that goes on removes its older ones.
        files = (path for name in (MANIFEST, "result.json") for path in Path(folder.path).rglob(name))
        finished = next((path for path in files if "checkpoints" not in path.parts), None)
        if finished is None:  # nothing to read there, either
            raise ConfigError(f"{field}: {folder} cannot be written to: {error.strerror or error}") from None
        yield str(finished)
        return
    try:
        yield probe.path
    finally:
        probe.delete()


def _ask(paths: Mapping[str, str], nodes: Mapping[str, str]) -> dict[str, list[str]]:
    """What each node (id to address) says: the settings whose file it does not see. A node that has left says nothing,
    since nothing will run there."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look: Any = ray.remote(num_cpus=0, max_retries=0)(fields_unseen)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(paths): node
        for node in nodes
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    if silent:
        addresses = sorted(nodes[asked[answer]] for answer in silent)
        raise RunFailed(f"no answer in {ANSWER_SECONDS:g} s from {', '.join(addresses)}; is it still in the cluster?")
    unseen = {}
    for answer in answered:
        try:
            unseen[asked[answer]] = list(ray.get(answer))
        except RayError:
            if asked[answer] in {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
                raise
    return unseen


def fields_unseen(paths: Mapping[str, str]) -> Collection[str]:
    """The settings whose file is not here. Runs on the node that is asked."""
    return [field for field, path in paths.items() if not Path(path).is_file()]
