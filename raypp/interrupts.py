"""Ctrl-C and SIGTERM while a run trains in this process: the step that is under way is finished and saved first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

STOPPING = "stopping: the step that is under way is saved first; once more to stop at once"


@contextlib.contextmanager
def deferred_interrupts(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Holds the first Ctrl-C or SIGTERM back, if it would interrupt this thread; a second one does what it always does.

    Args:
        say: tells the user that it was heard.

    Returns:
        Whether one has come.
    """
    came = threading.Event()
    before: dict[int, Any] = {}

    def hold(number: int, frame: Any) -> None:
        if came.is_set():
            before[number](number, frame)
        came.set()
        # Not from here: the handler may have interrupted whoever is writing to the terminal.
        threading.Thread(target=say, args=(STOPPING,), daemon=True).start()

    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        # What is ignored, or ends the process without a word, is the business of the program around us.
        before = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in before:
        signal.signal(number, hold)
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
