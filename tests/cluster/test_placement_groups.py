"""Slots are granted only from resources that nobody else holds."""

from __future__ import annotations

import time

import pytest
import ray
from placement_groups import held
from ray.util import placement_group, remove_placement_group
from whole_runs import wait_for

from raypp.cluster.placement_groups import ExtraSlots, PendingSlots, free_orphans, free_slots

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
WORKER = {"CPU": 1.0}


@pytest.mark.slow
def test_resources_that_others_hold_are_not_granted_until_they_are_freed() -> None:
    before = held()
    others = placement_group([{"CPU": 3}])
    assert others.wait(30)
    assert PendingSlots(1, WORKER, "pack", "mine").num_granted(4) == 1
    pending = PendingSlots(2, WORKER, "pack", "mine")
    assert pending.num_granted(4) == 0, "fewer workers than the least are none"
    asked = held()
    assert pending.num_granted(4) == 0
    assert held() == asked, "it stays queued"
    pending.close()
    assert PendingSlots(1, {"CPU": 0.5}, "strict_spread", "mine").num_granted(1) == 1
    spread = PendingSlots(2, {"CPU": 0.5}, "strict_spread", "mine")
    assert spread.num_granted(2) == 0, "there is one node"
    spread.close()
    own = placement_group([WORKER])
    assert own.wait(30)
    extra = ExtraSlots(WORKER, 1.0, "mine")
    assert not extra.any_granted(1), "the group has not started"
    extra.group_started()
    time.sleep(1.0)
    assert not extra.any_granted(1)
    remove_placement_group(others)
    wait_for(lambda: extra.any_granted(1), "a slot")
    assert not extra.any_granted(0), "no extra slot is wanted any more"
    remove_placement_group(own)
    assert PendingSlots(1, WORKER, "pack", "mine").num_granted(4) == 4, "extra slots that were asked for are removed"
    wait_for(lambda: extra.any_granted(2), "two slots")
    free_slots("another's")
    assert extra.any_granted(2)
    free_slots("mine")  # as after the death of the process that asked
    assert held() == before


def test_what_a_dead_actor_held_is_given_back_and_nothing_else() -> None:
    class Asking:  # here, so that it goes to Ray's process by value: the tests are no package there
        def ask(self) -> str:
            """Id of a group that this actor has asked for."""
            group = placement_group([WORKER])
            assert group.wait(30)
            return str(group.id.hex())

    before = held()
    own = placement_group([WORKER])
    dead, alive = (ray.remote(Asking).options(num_cpus=0).remote() for _ in range(2))
    of_dead, of_alive = ray.get([dead.ask.remote(), alive.ask.remote()])
    ray.kill(dead)

    def is_given_back() -> bool:
        free_orphans()
        return of_dead not in held()

    wait_for(is_given_back, "what a trial held")
    assert held() == before | {own.id.hex(), of_alive}
    ray.kill(alive)
    remove_placement_group(own)
    wait_for(lambda: (free_orphans(), held())[1] == before, "what a dead actor held")
