"""Ray itself: started in this process, or the cluster that RAY_ADDRESS names; quiet; and what it has to offer.

Ray is started only when something needs it. A run with `workers: 0` and everything in the store never does.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from types import TracebackType

from raypp.config import ClusterSettings
from raypp.errors import ConfigError

# Read by Ray when it is imported. Its log would drown the progress display; -v shows it.
QUIET_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Noticing a dead worker takes a second instead of ten, and a trainer starts five seconds sooner.
TRAIN_ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
RAY_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune")


@dataclass
class Session:
    """Ray for the length of a command. Use as a context manager; `start` may be called any number of times."""

    settings: ClusterSettings
    verbose: bool = False
    started: bool = field(default=False, init=False)
    owned: bool = field(default=False, init=False)
    start_seconds: float = field(default=0.0, init=False)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.owned:
            import ray

            ray.shutdown()

    def start(self) -> None:
        """Connects to the cluster of RAY_ADDRESS, or starts an embedded one; uses one that is there already."""
        if self.started:
            return
        before = time.monotonic()
        for name, value in (TRAIN_ENVIRONMENT if self.verbose else QUIET_ENVIRONMENT | TRAIN_ENVIRONMENT).items():
            os.environ.setdefault(name, value)
        import ray

        if not ray.is_initialized():
            level = logging.INFO if self.verbose else logging.ERROR
            for name in RAY_LOGGERS:
                logging.getLogger(name).setLevel(level)
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
            self.owned = True
        self.started = True
        self.start_seconds = time.monotonic() - before

    def cpus_per_worker(self) -> float:
        """CPUs of a train worker; where the settings say auto, an even part of what the cluster has."""
        chosen = self.settings.cpus_per_worker
        if chosen != "auto":
            return float(chosen)
        if self.settings.gpus_per_worker:
            return 1.0
        import ray

        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        return float(max(1, min(sum(nodes) // max(1, self.settings.max_workers), max(nodes))))

    def check_resources(self) -> None:
        """Refuses more workers than the cluster has, or can grow to, resources for.

        Raises:
            ConfigError: with what was asked and what there is.
        """
        import ray
        from ray._private.state import state

        settings = self.settings
        least = settings.workers if isinstance(settings.workers, int) else settings.workers[0]
        reachable = dict(ray.cluster_resources())
        for name, amount in (state.get_max_resources_from_cluster_config() or {}).items():
            reachable[name] = max(reachable.get(name, 0), amount)
        asked = {"CPU": self.cpus_per_worker(), "GPU": settings.gpus_per_worker}
        fields = {"CPU": "cluster.cpus_per_worker", "GPU": "cluster.gpus_per_worker"}
        problems = [
            f"cluster.workers: {least} workers with {each:g} {name} each ({fields[name]}) need {least * each:g} "
            f"{name}, but the cluster has {reachable.get(name, 0):g} and cannot grow to more; ask for less"
            for name, each in asked.items()
            if least * each > reachable.get(name, 0)
        ]
        if problems:
            raise ConfigError(problems)
