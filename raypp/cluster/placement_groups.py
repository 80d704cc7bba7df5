"""Placement groups for a run's workers: how many workers can start now, and whether more could be added.

A slot is the resources of one worker, as a bundle of a placement group. Ray grants it only resources that nobody else
holds, and an autoscaler sees slots that are still pending. Ray Train's own elasticity is not used: it counts all
resources of the nodes, including those that others use; it waits a minute for the workers on a lost node; and it does
not let workers save before it grows.

The name of each placement group begins with the name of its run. A process that is killed cannot free its groups;
with the name, another process can.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from raypp.storage import Location

SETTLE_SECONDS = 5.0  # until Ray has freed what an earlier group held
POLL_SECONDS = 0.1


def slots_name(run: Location) -> str:
    """The name of all slots of a run."""
    return f"slots of {run}"


class PendingSlots:
    """Placement groups that stay queued in Ray until granted or removed.

    They are not created anew for every look: an autoscaler sees how long each has been queued, and Ray keeps a record
    of every placement group that was ever created.
    """

    def __init__(self, least: int, resources: Mapping[str, float], placement: str, name: str) -> None:
        """
        Args:
            least: the fewest workers that the group can start with.
            resources: of one worker.
            placement: as `cluster.placement`.
        """
        self.least, self.resources, self.placement, self.name = least, resources, placement, name
        self._groups: list[Any] = []

    def num_granted(self, most: int) -> int:
        """How many workers, `most` at most, can start now; waits some seconds. 0 if not even the fewest can.

        Granted slots are freed again, so that the group can take them.
        """
        if not self._groups:
            # The fewest workers share one placement group, so that none is held while the others are pending.
            self._groups = [_create(self.least, self.resources, self.name, self.placement)]
        _settle(self._groups)
        if not _count_granted(self._groups):
            return 0
        try:
            more = [_create(1, self.resources, self.name) for _ in range(most - self.least)]
            self._groups += more
            _settle(more)
            return self.least + _count_granted(more)
        finally:
            self.close()

    def close(self) -> None:
        """Removes the placement groups."""
        _remove(self._groups)
        self._groups = []


class ExtraSlots:
    """Slots by which a group of workers that trains could grow. After `close` it serves the next group."""

    def __init__(self, resources: Mapping[str, float], after_seconds: float, name: str) -> None:
        """
        Args:
            resources: of one worker.
            after_seconds: seconds after the group has started. Asked only after this delay; otherwise the group could
                take these slots itself, and held slots block other jobs.
        """
        self.resources, self.after_seconds, self.name = resources, after_seconds, name
        self._started: float | None = None
        self._groups: list[Any] = []

    def group_started(self) -> None:
        """The group has its workers: the delay begins."""
        self._started = time.monotonic()

    def any_granted(self, count: int) -> bool:
        """Whether at least one of `count` slots is granted. Keeps no more than `count` slots."""
        if self._started is None or time.monotonic() - self._started < self.after_seconds:
            return False
        _remove(self._groups[count:])
        self._groups = self._groups[:count]
        self._groups += [_create(1, self.resources, self.name) for _ in range(count - len(self._groups))]
        return _count_granted(self._groups) > 0

    def close(self) -> None:
        """Removes the placement groups."""
        _remove(self._groups)
        self._groups, self._started = [], None


def free_group(group: str) -> None:
    """Removes a placement group by its id (hex), unless it is removed already.

    Ray Train's controller may have ended before it could do so, and Ray's own cleanup needs the dashboard.
    """
    _remove_where(lambda key, name: key == group)


def free_slots(name: str) -> None:
    """Removes all slots with this name, whichever process created them."""
    _remove_where(lambda key, full: full.rpartition(" ")[0] == name)


def free_orphans() -> None:
    """Removes the placement groups that dead actors of this command still hold.

    An example is Ray Train's controller, with the group of its workers: Ray keeps it until the command ends. Detached
    groups stay, because they are meant to outlive their creator.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    own = ray.get_runtime_context().get_job_id()
    for entry in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(entry)
        is_removed = group.state == PlacementGroupTableData.REMOVED
        if is_removed or group.is_detached or group.creator_job_id.hex() != own:
            continue
        # A group that no actor created is also marked with a dead creator; its creator's id is nil.
        if group.creator_actor_dead and not ray.ActorID(group.creator_actor_id).is_nil():
            _remove([_group(group.placement_group_id)])


def _remove_where(is_meant: Callable[[str, str], bool]) -> None:
    """Removes the placement groups for whose id and name `is_meant` is true."""
    from ray.util import placement_group_table

    for key, group in placement_group_table().items():
        if group["state"] != "REMOVED" and is_meant(key, group["name"]):
            _remove([_group(bytes.fromhex(key))])


def _group(key: bytes) -> Any:
    """The placement group with this id."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    return PlacementGroup(PlacementGroupID(key))


def _create(count: int, resources: Mapping[str, float], name: str, placement: str = "pack") -> Any:
    from ray.util import placement_group

    unique = f"{name} {uuid.uuid4().hex}"  # Ray requires unique names
    return placement_group([dict(resources)] * count, strategy=placement.upper(), name=unique)


def _settle(groups: list[Any]) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while _count_granted(groups) < len(groups) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _count_granted(groups: list[Any]) -> int:
    from ray.util import placement_group_table

    return sum(placement_group_table(group)["state"] == "CREATED" for group in groups)


def _remove(groups: list[Any]) -> None:
    from ray.util import remove_placement_group

    for group in groups:
        remove_placement_group(group)
