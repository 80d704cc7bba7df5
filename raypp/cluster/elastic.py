"""The size of a run's groups of workers, where it goes on with fewer and with more again (`workers: [min, max]`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from raypp.cluster.places import MissingPlaces, places_now
from raypp.cluster.shares import Share
from raypp.config import ClusterSettings
from raypp.errors import WorkersLost

POLL_SECONDS = 0.5
WAIT_SECONDS = 1800.0  # for room, where no other trial will leave some: a machine of a cloud's takes minutes to start


class Elastic:
    """Finds the size of each group, and says when one of another size should follow.

    Args:
        resources: of one worker.
        share: what this run may have of the cluster.
        name: of the places that it asks for.
    """

    def __init__(self, settings: ClusterSettings, resources: Mapping[str, float], share: Share, name: str) -> None:
        self.settings, self.resources, self.share, self.name = settings, resources, share, name
        self.size = 0
        self._missing = MissingPlaces(resources, settings.grow_after_seconds, name)

    def next_size(self, leaves: Callable[[], bool], tell: Callable[[str], None]) -> int:
        """The workers of the next group; waits until there is room for the fewest. 0: it `leaves`, and waits no more.

        Raises:
            WorkersLost: there was no room for too long.
        """
        least, share = self.settings.min_workers, self.share
        share.start()
        began, told = time.monotonic(), False
        while not leaves():
            if share.has_turn():
                self.size = places_now(least, share.reserve(), self.resources, self.name)
                if self.size:
                    share.hold(self.size)
                    return self.size
            share.wait()
            if not told:
                tell(f"waits for room for {least} worker{'s' * (least != 1)}")
                told = True
            if share.others_train():
                began = time.monotonic()
            if time.monotonic() - began > WAIT_SECONDS:
                raise WorkersLost(f"there was no room for {least} of its workers for {WAIT_SECONDS / 60:g} minutes")
            time.sleep(POLL_SECONDS)
        return 0

    def group_trains(self) -> None:
        """The group has its workers."""
        self.share.placed()
        self._missing.group_has_its_own()

    def wants_another_size(self) -> str | None:
        """Why the group that trains should leave for one of another size; None: it should not."""
        target = self.share.target()
        if target < self.size:
            return "another trial waits for room"
        if self._missing.granted(target - self.size) and self.share.claim():
            return "there is room for more workers"
        return None

    def close(self) -> None:
        """The group is over: gives back what it has asked for beside."""
        self._missing.close()
