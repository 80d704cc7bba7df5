"""A group of workers waits for resources: it says so once, until it is interrupted, but not forever."""

from __future__ import annotations

import pytest
from placement_groups import held
from ray.util import placement_group, remove_placement_group

from raypp.cluster import group_sizes
from raypp.cluster.group_sizes import GroupSizes
from raypp.cluster.worker_quotas import WorkerQuota
from raypp.config import ClusterSettings
from raypp.errors import NoCapacity
from raypp.events import never

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def sizes() -> GroupSizes:
    """Of a run with two workers of two CPUs each, which is all there are."""
    return GroupSizes(ClusterSettings(workers=2), {"CPU": 2.0}, WorkerQuota.alone(2, 2), "slots of a run")


@pytest.mark.slow
def test_a_group_starts_when_those_before_it_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    before = held()
    others = placement_group([{"CPU": 1}])
    assert others.wait(30)
    waiting, said = sizes(), list[str]()

    def interrupted_once_said() -> bool:
        return bool(said)

    assert waiting.next_size(interrupted_once_said, said.append) == 0
    assert said == ["waits for resources for 2 workers with 2 CPU each"]
    assert held() == before | {others.id.hex()}, "a group that stops waiting removes its slots"

    monkeypatch.setattr(group_sizes, "WAIT_SECONDS", 1.0)
    with pytest.raises(NoCapacity, match=r"no free resources for 2 workers with 2 CPU each within 0\.01\d* minutes"):
        sizes().next_size(never, said.append)

    monkeypatch.undo()
    looks = 0

    def others_end_then() -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            remove_placement_group(others)
        return False

    said.clear()
    assert waiting.next_size(others_end_then, said.append) == 2
    assert len(said) == 1, "it is said once"
    assert held() == before, "they are free for the group"
