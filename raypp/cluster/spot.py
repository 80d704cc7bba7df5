"""Turns the warning that a spot machine of AWS gets into a drain of its node, by which a run saves the step it is at.

    python -m raypp.cluster.spot --address=HEAD:6379

Ray asks no cloud for such warnings. This runs beside it on every worker (cluster.yaml starts it), asks the machine's
own metadata whether it is to be taken away, which it says two minutes before, and has Ray drain the node then. On
Kubernetes Ray does it by itself, when the pod gets SIGTERM.
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

METADATA = "http://169.254.169.254"  # of EC2, the same on every machine
POLL_SECONDS = 5.0  # as AWS recommends
ANSWER_SECONDS = 5.0
TOKEN_SECONDS = 300


def main(arguments: Sequence[str] | None = None) -> None:
    """Waits for the warning, drains the node, and ends."""
    parser = argparse.ArgumentParser(prog="raypp.cluster.spot", description="Drains this node when AWS takes it away.")
    parser.add_argument("--address", required=True, metavar="HOST:PORT", help="of the Ray cluster's head")
    parser.add_argument("--node-id", help="this node's; by default that of the node with this machine's address")
    parser.add_argument("--metadata", default=METADATA, metavar="URL", help="the machine's metadata service")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    ends_at = wait_for_warning(options.metadata)
    logger.info("this machine is taken away in %.0f s; its node is drained", ends_at - time.time())
    while True:
        try:
            return drain(options.address, options.node_id, ends_at)
        except Exception as error:  # of many kinds; there are two minutes, and nothing else to do in them
            if time.time() > ends_at:
                raise
            logger.warning("the node cannot be drained, which is tried again: %s", error)
        time.sleep(POLL_SECONDS)


def wait_for_warning(metadata: str) -> float:
    """Returns, when the warning has come, the time that it names, in seconds of Unix time."""
    silent = False
    while True:
        try:
            if (ends_at := warned_of(metadata)) is not None:
                return ends_at
            silent = False
        except (OSError, HTTPException, ValueError, KeyError) as error:
            if not silent:  # once, and not every five seconds
                logger.warning("%s does not answer as it should, and is asked on: %r", metadata, error)
            silent = True
        time.sleep(POLL_SECONDS)


def warned_of(metadata: str) -> float | None:
    """When the machine is taken away, in seconds of Unix time; None: nothing is planned.

    Raises:
        OSError, HTTPException, ValueError, KeyError: the service does not answer, or not as it should.
    """
    # Version 2 of the service wants a token with every question.
    asking = Request(f"{metadata}/latest/api/token", method="PUT")
    asking.add_header("X-aws-ec2-metadata-token-ttl-seconds", str(TOKEN_SECONDS))
    with urlopen(asking, timeout=ANSWER_SECONDS) as answer:
        token = answer.read().decode()
    question = Request(f"{metadata}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token})
    try:
        with urlopen(question, timeout=ANSWER_SECONDS) as answer:
            action = json.loads(answer.read())
    except HTTPError as error:
        if error.code == 404:  # how it says that nothing is planned
            return None
        raise
    return datetime.fromisoformat(action["time"]).timestamp()


def drain(address: str, node_id: str | None, ends_at: float) -> None:
    """Has Ray drain a node, as one that is taken away.

    Args:
        node_id: hex; None: of the node with this machine's address.
        ends_at: in seconds of Unix time.

    Raises:
        RuntimeError: no node has this machine's address, or Ray refuses.
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
    accepted, refusal = client.drain_node(node_id, reason, "the spot machine is taken away", int(ends_at * 1000))
    if not accepted:
        raise RuntimeError(f"Ray does not drain the node {node_id}: {refusal}")


if __name__ == "__main__":
    main()
