"""Drains the node of an AWS spot machine when its interruption notice comes, so that runs save their current step.

    python -m raypp.cluster.spot --address=HEAD:6379

Ray does not ask any cloud for such notices. This process runs next to Ray on every worker node (cluster.yaml starts
it). It polls the machine's metadata service, which announces an interruption two minutes ahead, and then has Ray drain
the node. On Kubernetes Ray drains a node by itself when its pod receives SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from datetime import datetime
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

logger = logging.getLogger("raypp.spot")

METADATA = "http://169.254.169.254"  # EC2's service, at the same address on every machine
POLL_SECONDS = 5.0  # as AWS recommends
REQUEST_SECONDS = 5.0
TOKEN_SECONDS = 300


def main(arguments: Sequence[str] | None = None) -> None:
    """Waits for the notice, drains the node, and ends."""
    parser = argparse.ArgumentParser(
        prog="raypp.cluster.spot", description="Drains this node before AWS interrupts it."
    )
    parser.add_argument("--address", required=True, metavar="HOST:PORT", help="address of the Ray cluster's head")
    parser.add_argument("--node-id", help="id of this node; by default that of the node with this machine's address")
    parser.add_argument("--metadata", default=METADATA, metavar="URL", help="the machine's metadata service")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    ends_at = wait_for_notice(options.metadata)
    logger.info("this machine is interrupted in %.0f s; its node is drained", ends_at - time.time())
    while True:
        try:
            return drain(options.address, options.node_id, ends_at)
        except Exception as error:  # many kinds can be temporary, and nothing else can be done in the two minutes
            if time.time() > ends_at:
                raise
            logger.warning("the node cannot be drained, raypp tries again: %s", error)
        time.sleep(POLL_SECONDS)


def wait_for_notice(metadata: str) -> float:
    """Waits for the interruption notice. Returns the time of the interruption, in seconds of Unix time."""
    silent = False
    while True:
        try:
            if (ends_at := interruption_time(metadata)) is not None:
                return ends_at
            silent = False
        except (OSError, HTTPException, ValueError, KeyError) as error:
            if not silent:  # logged once and not every five seconds
                logger.warning("%s does not respond as expected, raypp keeps asking: %r", metadata, error)
            silent = True
        time.sleep(POLL_SECONDS)


def interruption_time(metadata: str) -> float | None:
    """When the machine is interrupted, in seconds of Unix time; None if nothing is planned.

    Raises:
        OSError, HTTPException, ValueError, KeyError: the service does not respond, or not as expected.
    """
    # Version 2 of the service requires a token with every request.
    token_request = Request(f"{metadata}/latest/api/token", method="PUT")
    token_request.add_header("X-aws-ec2-metadata-token-ttl-seconds", str(TOKEN_SECONDS))
    with urlopen(token_request, timeout=REQUEST_SECONDS) as response:
        token = response.read().decode()
    request = Request(f"{metadata}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token})
    try:
        with urlopen(request, timeout=REQUEST_SECONDS) as response:
            action = json.loads(response.read())
    except HTTPError as error:
        if error.code == 404:  # nothing is planned
            return None
        raise
    return datetime.fromisoformat(action["time"]).timestamp()


def drain(address: str, node_id: str | None, ends_at: float) -> None:
    """Has Ray drain a node before a preemption.

    Args:
        node_id: hex; None: the node with this machine's address.
        ends_at: time of the preemption, in seconds of Unix time.

    Raises:
        RuntimeError: not exactly one node has this machine's address, or Ray refuses.
    """
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    client = GcsClient(address=address)
    if node_id is None:
        here = ray.util.get_node_ip_address()
        alive = [node for node in client.get_all_node_info().values() if node.node_manager_address == here]
        nodes = [node.node_id.hex() for node in alive if node.state == node.ALIVE]
        if len(nodes) != 1:
            raise RuntimeError(f"{len(nodes)} nodes of the cluster at {address} have this machine's address {here}")
        (node_id,) = nodes
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, refusal = client.drain_node(node_id, reason, "the spot machine is interrupted", int(ends_at * 1000))
    if not accepted:
        raise RuntimeError(f"Ray does not drain the node {node_id}: {refusal}")


if __name__ == "__main__":
    main()
