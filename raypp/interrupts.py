"""Ctrl-C and SIGTERM while a run trains in this process: the current step is finished and saved first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

STOPPING = "stopping: the current step is saved first; interrupt again to stop at once"
STILL_WAITS = "{phase}: still waits for {whom} to save the step; interrupt again to stop at once"


@contextlib.contextmanager
def deferred_interrupts(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Defers the first Ctrl-C or SIGTERM if it would interrupt this thread; a second one has its usual effect.

    Args:
        say: shows the user a message when the first one arrives.

    Yields:
        A function that tells whether one has arrived.
    """
    arrived = threading.Event()
    before: dict[int, Any] = {}

    def hold(number: int, frame: Any) -> None:
        if arrived.is_set():
            before[number](number, frame)
        arrived.set()
        # On another thread, because the handler may have interrupted a write to the terminal, which holds its lock.
        threading.Thread(target=say, args=(STOPPING,), daemon=True).start()

    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        # Signals that are ignored, or that end the process at once, are left as the surrounding program has set them.
        before = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in before:
        signal.signal(number, hold)
    try:
        yield arrived.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
