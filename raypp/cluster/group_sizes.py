"""The size of each of a run's groups of workers: as many as there are free resources for, within the run's limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from raypp.cluster.capacity import placement_in_words
from raypp.cluster.placement_groups import ExtraSlots, PendingSlots, free_orphans
from raypp.cluster.worker_quotas import WorkerQuota
from raypp.config import ClusterSettings
from raypp.errors import NoCapacity

POLL_SECONDS = 0.5
# How long to wait for resources while no other trial could free any: a cloud machine takes minutes to start.
WAIT_SECONDS = 1800.0


class GroupSizes:
    """Finds the size of each group, and says when a group of another size should replace it.

    Args:
        resources: of one worker.
        quota: the run's share of the cluster.
        name: of the run's slots.
    """

    def __init__(
        self, settings: ClusterSettings, resources: Mapping[str, float], quota: WorkerQuota, name: str
    ) -> None:
        self.settings, self.resources, self.quota, self.name = settings, resources, quota, name
        self.size = 0
        self._pending = PendingSlots(settings.min_workers, resources, settings.placement, name)
        self._extra = ExtraSlots(resources, settings.grow_after_seconds, name)
        self._idle_since: float | None = None
        """Since when neither this run nor another trial has workers, on the monotonic clock."""

    def next_size(self, is_interrupted: Callable[[], bool], say: Callable[[str], None]) -> int:
        """The number of workers of the next group. Waits until there are resources for the fewest.

        Args:
            say: is called once with a message when the run has to wait.

        Returns:
            0 if the run was interrupted while it waited.

        Raises:
            NoCapacity: there were no resources for too long.
        """
        self.quota.start()
        free_orphans()
        said = False
        try:
            while not is_interrupted():
                if self._idle_since is None or self.quota.others_train():
                    self._idle_since = time.monotonic()
                if time.monotonic() - self._idle_since > WAIT_SECONDS:
                    minutes = f"{WAIT_SECONDS / 60:g} minutes"
                    raise NoCapacity(f"there were no free resources for {self._needed()} within {minutes}")
                if not self.quota.has_turn():
                    self._pending.close()
                elif (size := self._pending.num_granted(self.quota.reserve())) > 0:
                    self.size = size
                    self.quota.hold(size)
                    return size
                self.quota.wait()
                if not said:
                    say(f"waits for resources for {self._needed()}")
                    said = True
                time.sleep(POLL_SECONDS)
            return 0
        finally:
            self._pending.close()

    def group_trains(self) -> None:
        """The group has its workers."""
        self._idle_since = None
        self.quota.placed()
        self._extra.group_started()

    def wants_another_size(self) -> str | None:
        """Why the group that trains should be replaced by one of another size; None if it should not."""
        target = self.quota.target()
        if target < self.size:
            return "another trial waits for resources"
        if self._extra.any_granted(target - self.size) and self.quota.claim():
            return "there are resources for more workers"
        return None

    def close(self) -> None:
        """The group is over: frees the extra slots."""
        self._extra.close()

    def _needed(self) -> str:
        """The fewest workers, in words."""
        least = self.settings.min_workers
        each = " and ".join(f"{count:g} {name}" for name, count in self.resources.items())
        where = placement_in_words(self.settings.placement)
        return f"{least} worker{'s' * (least != 1)} with {each}{' each' * (least != 1)}{where}"
