"""The connection to Ray for one command: an embedded Ray or the cluster of RAY_ADDRESS, without Ray's log output.

Ray is started only when something needs it. A run with `workers: 0` and all of its input in the store never does.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from raypp.cluster.capacity import check_capacity, check_preparation, even_cpus, groups_on, workers_on
from raypp.cluster.nodes import node_resources
from raypp.cluster.shared_folders import check_shared
from raypp.config import ClusterSettings
from raypp.errors import ConfigError, Problems
from raypp.storage import Location
from raypp.writable import check_kept

logger = logging.getLogger("raypp")

# Ray reads all of these when it is imported. Its log would drown the progress display; -v shows it.
QUIET_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # raypp prints one line about each trial that failed
}
ENVIRONMENT = {
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives the session must not start another Ray
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray Train notices a dead worker after one second instead of ten, and a trainer starts five seconds sooner.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # raypp waits for the workers' resources before it asks Ray Train (group_sizes.py). This timeout means that other
    # jobs have taken them meanwhile.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
}
# Of an embedded Ray without a dashboard: nothing reads what its processes would report about themselves every few
# seconds. Ray Data's, for example, keep 5 MiB of it for a million rows.
WITHOUT_DASHBOARD = {"enable_metrics_collection": False}
RAY_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune")


@dataclass
class _Ray:
    """The state of Ray, shared by the sessions that `with_settings` makes."""

    started: bool = False
    owned: bool = False
    """Whether the session started Ray or connected to the cluster; if so, it also shuts down or disconnects."""


@dataclass
class Session:
    """Ray for the duration of a command. Use as a context manager; `start` may be called any number of times."""

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
        if self.settings.dashboard and not self._ray.started and kind is None:
            logger.warning("cluster.dashboard has no effect: nothing that this command did needed Ray")

    def with_settings(self, settings: ClusterSettings) -> Session:
        """The same session with other settings for its workers."""
        return replace(self, settings=settings)

    def start(self) -> None:
        """Connects to the cluster of RAY_ADDRESS or starts an embedded Ray, unless this process has Ray already.

        Raises:
            ConfigError: there is no such cluster, its nodes do not share the storage, or Ray would delete it.
        """
        if self._ray.started:
            return
        environment = ENVIRONMENT if self.verbose else ENVIRONMENT | QUIET_ENVIRONMENT
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        import ray

        if not ray.is_initialized():
            if self.settings.autoscaling and not os.environ.get("RAY_ADDRESS"):
                raise ConfigError(
                    "cluster.autoscaling: true, but a local Ray cannot autoscale; set RAY_ADDRESS, or leave it out"
                )
            if self.settings.dashboard and os.environ.get("RAY_ADDRESS"):
                raise ConfigError(
                    "cluster.dashboard: true is for a Ray that the command starts itself, but RAY_ADDRESS names a "
                    "cluster, which has its own dashboard or none; leave it out, or unset RAY_ADDRESS"
                )
            level = logging.INFO if self.verbose else logging.ERROR
            for name in RAY_LOGGERS:
                logging.getLogger(name).setLevel(level)
            on_terminate = signal.getsignal(signal.SIGTERM)
            try:
                address = os.environ.get("RAY_ADDRESS")
                embedded = {} if address else embedded_ray(self.settings)
                context = ray.init(
                    address=address or "local", log_to_driver=self.verbose, logging_level=level, **embedded
                )
            except ConnectionError as error:
                raise ConfigError(
                    f"RAY_ADDRESS: there is no Ray cluster at {address!r} ({error}); unset it to run here"
                ) from None
            finally:
                # Ray replaces the command's handler by its own, which would end the process without a message.
                if callable(on_terminate) and threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, on_terminate)
            self._ray.owned = True
            if self.settings.dashboard:
                logger.warning("Ray's dashboard is at http://%s", context.dashboard_url)
            folders = self._folders()
            problems = Problems()
            for name, folder in folders.items():
                with problems.collect():
                    check_kept(folder, name)
            problems.stop()
            check_shared(folders)
        elif self.settings.dashboard:
            logger.warning("cluster.dashboard has no effect: this process has started Ray already")
        self._ray.started = True

    def _folders(self) -> dict[str, Location]:
        """The folders that all nodes read and write, by setting."""
        named = {"cluster.storage": self.settings.storage, "cluster.store": self.settings.store}
        return {field: Location.of(path, field) for field, path in named.items() if path is not None}

    def cpus_per_worker(self) -> float:
        """CPUs of a train worker; for the setting `auto`, an even share of the cluster's CPUs."""
        chosen = self.settings.cpus_per_worker
        if chosen != "auto":
            return float(chosen)
        if self.settings.gpus_per_worker:
            return 1.0
        if self.settings.autoscaling:
            raise ConfigError(
                "cluster.cpus_per_worker: auto divides the CPUs of the nodes that are there, but with "
                "cluster.autoscaling nodes start when they are needed; give a number"
            )
        cpus = [int(node.get("CPU", 0)) for node in node_resources()]
        return float(even_cpus(cpus, max(1, self.settings.max_workers), self.settings.placement))

    def worker_resources(self) -> dict[str, float]:
        """The resources of a train worker, by Ray's names."""
        gpus = self.settings.gpus_per_worker
        return {"CPU": self.cpus_per_worker(), **({"GPU": gpus} if gpus else {})}

    def check_resources(self) -> None:
        """Refuses more workers than the cluster has resources for, unless the cluster autoscales.

        Raises:
            ConfigError: it names the resources that are asked for and those of the cluster.
        """
        if not self.settings.autoscaling:
            check_capacity(self.settings, self.worker_resources(), node_resources())

    def check_can_prepare(self, gpus_per_worker: float = 0) -> None:
        """Refuses work of Ray Data if no node of the cluster can do it, unless the cluster autoscales.

        Args:
            gpus_per_worker: as in `check_preparation`.

        Raises:
            ConfigError: no node can do the work.
        """
        if not self.settings.autoscaling:
            check_preparation(node_resources(), gpus_per_worker)

    def capacity(self) -> int:
        """How many workers fit on the cluster's nodes. No worker spans two nodes."""
        return sum(self._node_capacities())

    def groups(self, size: int) -> int:
        """How many groups of `size` workers fit on the cluster's nodes at once, each with the settings' placement."""
        return groups_on(self._node_capacities(), size, self.settings.placement)

    def _node_capacities(self) -> list[int]:
        """How many workers fit on each node."""
        worker = self.worker_resources()
        return [workers_on(node, worker) for node in node_resources()]


def embedded_ray(settings: ClusterSettings) -> dict[str, Any]:
    """Arguments of `ray.init` for a Ray that the command starts itself."""
    return {
        "include_dashboard": settings.dashboard,
        "_system_config": {} if settings.dashboard else WITHOUT_DASHBOARD,
    }
