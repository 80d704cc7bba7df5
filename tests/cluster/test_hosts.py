"""Hosts with addresses of their own: network namespaces on a bridge, each with a Ray node and its own processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ray_head import RAY, short_folder
from whole_runs import TEST_SECONDS, Watch, losses, only_run, outcome, run_command

from raypp.cluster.process_group import interface_with

DEADLINE_SECONDS = 240
ADDRESSES = ("10.77.0.1", "10.77.0.2", "10.77.0.3")
PORT = 6379
TRAIN_WORKER = "RayTrainWorker"
# Network, processes and mounts of its own. All of it is gone when the first process is, which dies with this one.
ISOLATED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--pid", "--mount-proc", "--fork", "--kill-child")

EXPERIMENT = """
name: hosts
task: sentiment
data: {{source: {{kind: synthetic, train_rows: 160, dev_rows: 48}}, max_length: 32}}
student: {{model: "{model}"}}
pruning: {{method: topk, final_density: 0.5, initial_warmup: 0, final_warmup: 1}}
train: {{max_steps: 20, batch_size: 8, micro_batches: 2, learning_rate: 5.0e-5, log_every_steps: 1}}
evaluation: {{every_steps: 20}}
cluster: {{cpus_per_worker: 1, placement: spread, store: "{store}"}}
tracking: {{wandb: off}}
"""


@dataclass
class Host:
    """A network namespace, known by its first process."""

    keeper: subprocess.Popen[bytes]
    pid: int

    @classmethod
    def start(cls) -> Host:
        keeper = subprocess.Popen([*ISOLATED, "sleep", "infinity"])
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children")
        deadline = time.monotonic() + 20
        while not (found := children.read_text().split()):
            assert keeper.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return cls(keeper, int(found[0]))

    def end(self) -> None:
        """All its processes, and with them its network."""
        self.keeper.kill()
        self.keeper.wait(20)

    @property
    def network(self) -> str:
        return os.readlink(f"/proc/{self.pid}/ns/net")

    def command(self, *words: object) -> list[str]:
        """A command on this host."""
        return ["nsenter", "--target", str(self.pid), "--net", "--pid", "--mount", *map(str, words)]

    def run(self, *words: object, environment: Mapping[str, str] | None = None) -> str:
        """Runs a command on this host; returns what it printed."""
        done = subprocess.run(
            self.command(*words),
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def ip(self, *words: object) -> None:
        """`ip …` in this host's network; it knows other hosts by their processes."""
        subprocess.run(["nsenter", "--target", str(self.pid), "--net", "ip", *map(str, words)], check=True, timeout=20)

    def connect(self, bridge: Host, address: str) -> None:
        """Plugs this host into a bridge, which has the other end of its cable."""
        cable = f"to{address.rpartition('.')[2]}"
        bridge.ip("link", "add", cable, "type", "veth", "peer", "name", "uplink", "netns", self.pid)
        bridge.ip("link", "set", cable, "master", "bridge", "up")
        self.ip("address", "add", f"{address}/24", "dev", "uplink")
        self.ip("link", "set", "lo", "up")
        self.ip("link", "set", "uplink", "up")
        self.ip("route", "add", "default", "dev", "uplink")


def why_not() -> str | None:
    """Why there can be no hosts here; None: there can."""
    missing = [name for name in ("ip", "unshare", "nsenter", "setpriv") if shutil.which(name) is None]
    if missing:
        return f"network namespaces need {', '.join(missing)}"
    bridge = "ip link add bridge type bridge && ip link add cable type veth peer name other"
    tried = subprocess.run([*ISOLATED, "sh", "-c", bridge], capture_output=True, text=True)
    return f"network namespaces cannot be made: {tried.stderr.strip()}" if tried.returncode else None


@pytest.fixture
def hosts() -> Iterator[dict[str, Host]]:
    """Three hosts by address, which reach each other and nothing else: a Ray head without CPUs, two nodes with one."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(short_folder())

        def host() -> Host:
            started = Host.start()
            stack.callback(started.end)
            return started

        bridge = host()
        bridge.ip("link", "add", "bridge", "type", "bridge")
        bridge.ip("link", "set", "bridge", "up")
        hosts = {address: host() for address in ADDRESSES}
        for address, each in hosts.items():
            each.connect(bridge, address)
            each.run("mount", "-t", "tmpfs", "none", folder)  # Ray's files are the host's own
        head, *nodes = ADDRESSES
        small = ("--object-store-memory", 150 << 20, "--disable-usage-stats")
        first = ("--head", "--port", PORT, "--num-cpus=0", "--include-dashboard=false", "--temp-dir", folder)
        hosts[head].run(*RAY, "start", *first, "--node-ip-address", head, *small)
        for node in nodes:
            join = ("--address", f"{head}:{PORT}", "--num-cpus=1", "--node-ip-address", node)
            hosts[node].run(*RAY, "start", *join, *small)
        yield hosts


class WorkersWatch(Watch):
    """The networks in which train workers have been."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set[str]()

    def look(self) -> None:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                if TRAIN_WORKER in (process / "cmdline").read_text():
                    self.seen.add(os.readlink(process / "ns" / "net"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(TEST_SECONDS)
def test_workers_on_two_hosts_come_to_the_result_of_one(
    hosts: dict[str, Host], tmp_path: Path, minilm_dir: Path
) -> None:
    experiment = tmp_path / "hosts.yaml"
    experiment.write_text(EXPERIMENT.format(model=minilm_dir, store=tmp_path / "store"))
    run_command("train", experiment, "cluster.workers=0", f"cluster.storage={tmp_path / 'one'}")

    head, *nodes = (hosts[address] for address in ADDRESSES)
    raypp = (sys.executable, "-m", "raypp.cli", "train", experiment)
    how = ("cluster.workers=2", f"cluster.storage={tmp_path / 'two'}")
    environment = {"RAY_ADDRESS": f"{ADDRESSES[0]}:{PORT}", "OMP_NUM_THREADS": "1"}
    with WorkersWatch() as watch:
        head.run(*raypp, *how, environment=environment)
    # The machine may have workers that are not of these hosts.
    seen = watch.seen & {each.network for each in hosts.values()}
    assert seen == {node.network for node in nodes}, "a worker on each node, none on the head"

    one, two = only_run(tmp_path / "one"), only_run(tmp_path / "two")
    assert one.name == two.name
    assert len(losses(two)) == 20
    np.testing.assert_allclose(losses(two), losses(one), rtol=2e-4)
    (before, weights, _), (after, others, _) = outcome(one), outcome(two)
    assert after == pytest.approx(before, rel=1e-3, abs=0.03)
    for name, value in weights.items():
        np.testing.assert_allclose(others[name], value, atol=1e-3, err_msg=name)


def test_the_interface_is_the_one_with_the_address() -> None:
    assert interface_with("127.0.0.1") in ("lo", "lo0")
    assert interface_with("192.0.2.255") is None
