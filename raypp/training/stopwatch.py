"""The time that a run spends: seconds by activity."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator


class Stopwatch:
    """Adds up wall-clock seconds by activity, as the host sees them.

    A GPU works behind the host, which waits for it a few times a step, when it refreshes masks and when it clips
    gradients. The time of a wait counts for the activity that waits, masks or optimizer, and not for the activity whose
    work the GPU is still doing.
    """

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
        """The speed of this session: steps and real tokens per second, real tokens divided by computed ones (padding
        included), and the part of the time that each activity took. Loading the model is in no activity."""
        elapsed = self.elapsed_seconds
        rates = {"perf/steps_per_second": steps / elapsed, "perf/tokens_per_second": tokens / elapsed}
        rates["perf/padding_efficiency"] = tokens / max(1, computed_tokens)
        return rates | {f"perf/share_{name}": taken / elapsed for name, taken in sorted(self.seconds.items())}
