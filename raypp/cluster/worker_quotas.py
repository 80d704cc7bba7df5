"""How the trials of a sweep share the cluster when each has an elastic number of workers.

- Every trial that runs, or could run now, is entitled to its minimum. The remaining capacity is shared evenly.
- A trial never takes what another one needs to start, and none grows while another one starts.
- Waiting trials are served first come, first served, one at a time. (On an autoscaling cluster all of them ask at once,
  so that the autoscaler sees everything that is lacking.) A trial gets its whole minimum or nothing.
- If the first waiting trial is refused its minimum (a node was lost), the trial with the most workers saves its step
  and resumes with fewer.

Ray Tune reserves nothing for such a trial: its workers are in placement groups that Tune does not know of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raypp.cluster.channel import actor_here
from raypp.config import ClusterSettings


class WorkerQuotas:
    """The workers of each trial, and the queue of those that wait. For a sweep, an actor holds this object."""

    def __init__(self, least: int, most: int) -> None:
        """
        Args:
            least, most: limits of the number of workers in each group.
        """
        self.least, self.most = least, most
        self.capacity: int | None = None
        self.trials = 1
        self.held: dict[str, int] = {}
        """Workers by trial, counted also while its next group starts; 0 while it waits."""
        self.starting: set[str] = set()
        """Trials between two groups: their group is about to end, or does not train yet."""
        self.waiting: list[str] = []
        """Trials that wait for slots, in order. Unless the cluster autoscales, only the first one may ask."""
        self.refused: set[str] = set()
        """Those of them that were refused even the minimum on their turn. Next time they ask for no more than that."""
        self.must_shrink = False
        """Whether the first waiting trial was refused, and no trial has shrunk since. The largest must (`target`)."""

    def update(self, capacity: int | None, trials: int) -> None:
        """Sets the state of the cluster.

        Args:
            capacity: workers that fit on the nodes; None on an autoscaling cluster.
            trials: how many run, or could run now.
        """
        self.capacity, self.trials = capacity, trials

    def start(self, name: str) -> None:
        """The trial has no group: its last one is over, or its first one is to come."""
        self.starting.add(name)
        self.must_shrink = False  # this may be the trial that shrinks

    def has_turn(self, name: str) -> bool:
        """Whether the trial may ask for slots now. On an autoscaling cluster all may, so that Ray sees all requests."""
        return self.capacity is None or self._is_first(name)

    def reserve(self, name: str) -> int:
        """How many slots the trial may ask for. They count as its own from now on."""
        # After a refusal it asks only for its minimum: the trial that shrinks keeps its share of what it frees, and the
        # capacity may still include a lost node.
        self.held[name] = self.least if name in self.refused else self._due(name)
        return self.held[name]

    def wait(self, name: str) -> None:
        """Its minimum could not be allocated."""
        self.held[name] = 0
        if self._is_first(name):
            self.must_shrink = True
            self.refused.add(name)
        if name not in self.waiting:
            self.waiting.append(name)

    def hold(self, name: str, size: int) -> None:
        """The trial starts a group of this size."""
        self.held[name] = size

    def placed(self, name: str) -> None:
        """The trial's group trains."""
        self.starting.discard(name)
        self._dequeue(name)

    def target(self, name: str) -> int:
        """How many workers a group that trains should have: more if Ray has the resources, fewer if it must shrink."""
        held = self.held[name]
        if self.must_shrink and held > self.least and name == max(self.held, key=self.held.__getitem__):
            return max(self.least, held - self.least)
        return held if self.starting - {name} else max(held, self._due(name))

    def claim(self, name: str) -> bool:
        """Whether the trial may restart as a larger group. If so, no other trial may until it has."""
        if self.starting:
            return False
        self.starting.add(name)
        return True

    def others_train(self, name: str) -> bool:
        """Whether other trials have workers, which they will free when they end. Trials that wait have none, although
        slots count as theirs while they ask."""
        return any(held for other, held in self.held.items() if other != name and other not in self.waiting)

    def gone(self, name: str) -> None:
        """The trial has ended or failed."""
        self.held.pop(name, None)
        self.starting.discard(name)
        self._dequeue(name)

    def _due(self, name: str) -> int:
        others = [held for other, held in self.held.items() if other != name]
        lacking = others.count(0) + max(0, self.trials - 1 - len(others))
        if self.capacity is None:
            return self.least if lacking else self.most
        even = math.ceil(self.capacity / max(self.trials, len(others) + 1))
        left = self.capacity - sum(others) - lacking * self.least
        return max(self.least, min(self.most, even, left))

    def _is_first(self, name: str) -> bool:
        return not self.waiting or self.waiting[0] == name

    def _dequeue(self, name: str) -> None:
        self.refused.discard(name)
        if name in self.waiting:
            self.waiting.remove(name)
            self.must_shrink = False


@dataclass(frozen=True)
class WorkerQuota:
    """A run's view of the quotas. The methods are those of `WorkerQuotas`, for this run."""

    name: str
    ask: Callable[..., Any]
    """Calls a method of the quotas by its name."""

    @classmethod
    def alone(cls, least: int, most: int) -> WorkerQuota:
        """The quota of a run that shares the cluster with no other trial."""
        quotas = WorkerQuotas(least, most)
        return cls("", lambda method, *values: getattr(quotas, method)(*values))

    @classmethod
    def of(cls, quotas: str, name: str) -> WorkerQuota:
        """The quota of a trial.

        Args:
            quotas: name of the sweep's quotas.
            name: of the trial.
        """
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
    """The quotas of a sweep, as the command sees them."""

    name: str
    """`WorkerQuota.of` finds them by it."""
    actor: Any

    @classmethod
    def open(cls, name: str, settings: ClusterSettings) -> SweepQuotas:
        """Starts new ones in an actor on this process's node."""
        return cls(name, actor_here(WorkerQuotas, settings.min_workers, settings.max_workers, name=name))

    def update(self, capacity: int | None, trials: int) -> None:
        import ray

        ray.get(self.actor.update.remote(capacity, trials))

    def gone(self, name: str) -> None:
        import ray

        ray.get(self.actor.gone.remote(name))
