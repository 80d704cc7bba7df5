"""Work beside the main thread, which is left free to hear Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def in_background(work: Callable[[], Any], name: str) -> tuple[threading.Thread, dict[str, Any]]:
    """Runs `work` in a daemon thread: a command that is interrupted does not wait for it.

    Returns:
        The thread, and where its `result` or `error` will be when it has ended.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:  # handed to the main thread, which raises it
            outcome["error"] = error

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread, outcome
