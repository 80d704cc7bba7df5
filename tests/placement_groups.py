"""What is asked of Ray's placement groups in tests."""

from __future__ import annotations

from ray._raylet import GcsClientOptions, GlobalStateAccessor
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util import placement_group_table


def held() -> set[str]:
    """Ids of the placement groups that are asked for or held."""
    return {key for key, group in placement_group_table().items() if group["state"] != "REMOVED"}


def held_on(address: str) -> set[str]:
    """The same of a cluster that this process has not joined, by the address of its head."""
    options = GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    accessor = GlobalStateAccessor(options)
    assert accessor.connect(), f"no cluster answers at {address}"
    groups = map(PlacementGroupTableData.FromString, accessor.get_placement_group_table())
    return {group.placement_group_id.hex() for group in groups if group.state != PlacementGroupTableData.REMOVED}
