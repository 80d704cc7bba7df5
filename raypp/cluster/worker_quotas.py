"""How the trials of a sweep share the cluster when each has workers that come and go.

Every trial that runs, or could run now, is due its minimum. What is left beyond that is shared evenly, and none grows
while another starts: it never takes what another one needs to start. Where a trial waits for its minimum in vain (a
node was lost), the one with the most workers gives way: it saves its step and goes on with fewer. Who waits has its
turn in order, and one at a time asks: who came first is served first. (Where nodes start as they are needed, all ask:
an autoscaler is to see what all of them lack.) Nobody holds a part of what it needs.

Ray Tune reserves nothing for such a trial: its workers are in placement groups that Tune does not see.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raypp.cluster.channel import actor_here
from raypp.config import ClusterSettings


class WorkerQuotas:
    """Who has how many workers, and who waits. A single run has one of its own; that of a sweep is in an actor."""

    def __init__(self, least: int, most: int) -> None:
        """Every group has at least, and at most, so many workers."""
        self.least, self.most = least, most
        self.room: int | None = None
        self.trials = 1
        self.held: dict[str, int] = {}
        """Workers by trial, also while it starts again; 0: it waits."""
        self.starting: set[str] = set()
        """Trials whose group is about to end, or does not train yet."""
        self.waiting: list[str] = []
        """Trials that wait for places, in order; where the nodes are all there are, only the first may ask."""
        self.in_vain: set[str] = set()
        """Of these, those refused even the minimum when it was their turn; next time they ask for no more than that."""
        self.pleads = False
        """Whether the first in line was refused since a trial last gave way: then the largest shrinks (`target`)."""

    def update(self, room: int | None, trials: int) -> None:
        """What the nodes have room for now, None where they start as they are needed; the trials that run or could."""
        self.room, self.trials = room, trials

    def start(self, name: str) -> None:
        """Its group is over, or the first one is to come."""
        self.starting.add(name)
        self.pleads = False  # it may be the one that has given way

    def has_turn(self, name: str) -> bool:
        """Whether it may ask for places now: where nodes start as they are needed, all that wait, so that all are."""
        return self.room is None or self._is_first(name)

    def reserve(self, name: str) -> int:
        """How many places it may ask for, which are counted as its own from now on."""
        # What another one has given up is shared with that one; and who asked in vain may have counted a lost node.
        self.held[name] = self.least if name in self.in_vain else self._due(name)
        return self.held[name]

    def wait(self, name: str) -> None:
        """It was not even given the least."""
        self.held[name] = 0
        if self._is_first(name):
            self.pleads = True
            self.in_vain.add(name)
        if name not in self.waiting:
            self.waiting.append(name)

    def hold(self, name: str, size: int) -> None:
        """It starts a group of this size."""
        self.held[name] = size

    def placed(self, name: str) -> None:
        """Its group trains."""
        self.starting.discard(name)
        self._wait_no_more(name)

    def target(self, name: str) -> int:
        """How many workers a group that trains should have: more, if Ray has room, fewer if it is to give way."""
        held = self.held[name]
        if self.pleads and held > self.least and name == max(self.held, key=self.held.__getitem__):
            return max(self.least, held - self.least)
        return held if self.starting - {name} else max(held, self._due(name))

    def claim(self, name: str) -> bool:
        """Whether it may start again as a larger group; if so, no other one may before it has."""
        if self.starting:
            return False
        self.starting.add(name)
        return True

    def others_train(self, name: str) -> bool:
        """Whether other trials have workers: they will end, and leave theirs to those that wait. Those that wait
        themselves have none, though places are counted as theirs while they ask."""
        return any(held for other, held in self.held.items() if other != name and other not in self.waiting)

    def gone(self, name: str) -> None:
        """It has ended, or failed."""
        self.held.pop(name, None)
        self.starting.discard(name)
        self._wait_no_more(name)

    def _due(self, name: str) -> int:
        others = [held for other, held in self.held.items() if other != name]
        lacking = others.count(0) + max(0, self.trials - 1 - len(others))
        if self.room is None:
            return self.least if lacking else self.most
        even = math.ceil(self.room / max(self.trials, len(others) + 1))
        left = self.room - sum(others) - lacking * self.least
        return max(self.least, min(self.most, even, left))

    def _is_first(self, name: str) -> bool:
        return not self.waiting or self.waiting[0] == name

    def _wait_no_more(self, name: str) -> None:
        self.in_vain.discard(name)
        if name in self.waiting:
            self.waiting.remove(name)
            self.pleads = False


@dataclass(frozen=True)
class WorkerQuota:
    """A run's own end of the quotas."""

    name: str
    ask: Callable[..., Any]
    """Calls a method of the quotas by its name."""

    @classmethod
    def alone(cls, least: int, most: int) -> WorkerQuota:
        """That of a run which shares with nobody."""
        quotas = WorkerQuotas(least, most)
        return cls("", lambda method, *values: getattr(quotas, method)(*values))

    @classmethod
    def of(cls, quotas: str, name: str) -> WorkerQuota:
        """That of a trial, from the quotas with a name."""
        import ray

        actor = ray.get_actor(quotas, namespace="raypp")
        return cls(name, lambda method, *values: ray.get(getattr(actor, method).remote(*values)))

    def start(self) -> None:
        self.ask("start", self.name)

    def has_turn(self) -> bool:
        return bool(self.ask("has_turn", self.name))

    def reserve(self) -> int:
        return int(self.ask("reserve", self.name))

    def wait(self) -> None:
        self.ask("wait", self.name)

    def hold(self, size: int) -> None:
        self.ask("hold", self.name, size)

    def placed(self) -> None:
        self.ask("placed", self.name)

    def target(self) -> int:
        return int(self.ask("target", self.name))

    def claim(self) -> bool:
        return bool(self.ask("claim", self.name))

    def others_train(self) -> bool:
        return bool(self.ask("others_train", self.name))


@dataclass(frozen=True)
class SweepQuotas:
    """The command's end of the quotas of its trials."""

    name: str
    """By which `WorkerQuota.of` finds them."""
    actor: Any

    @classmethod
    def open(cls, name: str, settings: ClusterSettings) -> SweepQuotas:
        """New ones, in an actor beside this process."""
        return cls(name, actor_here(WorkerQuotas, settings.min_workers, settings.max_workers, name=name))

    def update(self, room: int | None, trials: int) -> None:
        import ray

        ray.get(self.actor.update.remote(room, trials))

    def gone(self, name: str) -> None:
        import ray

        ray.get(self.actor.gone.remote(name))
