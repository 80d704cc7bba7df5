"""Places for workers are what nobody else holds."""

from __future__ import annotations

import time

import pytest
import ray
from placement_groups import held
from ray.util import placement_group, remove_placement_group
from whole_runs import wait_for

from raypp.cluster.places import AwaitedPlaces, MissingPlaces, free_orphans, free_places

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
WORKER = {"CPU": 1.0}


def test_what_others_hold_is_no_place_until_they_are_done() -> None:
    before = held()
    others = placement_group([{"CPU": 3}])
    assert others.wait(30)
    assert AwaitedPlaces(1, WORKER, "pack", "mine").room(4) == 1
    awaited = AwaitedPlaces(2, WORKER, "pack", "mine")
    assert awaited.room(4) == 0, "fewer than the least is nothing"
    asked = held()
    assert awaited.room(4) == 0
    assert held() == asked, "it stays in line"
    awaited.close()
    assert AwaitedPlaces(1, {"CPU": 0.5}, "strict_spread", "mine").room(1) == 1
    spread = AwaitedPlaces(2, {"CPU": 0.5}, "strict_spread", "mine")
    assert spread.room(2) == 0, "there is one node"
    spread.close()
    own = placement_group([WORKER])
    assert own.wait(30)
    missing = MissingPlaces(WORKER, 1.0, "mine")
    assert not missing.granted(1), "the group has no places yet"
    missing.group_has_its_own()
    time.sleep(1.0)
    assert not missing.granted(1)
    remove_placement_group(others)
    wait_for(lambda: missing.granted(1), "a place")
    assert not missing.granted(0), "it may have none any more"
    remove_placement_group(own)
    assert AwaitedPlaces(1, WORKER, "pack", "mine").room(4) == 4, "what was asked for is given back"
    wait_for(lambda: missing.granted(2), "two places")
    free_places("another's")
    assert missing.granted(2)
    free_places("mine")  # as when who has asked was killed
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
