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


class AwaitedPlaces:
    """Places for a group that is to start, which keep their place in Ray's line until they are granted or given back:
    an autoscaler sees for how long they are asked for, and Ray keeps a record of each that was ever made."""

    def __init__(self, least: int, resources: Mapping[str, float], placement: str, name: str) -> None:
        """For no fewer workers than the least, laid over the nodes as `cluster.placement` says."""
        self.least, self.resources, self.placement, self.name = least, resources, placement, name
        self._groups: list[Any] = []

    def room(self, most: int) -> int:
        """For how many workers there is room, `most` at most, after some seconds' waiting; 0: not even for the least.
        What is granted is given back for the group to take."""
        if not self._groups:
            # All of the least in one group: who waits for the others must not hold some.
            self._groups = [_ask(self.least, self.resources, self.name, self.placement)]
        _settle(self._groups)
        if not _granted(self._groups):
            return 0
        try:
            more = [_ask(1, self.resources, self.name) for _ in range(most - self.least)]
            self._groups += more
            _settle(more)
            return self.least + _granted(more)
        finally:
            self.close()

    def close(self) -> None:
        """Gives them back."""
        _give_back(self._groups)
        self._groups = []


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


def free_orphans() -> None:
    """Gives back what actors of this command have asked for and still held when they died, such as a controller of Ray
    Train's with what its workers were to have: Ray keeps it until the command ends. Detached groups are left, which are
    meant to outlive who made them."""
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    own = ray.get_runtime_context().get_job_id()
    for entry in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(entry)
        is_removed = group.state == PlacementGroupTableData.REMOVED
        if is_removed or group.is_detached or group.creator_job_id.hex() != own:
            continue
        # Of what no actor has asked for, Ray says that its actor is dead, too.
        if group.creator_actor_dead and not ray.ActorID(group.creator_actor_id).is_nil():
            _give_back([_group(group.placement_group_id)])


def _free(is_meant: Callable[[str, str], bool]) -> None:
    """Gives back the placement groups that are meant, by id and name."""
    from ray.util import placement_group_table

    for key, group in placement_group_table().items():
        if group["state"] != "REMOVED" and is_meant(key, group["name"]):
            _give_back([_group(bytes.fromhex(key))])


def _group(key: bytes) -> Any:
    """A placement group by its id."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    return PlacementGroup(PlacementGroupID(key))


def _ask(count: int, resources: Mapping[str, float], name: str, placement: str = "pack") -> Any:
    from ray.util import placement_group

    unique = f"{name} {uuid.uuid4().hex}"  # as Ray wants it
    return placement_group([dict(resources)] * count, strategy=placement.upper(), name=unique)


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
