"""Trials share a cluster: evenly, none grows into what another one needs to start, and none waits for ever."""

from __future__ import annotations

import itertools
import random

import pytest

from raypp.cluster.shares import Shares


def running(room: int | None, *sizes: int, least: int = 1, most: int = 4, trials: int | None = None) -> Shares:
    """Trials a, b, … that train with so many workers each."""
    shares = Shares(least, most)
    shares.update(room, len(sizes) if trials is None else trials)
    for name, size in zip("abcdef", sizes, strict=False):
        shares.hold(name, size)
    return shares


def started(shares: Shares, name: str) -> int:
    """The places that a trial may ask for when it starts."""
    shares.start(name)
    assert shares.has_turn(name)
    size = shares.reserve(name)
    shares.hold(name, size)
    shares.placed(name)
    return size


@pytest.mark.parametrize(
    ("room", "trials", "least", "most", "sizes"),
    [
        (4, 2, 1, 2, [2, 2]),
        (5, 2, 1, 4, [3, 2]),
        (4, 3, 1, 4, [2, 1, 1]),  # the first one leaves what each of the others needs
        (8, 2, 3, 8, [4, 4]),
        (16, 2, 1, 4, [4, 4]),
        (8, 1, 1, 4, [4]),
    ],
)
def test_room_is_shared_evenly_when_trials_start(
    room: int, trials: int, least: int, most: int, sizes: list[int]
) -> None:
    shares = running(room, least=least, most=most, trials=trials)
    assert [started(shares, name) for name in "abcdef"[:trials]] == sizes
    assert sum(sizes) <= room


def test_none_grows_into_what_a_trial_that_could_start_needs() -> None:
    shares = running(4, 1, 1, 1, trials=4)  # Tune is about to start a fourth
    assert shares.target("a") == 1
    shares.update(4, 3)  # there is none any more
    assert [shares.target(name) for name in "abc"] == [2, 2, 2]
    assert shares.claim("b")
    assert not shares.claim("a"), "one at a time"
    assert shares.target("a") == 1, "what it has asked for, it gives back"
    assert started(shares, "b") == 2
    assert shares.target("a") == 1, "there is nothing left"


def test_where_nodes_come_as_they_are_needed_all_have_the_least_before_one_has_more() -> None:
    shares = running(None, trials=3)
    assert [started(shares, name) for name in "ab"] == [1, 1]
    assert shares.target("a") == 1
    assert started(shares, "c") == 4, "as far as there are nodes now"
    shares.hold("c", 1)
    assert [shares.target(name) for name in "abc"] == [4, 4, 4]
    shares.start("a")  # its node was lost
    assert shares.target("b") == 1
    shares.wait("a")
    assert started(running(None, 0, 1), "b") == 1


def test_the_largest_gives_way_to_one_that_waits_in_vain() -> None:
    shares = running(5, 2, 2, 1, most=2)
    shares.start("b")  # a node with two workers was lost, which Ray does not know yet
    assert shares.reserve("b") == 2
    assert [shares.target(name) for name in "ac"] == [2, 1], "it may yet be given what it needs"
    shares.wait("b")
    assert [shares.target(name) for name in "ac"] == [1, 1]
    shares.start("a")  # it has left its group
    assert not shares.has_turn("a"), "else it might take what it has just left"
    assert shares.target("c") == 1, "one has given way already"
    assert started(shares, "b") == 1, "no more than it needs"
    shares.update(3, 3)
    assert started(shares, "a") == 1


def test_who_waits_has_its_turn_in_order_and_is_forgotten_when_it_ends() -> None:
    shares = running(2, 1, 1, trials=4)
    for name in "cd":
        shares.start(name)
        shares.wait(name)
    assert [shares.has_turn(name) for name in "cd"] == [True, False]
    assert shares.others_train("c")
    shares.gone("c")
    assert shares.has_turn("d")
    shares.gone("a"), shares.gone("b")
    assert not shares.others_train("d"), "nobody will leave room for it"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_all_trials_train_again(seed: int) -> None:
    """Nodes of one worker come and go at random; what Ray grants is what is free."""
    chance = random.Random(seed)
    least, trials = chance.choice([1, 2]), chance.choice([2, 3, 5])
    shares = Shares(least, least + 3)
    names = "abcdef"[:trials]
    sizes = dict.fromkeys(names, 0)  # what each really holds
    most = trials * (least + 3)

    def end_group(name: str) -> None:
        sizes[name] = 0
        shares.start(name)

    def start_groups(room: int) -> None:
        for name in [name for name in names if not sizes[name]]:
            if shares.has_turn(name):
                wanted, free = shares.reserve(name), room - sum(sizes.values())
                sizes[name] = min(wanted, free) if free >= least else 0
            if sizes[name]:
                shares.hold(name, sizes[name])
                shares.placed(name)
            else:
                shares.wait(name)

    for name in names:
        end_group(name)
    for step in itertools.count():
        steady = step >= 30  # then nothing changes any more
        room = trials * least if steady else chance.randint(least, most)
        shares.update(room, trials)
        while sum(sizes.values()) > room:
            end_group(chance.choice([name for name in names if sizes[name]]))  # the node of one of its workers is gone
        start_groups(room)
        for name in [name for name in names if sizes[name]]:
            target, free = shares.target(name), room - sum(sizes.values())
            if target < sizes[name] or (target > sizes[name] and free and shares.claim(name)):
                end_group(name)
                start_groups(room)
        if steady and all(size >= least for size in sizes.values()):
            break
        assert step < 60, (sizes, shares.waiting)
