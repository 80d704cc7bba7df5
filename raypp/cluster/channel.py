"""The channel between a command and those who train for it: events and warnings one way, the wish that they leave the
other way.

Who trains hears of one more thing here: that its node is about to be taken away, as a spot machine is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

NOTICE_POLL_SECONDS = 2.0  # between two looks at whether the node is drained; clouds warn 30 to 120 seconds before


class _ChannelActor:
    """The actor in the middle. It lives where the command does, and ends with it."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.wish = asyncio.Event()
        self.stopped = False

    async def tell(self, event: Any) -> None:
        self.events.put_nowait(event)

    async def take(self, timeout_seconds: float) -> list[Any]:
        """All that was told, or what comes first within so many seconds."""
        events: list[Any] = []
        if timeout_seconds and self.events.empty():
            try:
                events.append(await asyncio.wait_for(self.events.get(), timeout_seconds))
            except TimeoutError:
                return []
        while not self.events.empty():
            events.append(self.events.get_nowait())
        return events

    async def interrupt(self, stopped: bool) -> None:
        self.stopped = stopped
        self.wish.set()

    async def wait_for_interrupt(self) -> bool:
        """Returns when it is wished: whether the run is stopped for good."""
        await self.wish.wait()
        return self.stopped


def actor_here(kind: type, *values: Any, name: str | None = None, max_concurrency: int | None = None) -> Any:
    """An actor that takes nothing of the cluster, on this process's node. It ends with this process at the latest; with
    a name, others find it in the namespace `raypp`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here, "max_concurrency": max_concurrency}
    named = {} if name is None else {"name": name, "namespace": "raypp"}
    return ray.remote(kind).options(**options, **named).remote(*values)


@dataclass(frozen=True)
class Channel:
    """The channel as both ends hold it. All methods raise RayActorError when the command at its other end has ended."""

    actor: Any

    @classmethod
    def open(cls, name: str | None = None) -> Channel:
        """A new channel from this process. With a name, `Channel.named` finds it."""
        return cls(actor_here(_ChannelActor, name=name, max_concurrency=1000))

    @classmethod
    def named(cls, name: str) -> Channel:
        """The other end of a channel with a name."""
        import ray

        return cls(ray.get_actor(name, namespace="raypp"))

    def tell(self, event: Any) -> Any:
        """Sends an event. Returns the answer's reference: an error where nobody listens any more."""
        return self.actor.tell.remote(event)

    def take(self, timeout_seconds: float) -> list[Any]:
        """The events that were sent, after waiting so long for a first one."""
        import ray

        return list(ray.get(self.actor.take.remote(timeout_seconds)))

    def interrupt(self, *, stopped: bool = False) -> None:
        """Asks all who train to save the step they are at, and leave.

        Args:
            stopped: for good: a sweep does not go on with them.
        """
        import ray

        ray.get(self.actor.interrupt.remote(stopped))

    def close(self) -> None:
        import ray

        ray.kill(self.actor)


class InterruptNotice:
    """Whether who trains in this process is to leave: it is wished, the command has ended, or the node is drained."""

    def __init__(self, channel: Channel) -> None:
        self.drained = False
        self.stopped = False
        self._leave = threading.Event()
        self._closed = threading.Event()
        self._wish = channel.actor.wait_for_interrupt.remote()
        threading.Thread(target=self._listen, daemon=True).start()

    def __call__(self) -> bool:
        return self._leave.is_set()

    def close(self) -> None:
        """Ends the waiting: else the channel would keep a place for it, and Ray this process, which has called it."""
        import ray

        self._closed.set()
        ray.cancel(self._wish)

    def _listen(self) -> None:
        import ray
        from ray._private.state import state
        from ray.exceptions import RayError

        node = ray.get_runtime_context().get_node_id()
        while not self._closed.is_set():
            # ray.train.get_preemption_info() says the same, but all workers have to wait for each other in it.
            wished = bool(ray.wait([self._wish], timeout=NOTICE_POLL_SECONDS)[0])
            if self._closed.is_set():
                return
            self.drained = node in state.get_draining_nodes()
            if wished or self.drained:
                with contextlib.suppress(RayError):  # the command has ended, which is a wish as well
                    self.stopped = wished and ray.get(self._wish)
                self._leave.set()
                return


@contextlib.contextmanager
def warnings_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Hands raypp's warnings over: the log of a process of Ray's is hidden."""
    handler = _Handler(tell)
    logging.getLogger("raypp").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("raypp").removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.tell(record.getMessage())
        except Exception:  # what was to be warned of must not fail by it: a dead command is heard of at the next event
            self.handleError(record)
