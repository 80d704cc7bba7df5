"""What is asked of Ray's placement groups in tests."""

from __future__ import annotations

from ray.util import placement_group_table


def held() -> set[str]:
    """Ids of the placement groups that are asked for or held."""
    return {key for key, group in placement_group_table().items() if group["state"] != "REMOVED"}
