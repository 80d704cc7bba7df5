"""A Ray head in a process of its own, as `ray start` makes it, for tests of what connects to a cluster from outside."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
START_SECONDS = 90


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for Ray's files; short, since the names of sockets below it are limited."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def ray_head(
    folder: Path, options: Sequence[str], environment: Mapping[str, str], is_ready: Callable[[], bool]
) -> Iterator[None]:
    """Starts a head whose files are in a folder, and ends it with all nodes that have joined from this machine."""
    command = [*RAY, "start", "--head", "--block", f"--temp-dir={folder}", *options]
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            assert time.monotonic() < deadline, "the head does not start"
            time.sleep(0.2)
        yield
    finally:
        # A head that ends in order takes half a minute and leaves the nodes that the autoscaler has started.
        for process in _started_for(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        head.wait(60)


def listens(port: int) -> bool:
    """Whether somebody does on this machine's loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _started_for(folder: Path) -> list[int]:
    """Ids of the processes whose command names the folder or something in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found
