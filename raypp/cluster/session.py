"""Ray itself: started in this process, or the cluster that RAY_ADDRESS names; quiet; and what it has to offer.

Ray is started only when something needs it. A run with `workers: 0` and everything in the store never does.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType

from raypp.cluster.channel import actor_here
from raypp.cluster.shared_folders import check_shared
from raypp.config import ClusterSettings
from raypp.errors import ConfigError
from raypp.storage import Location

# All of these are read by Ray when it is imported. Its log would drown the progress display; -v shows it.
QUIET_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a line says why a trial failed
}
ENVIRONMENT = {
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives the session must not start another Ray
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Noticing a dead worker takes a second instead of ten, and a trainer starts five seconds sooner.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}
# A machine of a cloud's takes minutes to start, to pull an image and to install; Ray Train would wait for one.
AUTOSCALING_ENVIRONMENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800"}
RAY_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune")


class _Owner:
    """An actor that only exists, and ends with the command that made it."""


@dataclass
class _Ray:
    """What a session knows of it."""

    started: bool = False
    owned: bool = False
    """Whether the session started it, or joined the cluster: then it leaves it, too."""


@dataclass
class Session:
    """Ray for the length of a command. Use as a context manager; `start` may be called any number of times."""

    settings: ClusterSettings
    verbose: bool = False
    _ray: _Ray = field(default_factory=_Ray)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ray.owned:
            import ray

            ray.shutdown()

    def with_settings(self, settings: ClusterSettings) -> Session:
        """The same session for workers of other settings."""
        return replace(self, settings=settings)

    def start(self) -> None:
        """Connects to the cluster of RAY_ADDRESS, or starts an embedded one; uses one that is there already.

        Raises:
            ConfigError: there is no such cluster, or its nodes do not share the storage.
        """
        if self._ray.started:
            return
        environment = ENVIRONMENT if self.verbose else ENVIRONMENT | QUIET_ENVIRONMENT
        if self.settings.autoscaling:
            environment = environment | AUTOSCALING_ENVIRONMENT
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        import ray

        if not ray.is_initialized():
            if self.settings.autoscaling and not os.environ.get("RAY_ADDRESS"):
                raise ConfigError(
                    "cluster.autoscaling: true, but this machine does not grow; set RAY_ADDRESS, or leave it out"
                )
            level = logging.INFO if self.verbose else logging.ERROR
            for name in RAY_LOGGERS:
                logging.getLogger(name).setLevel(level)
            on_terminate = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(
                    address=os.environ.get("RAY_ADDRESS") or "local",
                    include_dashboard=None if os.environ.get("RAY_ADDRESS") else False,
                    log_to_driver=self.verbose,
                    logging_level=level,
                )
            except ConnectionError as error:
                address = os.environ.get("RAY_ADDRESS")
                raise ConfigError(
                    f"RAY_ADDRESS: there is no Ray cluster at {address!r} ({error}); unset it to run here"
                ) from None
            finally:
                # Ray puts its own in the command's place, which would end it without a word.
                if callable(on_terminate) and threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, on_terminate)
            self._ray.owned = True
            check_shared(self._folders())
        self._ray.started = True

    def _folders(self) -> dict[str, Location]:
        """What all nodes read and write, by setting."""
        named = {"cluster.storage": self.settings.storage, "cluster.store": self.settings.store}
        return {field: Location.of(path, field) for field, path in named.items() if path is not None}

    @contextlib.contextmanager
    def owning(self, run: Location, *, wait: bool = False) -> Iterator[None]:
        """Holds a run whose storage has no locks, by the name of an actor: for this command alone on this cluster.

        A local run is held by its lock file (`runs.locked`). Commands on different clusters do not see each other.

        Args:
            wait: until another command that holds it is done.

        Raises:
            ConfigError: another command holds it, and there is no waiting.
        """
        if run.is_local:
            yield
            return
        self.start()
        import ray

        while True:
            try:
                actor = actor_here(_Owner, name=f"owner of {run}")
                break
            except ValueError:
                if not wait:
                    raise ConfigError(f"run: another command on this cluster works on {run}; wait for it") from None
                time.sleep(1.0)
        try:
            yield
        finally:
            ray.kill(actor)

    def cpus_per_worker(self) -> float:
        """CPUs of a train worker; where the settings say auto, an even part of what the cluster has."""
        chosen = self.settings.cpus_per_worker
        if chosen != "auto":
            return float(chosen)
        if self.settings.gpus_per_worker:
            return 1.0
        import ray

        if self.settings.autoscaling:
            raise ConfigError(
                "cluster.cpus_per_worker: auto shares out the nodes that are there, but with cluster.autoscaling they "
                "come as they are needed; give a number"
            )
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        wanted = max(1, self.settings.max_workers)
        fitting = [each for each in range(1, max(nodes) + 1) if self._groups([cpus // each for cpus in nodes], wanted)]
        return float(max(fitting, default=1))

    def worker_resources(self) -> dict[str, float]:
        """What a train worker takes, in Ray's names."""
        gpus = self.settings.gpus_per_worker
        return {"CPU": self.cpus_per_worker(), **({"GPU": gpus} if gpus else {})}

    def check_resources(self) -> None:
        """Refuses more workers than the cluster has resources for, unless it starts nodes for them.

        Raises:
            ConfigError: with what was asked and what there is.
        """
        import ray

        settings = self.settings
        least, asked = settings.min_workers, self.worker_resources()
        if settings.autoscaling:
            return
        there = ray.cluster_resources()
        fields = {"CPU": "cluster.cpus_per_worker", "GPU": "cluster.gpus_per_worker"}
        problems = [
            f"cluster.workers: {least} workers with {each:g} {name} each ({fields[name]}) need {least * each:g} "
            f"{name}, but the cluster has {there.get(name, 0):g}; ask for less, or, if it starts nodes as they are "
            "needed, say so with cluster.autoscaling=true"
            for name, each in asked.items()
            if least * each > there.get(name, 0)
        ]
        if problems:
            raise ConfigError(problems)
        if not self.groups(least):
            where = {"strict_pack": " on one node", "strict_spread": " on a node of its own each"}
            raise ConfigError(
                f"cluster.workers: the nodes have room for {self.room()} workers with "
                + " and ".join(f"{each:g} {name} ({fields[name]})" for name, each in asked.items())
                + f", not for {least}{where.get(settings.placement, '')}; ask for less"
                + (", or for another cluster.placement" if settings.placement in where else "")
            )

    def room(self) -> int:
        """Workers that fit on the nodes there are; none spreads over two."""
        return sum(self._room_of_nodes())

    def groups(self, size: int) -> int:
        """Groups of so many workers that fit on the nodes there are at once, each placed as the settings say."""
        return self._groups(self._room_of_nodes(), size)

    def _room_of_nodes(self) -> list[int]:
        """Workers that fit on each node."""
        import ray

        asked = self.worker_resources()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [min(_times(name, node.get(name, 0), each) for name, each in asked.items()) for node in nodes]

    def _groups(self, rooms: list[int], size: int) -> int:
        match self.settings.placement:
            case "strict_pack":
                return sum(room // size for room in rooms)
            case "strict_spread":  # a node has at most one worker of each group
                possible = range(1, sum(rooms) // size + 1)
                return max(
                    (count for count in possible if sum(min(r, count) for r in rooms) >= count * size), default=0
                )
            case _:
                return sum(rooms) // size


def _times(name: str, there: float, each: float) -> int:
    """How often so much of a resource fits into what is there: several parts of a GPU into one, but none over two."""
    if name == "GPU" and each < 1:
        return math.floor(there) * math.floor(1 / each + 1e-9)
    return math.floor(there / each + 1e-9)
