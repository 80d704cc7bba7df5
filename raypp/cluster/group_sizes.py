"""The size of a run's groups of workers: for how many there is room, from the fewest to the most that it asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from raypp.cluster.places import AwaitedPlaces, MissingPlaces, free_orphans
from raypp.cluster.room import where_workers_go
from raypp.cluster.worker_quotas import WorkerQuota
from raypp.config import ClusterSettings
from raypp.errors import NoRoom

POLL_SECONDS = 0.5
WAIT_SECONDS = 1800.0  # for room, where no other trial will leave some: a machine of a cloud's takes minutes to start


class GroupSizes:
    """Finds the size of each group, and says when one of another size should follow.

    Args:
        resources: of one worker.
        quota: what this run may have of the cluster.
        name: of the places that it asks for.
    """

    def __init__(
        self, settings: ClusterSettings, resources: Mapping[str, float], quota: WorkerQuota, name: str
    ) -> None:
        self.settings, self.resources, self.quota, self.name = settings, resources, quota, name
        self.size = 0
        self._awaited = AwaitedPlaces(settings.min_workers, resources, settings.placement, name)
        self._missing = MissingPlaces(resources, settings.grow_after_seconds, name)
        self._idle_since: float | None = None
        """When the run began to have no workers though no other trial has any, on the monotonic clock."""

    def next_size(self, is_interrupted: Callable[[], bool], tell: Callable[[str], None]) -> int:
        """The workers of the next group; waits until there is room for the fewest, which `tell` is told once. 0: it is
        interrupted, and waits no more.

        Raises:
            NoRoom: there was none for too long.
        """
        self.quota.start()
        free_orphans()
        told = False
        try:
            while not is_interrupted():
                if self._idle_since is None or self.quota.others_train():
                    self._idle_since = time.monotonic()
                if time.monotonic() - self._idle_since > WAIT_SECONDS:
                    raise NoRoom(f"there was no room for {self._needed()} for {WAIT_SECONDS / 60:g} minutes")
                if not self.quota.has_turn():
                    self._awaited.close()
                elif (size := self._awaited.room(self.quota.reserve())) > 0:
                    self.size = size
                    self.quota.hold(size)
                    return size
                self.quota.wait()
                if not told:
                    tell(f"waits for room for {self._needed()}")
                    told = True
                time.sleep(POLL_SECONDS)
            return 0
        finally:
            self._awaited.close()

    def group_trains(self) -> None:
        """The group has its workers."""
        self._idle_since = None
        self.quota.placed()
        self._missing.group_has_its_own()

    def wants_another_size(self) -> str | None:
        """Why the group that trains should leave for one of another size; None: it should not."""
        target = self.quota.target()
        if target < self.size:
            return "another trial waits for room"
        if self._missing.granted(target - self.size) and self.quota.claim():
            return "there is room for more workers"
        return None

    def close(self) -> None:
        """The group is over: gives back what it has asked for beside."""
        self._missing.close()

    def _needed(self) -> str:
        """The fewest workers, in words."""
        least = self.settings.min_workers
        each = " and ".join(f"{count:g} {name}" for name, count in self.resources.items())
        where = where_workers_go(self.settings.placement)
        return f"{least} worker{'s' * (least != 1)} with {each}{' each' * (least != 1)}{where}"
