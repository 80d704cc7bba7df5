"""Places for workers are what nobody else holds."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from ray.util import placement_group, placement_group_table, remove_placement_group

from raypp.cluster.places import MissingPlaces, places_now

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
WORKER = {"CPU": 1.0}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_others_hold_is_no_place_until_they_are_done() -> None:
    before = {name for name, group in placement_group_table().items() if group["state"] != "REMOVED"}
    others = placement_group([{"CPU": 3}])
    assert others.wait(30)
    assert places_now(4, WORKER) == 1
    own = placement_group([WORKER])
    assert own.wait(30)
    missing = MissingPlaces(1, WORKER, after_seconds=1.0)
    assert not missing.granted(), "the group has no places yet"
    missing.group_has_its_own()
    time.sleep(1.0)
    assert not missing.granted()
    remove_placement_group(others)
    wait_for(missing.granted)
    missing.close()
    remove_placement_group(own)
    assert places_now(4, WORKER) == 4, "what was asked for is given back"
    left = {name for name, group in placement_group_table().items() if group["state"] != "REMOVED"}
    assert left == before
