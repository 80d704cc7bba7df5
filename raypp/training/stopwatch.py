"""Where a run's time goes: seconds by activity."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator


class Stopwatch:
    """Adds up wall-clock seconds by activity. On a GPU, work that is queued counts where the host waits for it."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - before

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self.started

    def speed(self, steps: int, tokens: int, computed_tokens: int) -> dict[str, float]:
        """Steps and real tokens per second of this session, real tokens by computed ones (padding included), and the
        part of its time that each activity took."""
        elapsed = self.elapsed_seconds
        rates = {"perf/steps_per_second": steps / elapsed, "perf/tokens_per_second": tokens / elapsed}
        rates["perf/padding_efficiency"] = tokens / max(1, computed_tokens)
        return rates | {f"perf/share_{name}": taken / elapsed for name, taken in sorted(self.seconds.items())}
