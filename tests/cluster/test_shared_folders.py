"""A local path as storage: right where all nodes see it, refused where one does not.

The nodes are raylets on this machine. One that sees another disk has a mount namespace of its own, with an empty
filesystem in the folder's place, and an address of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_head import RAY

from raypp.cluster.shared_folders import check_seen
from raypp.errors import WorkersLost
from raypp.storage import Location

pytestmark = pytest.mark.ray
COMMAND = """
import sys
from raypp.cluster.session import Session
from raypp.config import ClusterSettings
from raypp.errors import ConfigError
storage, store = sys.argv[1:]
try:
    with Session(ClusterSettings(storage=storage, store=store)) as session:
        session.start()
    print("started")
except ConfigError as error:
    print(*error.problems, sep="\\n")
"""
OTHER_ADDRESS = "127.0.0.2"


@pytest.fixture
def address() -> Iterator[str]:
    """A cluster of one node; its address."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield str(cluster.address)
    cluster.shutdown()


def start(address: str, storage: Path, store: Path) -> str:
    """What a command says that starts a session on the cluster."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(storage), str(store)],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for_node(address: str) -> None:
    look = (
        "import ray; ray.init(log_to_driver=False); print([n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']])"
    )
    deadline = time.monotonic() + 60
    while True:
        environment = {**os.environ, "RAY_ADDRESS": address}
        seen = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, timeout=60)
        if OTHER_ADDRESS in seen.stdout:
            return
        assert time.monotonic() < deadline, seen.stderr
        time.sleep(0.5)


@pytest.mark.slow
def test_a_folder_that_one_node_does_not_see_is_refused_by_name(address: str, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace needs the right to make one")
    disk, everywhere = tmp_path / "disk", tmp_path / "everywhere"
    to_read = {name: folder / "to-read" for name, folder in (("disk", disk), ("everywhere", everywhere))}
    for store in to_read.values():
        (store / "features").mkdir(parents=True)
        (store / "features" / "manifest.json").touch()
        subprocess.run(["mount", "--bind", store, store], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
    join = [*RAY, "start", f"--address={address}", f"--node-ip-address={OTHER_ADDRESS}", "--num-cpus=1", "--block"]
    hide = f'mount -t tmpfs tmpfs "{disk}" && exec "$@"'
    node = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", hide, "sh", *join], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_node(address)
        assert start(address, everywhere / "runs", everywhere / "store") == "started"
        refused = start(address, everywhere / "runs", disk / "store")
        assert refused.startswith(f"cluster.store: {disk / 'store'} is not the same folder on every node")
        assert OTHER_ADDRESS in refused
        assert "s3://" in refused
        assert "cluster.storage" not in refused, "that one is seen"
        assert start(address, everywhere / "runs", to_read["everywhere"]) == "started"
        refused = start(address, everywhere / "runs", to_read["disk"])
        assert refused.startswith(f"cluster.store: {to_read['disk']} is not the same folder on every node")
        assert list((everywhere / "runs").iterdir()) == list((disk / "store").iterdir()) == [], "no probe is left"
    finally:
        node.terminate()
        node.wait(60)
        for store in to_read.values():
            subprocess.run(["umount", "-l", store], check=True)


def test_a_node_that_came_later_and_does_not_see_the_run_refuses_to_work_on_it(tmp_path: Path) -> None:
    """What an empty disk of its own shows."""
    run = Location.of(str(tmp_path / "runs" / "name" / "run"), "run")
    with pytest.raises(
        WorkersLost, match=r"cluster\.storage or cluster\.store: .*name is not the same folder on every node.*s3://"
    ):
        check_seen(run)
    (run.make_folder() / "experiment.yaml").write_text("what the command has written")
    check_seen(run)
