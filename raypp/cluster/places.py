"""Places for workers: for how many there is room now, and when for more, by Ray's own scheduler.

A place is one worker's resources in a placement group. It is granted only what nobody else holds, and while it waits,
an autoscaler sees that it does. (Ray Train's own elasticity counts what the nodes have, also where others use it; it
waits a minute for workers on a node that is lost, and lets none save before it grows.)

The groups' names begin with the run's: a process that is killed gives nothing back, and by them another can.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from raypp.storage import Location

SETTLE_SECONDS = 5.0  # for what an earlier group held to be free again
POLL_SECONDS = 0.1


def places_name(run: Location) -> str:
    """The name of all places of a run."""
    return f"places of {run}"


def places_now(least: int, most: int, resources: Mapping[str, float], name: str) -> int:
    """For how many workers with these resources there is room, `most` at most; 0: not even for `least`."""
    # All of the least in one group: who waits for the others must not hold some.
    groups = [_ask(least, resources, name)]
    try:
        _settle(groups)
        if not _granted(groups):
            return 0
        more = [_ask(1, resources, name) for _ in range(most - least)]
        groups += more
        _settle(more)
        return least + _granted(more)
    finally:
        _give_back(groups)


class MissingPlaces:
    """Places that a group of workers could have more; after `close` those of the next group."""

    def __init__(self, resources: Mapping[str, float], after_seconds: float, name: str) -> None:
        """They are asked for so many seconds after the group has its own: it could take them, and who is granted what
        it does not use keeps it from others."""
        self.resources, self.after_seconds, self.name = resources, after_seconds, name
        self._since: float | None = None
        self._groups: list[Any] = []

    def group_has_its_own(self) -> None:
        """From now on the seconds count."""
        self._since = time.monotonic()

    def granted(self, count: int) -> bool:
        """Whether any of so many that it could have now is granted; others than these are given back."""
        if self._since is None or time.monotonic() - self._since < self.after_seconds:
            return False
        _give_back(self._groups[count:])
        self._groups = self._groups[:count]
        self._groups += [_ask(1, self.resources, self.name) for _ in range(count - len(self._groups))]
        return _granted(self._groups) > 0

    def close(self) -> None:
        """Gives them back."""
        _give_back(self._groups)
        self._groups, self._since = [], None


def free_group(group: str) -> None:
    """Gives a placement group back, by its id (hex), if it is not: Ray Train's controller may have ended before it
    could, and Ray's own cleaner needs the dashboard."""
    _free(lambda key, name: key == group)


def free_places(name: str) -> None:
    """Gives back all places with a name, whoever asked for them."""
    _free(lambda key, full: full.rpartition(" ")[0] == name)


def _free(is_meant: Callable[[str, str], bool]) -> None:
    """Gives back the placement groups that are meant, by id and name."""
    from ray._raylet import PlacementGroupID
    from ray.util import placement_group_table
    from ray.util.placement_group import PlacementGroup

    for key, group in placement_group_table().items():
        if group["state"] != "REMOVED" and is_meant(key, group["name"]):
            _give_back([PlacementGroup(PlacementGroupID(bytes.fromhex(key)))])


def _ask(count: int, resources: Mapping[str, float], name: str) -> Any:
    from ray.util import placement_group

    return placement_group([dict(resources)] * count, name=f"{name} {uuid.uuid4().hex}")  # Ray wants them unique


def _settle(groups: list[Any]) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while _granted(groups) < len(groups) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _granted(groups: list[Any]) -> int:
    from ray.util import placement_group_table

    return sum(placement_group_table(group)["state"] == "CREATED" for group in groups)


def _give_back(groups: list[Any]) -> None:
    from ray.util import remove_placement_group

    for group in groups:
        remove_placement_group(group)
