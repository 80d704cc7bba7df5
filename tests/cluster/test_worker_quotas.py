"""Trials share a cluster: evenly, none grows into what another one needs to start, and none waits for ever."""

from __future__ import annotations

import itertools
import random

import pytest

from raypp.cluster.worker_quotas import WorkerQuotas


def running(
    capacity: int | None, *sizes: int, least: int = 1, most: int = 4, trials: int | None = None
) -> WorkerQuotas:
    """Trials a, b, … that train with so many workers each."""
    quotas = WorkerQuotas(least, most)
    quotas.update(capacity, len(sizes) if trials is None else trials)
    for name, size in zip("abcdef", sizes, strict=False):
        quotas.hold(name, size)
    return quotas


def started(quotas: WorkerQuotas, name: str) -> int:
    """The slots that a trial may ask for when it starts."""
    quotas.start(name)
    assert quotas.has_turn(name)
    size = quotas.reserve(name)
    quotas.hold(name, size)
    quotas.placed(name)
    return size


@pytest.mark.parametrize(
    ("capacity", "trials", "least", "most", "sizes"),
    [
        (4, 2, 1, 2, [2, 2]),
        (5, 2, 1, 4, [3, 2]),
        (4, 3, 1, 4, [2, 1, 1]),  # the first one leaves what each of the others needs
        (8, 2, 3, 8, [4, 4]),
        (16, 2, 1, 4, [4, 4]),
        (8, 1, 1, 4, [4]),
    ],
)
def test_capacity_is_shared_evenly_when_trials_start(
    capacity: int, trials: int, least: int, most: int, sizes: list[int]
) -> None:
    quotas = running(capacity, least=least, most=most, trials=trials)
    assert [started(quotas, name) for name in "abcdef"[:trials]] == sizes
    assert sum(sizes) <= capacity


def test_none_grows_into_what_a_trial_that_could_start_needs() -> None:
    quotas = running(4, 1, 1, 1, trials=4)  # Tune is about to start a fourth
    assert quotas.target("a") == 1
    quotas.update(4, 3)  # there is none any more
    assert [quotas.target(name) for name in "abc"] == [2, 2, 2]
    assert quotas.claim("b")
    assert not quotas.claim("a"), "one at a time"
    assert quotas.target("a") == 1, "what it has asked for, it gives back"
    assert started(quotas, "b") == 2
    assert quotas.target("a") == 1, "there is nothing left"


def test_where_nodes_come_as_they_are_needed_all_have_the_least_before_one_has_more() -> None:
    quotas = running(None, trials=3)
    assert [started(quotas, name) for name in "ab"] == [1, 1]
    assert quotas.target("a") == 1
    assert started(quotas, "c") == 4, "as far as there are nodes now"
    quotas.hold("c", 1)
    assert [quotas.target(name) for name in "abc"] == [4, 4, 4]
    quotas.start("a")  # its node was lost
    assert quotas.target("b") == 1
    quotas.wait("a")
    assert started(running(None, 0, 1), "b") == 1


def test_the_largest_gives_way_to_one_that_waits_in_vain() -> None:
    quotas = running(5, 2, 2, 1, most=2)
    quotas.start("b")  # a node with two workers was lost, which Ray does not know yet
    assert quotas.reserve("b") == 2
    assert [quotas.target(name) for name in "ac"] == [2, 1], "it may yet be given what it needs"
    quotas.wait("b")
    assert [quotas.target(name) for name in "ac"] == [1, 1]
    quotas.start("a")  # it has left its group
    assert not quotas.has_turn("a"), "else it might take what it has just left"
    assert quotas.target("c") == 1, "one has given way already"
    assert started(quotas, "b") == 1, "no more than it needs"
    quotas.update(3, 3)
    assert started(quotas, "a") == 1


def test_who_waits_has_its_turn_in_order_and_is_forgotten_when_it_ends() -> None:
    quotas = running(2, 1, 1, trials=4)
    for name in "cd":
        quotas.start(name)
        quotas.wait(name)
    assert [quotas.has_turn(name) for name in "cd"] == [True, False]
    assert quotas.others_train("c")
    quotas.gone("c")
    assert quotas.has_turn("d")
    quotas.gone("a"), quotas.gone("b")
    assert not quotas.others_train("d"), "no trial will free resources for it"
    quotas.start("e")
    quotas.wait("e")
    assert quotas.reserve("d")
    assert not quotas.others_train("e"), "who only asks has no workers either"


def test_where_nodes_come_as_they_are_needed_all_that_wait_ask() -> None:
    quotas = running(None, 1, trials=3)
    for name in "bc":
        quotas.start(name)
        quotas.wait(name)
    assert all(map(quotas.has_turn, "bc")), "else the autoscaler would start a node after the other"
    quotas.update(1, 3)
    assert [quotas.has_turn(name) for name in "bc"] == [True, False]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_all_trials_train_again(seed: int) -> None:
    """Nodes of one worker come and go at random; what Ray grants is what is free."""
    chance = random.Random(seed)
    least, trials = chance.choice([1, 2]), chance.choice([2, 3, 5])
    quotas = WorkerQuotas(least, least + 3)
    names = "abcdef"[:trials]
    sizes = dict.fromkeys(names, 0)  # what each really holds
    most = trials * (least + 3)

    def end_group(name: str) -> None:
        sizes[name] = 0
        quotas.start(name)

    def start_groups(capacity: int) -> None:
        for name in [name for name in names if not sizes[name]]:
            if quotas.has_turn(name):
                wanted, free = quotas.reserve(name), capacity - sum(sizes.values())
                sizes[name] = min(wanted, free) if free >= least else 0
            if sizes[name]:
                quotas.hold(name, sizes[name])
                quotas.placed(name)
            else:
                quotas.wait(name)

    for name in names:
        end_group(name)
    for step in itertools.count():
        steady = step >= 30  # then nothing changes any more
        capacity = trials * least if steady else chance.randint(least, most)
        quotas.update(capacity, trials)
        while sum(sizes.values()) > capacity:
            end_group(chance.choice([name for name in names if sizes[name]]))  # the node of one of its workers is gone
        start_groups(capacity)
        for name in [name for name in names if sizes[name]]:
            target, free = quotas.target(name), capacity - sum(sizes.values())
            if target < sizes[name] or (target > sizes[name] and free and quotas.claim(name)):
                end_group(name)
                start_groups(capacity)
        if steady and all(size >= least for size in sizes.values()):
            break
        assert step < 60, (sizes, quotas.waiting)
