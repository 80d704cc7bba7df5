"""The channel between a command and the processes that train for it: events upstream, interrupt requests downstream.

`InterruptNotice`, the training process's end, also notices when Ray drains the node, as before a preemption.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

NOTICE_POLL_SECONDS = 2.0  # between two checks whether the node is drained; clouds warn 30 to 120 seconds before


class _ChannelActor:
    """The actor in the middle. It runs on the command's node and ends with the command."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.interrupt_requested = asyncio.Event()
        self.stopped = False

    async def send(self, event: Any) -> None:
        self.events.put_nowait(event)

    async def receive(self, timeout_seconds: float) -> list[Any]:
        """All queued events. If there are none, waits until the timeout for the first one."""
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
        self.interrupt_requested.set()

    async def wait_for_interrupt(self) -> bool:
        """Returns after an interrupt is requested: whether it stops the run for good."""
        await self.interrupt_requested.wait()
        return self.stopped


def actor_here(kind: type, *values: Any, name: str | None = None, max_concurrency: int | None = None) -> Any:
    """Starts an actor on this process's node that takes none of the cluster's resources.

    It ends with this process at the latest. If it has a name, other processes find it in the namespace `raypp`.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here, "max_concurrency": max_concurrency}
    named = {} if name is None else {"name": name, "namespace": "raypp"}
    return ray.remote(kind).options(**options, **named).remote(*values)


@dataclass(frozen=True)
class Channel:
    """One end of the channel. Every method raises RayActorError after the command has ended."""

    actor: Any

    @classmethod
    def open(cls, name: str | None = None) -> Channel:
        """Opens a new channel from this process. If it has a name, `Channel.named` finds it."""
        return cls(actor_here(_ChannelActor, name=name, max_concurrency=1000))

    @classmethod
    def named(cls, name: str) -> Channel:
        """The other end of the channel with this name."""
        import ray

        return cls(ray.get_actor(name, namespace="raypp"))

    def send(self, event: Any) -> Any:
        """Sends an event. Returns a reference to its acknowledgement; `ray.get` of it fails if the command ended."""
        return self.actor.send.remote(event)

    def receive(self, timeout_seconds: float) -> list[Any]:
        """All events that were sent. If there are none, waits until the timeout for the first one."""
        import ray

        return list(ray.get(self.actor.receive.remote(timeout_seconds)))

    def interrupt(self, *, stopped: bool = False) -> None:
        """Asks all processes that train to save their current step and stop.

        Args:
            stopped: the sweep has stopped the trial, and will not resume it.
        """
        import ray

        ray.get(self.actor.interrupt.remote(stopped))

    def close(self) -> None:
        import ray

        ray.kill(self.actor)


class InterruptNotice:
    """True when this process must stop: requested, command gone, or node draining."""

    def __init__(self, channel: Channel) -> None:
        self.drained = False
        self.stopped = False
        self._must_stop = threading.Event()
        self._closed = threading.Event()
        self._request = channel.actor.wait_for_interrupt.remote()
        threading.Thread(target=self._listen, daemon=True).start()

    def __call__(self) -> bool:
        return self._must_stop.is_set()

    def close(self) -> None:
        """Cancels the pending call. Otherwise it would count against the actor's concurrency, and Ray would keep this
        process, its caller, alive."""
        import ray

        self._closed.set()
        ray.cancel(self._request)

    def _listen(self) -> None:
        import ray
        from ray._private.state import state
        from ray.exceptions import RayError

        node = ray.get_runtime_context().get_node_id()
        while not self._closed.is_set():
            # ray.train.get_preemption_info() would say the same, but in it all workers have to wait for each other.
            requested = bool(ray.wait([self._request], timeout=NOTICE_POLL_SECONDS)[0])
            if self._closed.is_set():
                return
            self.drained = node in state.get_draining_nodes()
            if requested or self.drained:
                with contextlib.suppress(RayError):  # the command has ended, which is a reason to stop, too
                    self.stopped = requested and ray.get(self._request)
                self._must_stop.set()
                return


@contextlib.contextmanager
def forward_warnings(send: Callable[[str], None]) -> Iterator[None]:
    """Forwards raypp's warnings to `send`, because the log of a Ray process is hidden from the user."""
    handler = _Handler(send)
    logging.getLogger("raypp").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("raypp").removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, send: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.send(record.getMessage())
        except Exception:  # a warning must not make its cause fail; the next event notices that the command has ended
            self.handleError(record)
