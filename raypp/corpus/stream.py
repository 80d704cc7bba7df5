"""The order in which a corpus is read: row groups in a shuffled order, shuffled again inside a window.

A pure function of (sizes of the row groups, seed, epoch, batch size): what is read at a step is known without reading
what came before, so a run resumes exactly, and one window is in memory at a time. A window holds whole batches, so the
number of batches does not depend on where windows end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raypp.data.batches import shuffled

_GROUP_ORDER = 2  # what a stream of random numbers is for, beside those of data/batches.py


@dataclass(frozen=True)
class Span:
    """Neighbouring blocks of one row group."""

    group: int
    """The row group, counted over the whole corpus in the source's order."""
    start: int
    stop: int


@dataclass(frozen=True)
class StreamOrder:
    """The order of one run."""

    group_sizes: Sequence[int]
    """Blocks in each row group, in the source's order."""
    seed: int
    batch_size: int
    """Blocks in a global batch."""
    window_blocks: int
    """Blocks in memory at a time, at most (but a batch at least)."""

    @property
    def num_blocks(self) -> int:
        return sum(self.group_sizes)

    @property
    def window_batches(self) -> int:
        """Batches in a window; the last one of an epoch may have fewer."""
        return max(1, self.window_blocks // self.batch_size)

    @property
    def num_batches(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_blocks // self.batch_size)

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return -(-self.num_batches // self.window_batches)

    def spans(self, epoch: int, window: int) -> list[Span]:
        """What a window holds. Those of an epoch together hold every block once."""
        order = shuffled(len(self.group_sizes), self.seed, epoch, _GROUP_ORDER)
        sizes = np.asarray(self.group_sizes, np.int64)[order]
        ends = np.cumsum(sizes)
        first = window * self.window_batches * self.batch_size
        last = min(first + self.window_batches * self.batch_size, self.num_blocks)
        touched = range(int(np.searchsorted(ends, first, "right")), int(np.searchsorted(ends, last, "left")) + 1)
        begins = ends - sizes
        spans = []
        for place in touched:
            start, stop = max(0, first - int(begins[place])), min(int(sizes[place]), last - int(begins[place]))
            if start < stop:
                spans.append(Span(int(order[place]), start, stop))
        return spans
