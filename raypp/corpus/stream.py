"""The order in which a corpus is read: its row groups are shuffled, and blocks are shuffled again within a window.

The order is a pure function of (sizes of the row groups, seed, epoch, batch size). So the blocks of a step are known
without reading those before it, and a run resumes exactly. One window is in memory at a time. It holds whole batches,
so the number of batches does not depend on the size of windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raypp.data.batches import shuffled

_GROUP_ORDER = 2  # purpose of random numbers, next to those in data/batches.py


@dataclass(frozen=True)
class Span:
    """Consecutive blocks of one row group."""

    group: int
    """Number of the row group in the whole corpus, in the source's order."""
    start: int
    """The first block, counted within the row group."""
    stop: int
    """The block after the last one."""


@dataclass(frozen=True)
class StreamOrder:
    """The order in which one run reads the corpus."""

    group_sizes: Sequence[int]
    """Number of blocks in each row group, in the source's order."""
    seed: int
    batch_size: int
    """Number of blocks in a global batch."""
    window_blocks: int
    """Maximum number of blocks in a window; a window holds at least one batch."""

    @property
    def num_blocks(self) -> int:
        return sum(self.group_sizes)

    @property
    def window_batches(self) -> int:
        """Number of batches in a window; the last window of an epoch may have fewer."""
        return max(1, self.window_blocks // self.batch_size)

    @property
    def num_batches(self) -> int:
        """Number of batches in an epoch."""
        return -(-self.num_blocks // self.batch_size)

    @property
    def num_windows(self) -> int:
        """Number of windows in an epoch."""
        return -(-self.num_batches // self.window_batches)

    def spans(self, epoch: int, window: int) -> list[Span]:
        """The blocks of a window. The windows of an epoch together hold every block once."""
        order = shuffled(len(self.group_sizes), self.seed, epoch, _GROUP_ORDER)
        sizes = np.asarray(self.group_sizes, np.int64)[order]
        ends = np.cumsum(sizes)
        first = window * self.window_batches * self.batch_size
        last = min(first + self.window_batches * self.batch_size, self.num_blocks)
        touched = range(int(np.searchsorted(ends, first, "right")), int(np.searchsorted(ends, last, "left")) + 1)
        begins = ends - sizes
        spans = []
        for index in touched:
            start, stop = max(0, first - int(begins[index])), min(int(sizes[index]), last - int(begins[index]))
            if start < stop:
                spans.append(Span(int(order[index]), start, stop))
        return spans
