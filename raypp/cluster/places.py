"""Places for workers: for how many there is room now, and when for more, by Ray's own scheduler.

A place is a placement group of one worker's resources. It is granted only what nobody else holds, and while it waits,
an autoscaler sees that it does. (Ray Train's own elasticity counts what the nodes have, also where others use it; it
waits a minute for workers on a node that is lost, and lets none save before it grows.)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

SETTLE_SECONDS = 5.0  # for what an earlier group held to be free again
POLL_SECONDS = 0.1


def places_now(most: int, resources: Mapping[str, float]) -> int:
    """For how many workers with these resources there is room, `most` at most."""
    deadline = time.monotonic() + SETTLE_SECONDS
    groups = _ask(most, resources)
    try:
        while (granted := _granted(groups)) < most and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return granted
    finally:
        _give_back(groups)


class MissingPlaces:
    """Places that a group of workers could have more."""

    def __init__(self, count: int, resources: Mapping[str, float], after_seconds: float) -> None:
        """They are asked for so many seconds after the group has its own: it could take them, and who is granted what
        it does not use keeps it from others."""
        self.count, self.resources, self.after_seconds = count, resources, after_seconds
        self._since: float | None = None
        self._groups: list[Any] = []

    def group_has_its_own(self) -> None:
        """From now on the seconds count."""
        self._since = time.monotonic()

    def granted(self) -> bool:
        """Whether there are any now."""
        if self._since is None or time.monotonic() - self._since < self.after_seconds:
            return False
        if not self._groups:
            self._groups = _ask(self.count, self.resources)
        return _granted(self._groups) > 0

    def close(self) -> None:
        """Gives them back."""
        _give_back(self._groups)


def _ask(count: int, resources: Mapping[str, float]) -> list[Any]:
    from ray.util import placement_group

    return [placement_group([dict(resources)]) for _ in range(count)]


def _granted(groups: list[Any]) -> int:
    from ray.util import placement_group_table

    return sum(placement_group_table(group)["state"] == "CREATED" for group in groups)


def _give_back(groups: list[Any]) -> None:
    from ray.util import remove_placement_group

    for group in groups:
        remove_placement_group(group)
