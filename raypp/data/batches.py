"""Global batches: which rows are learned from at which step, and how they are cut into shares.

A pure function of (lengths, seed, epoch, batch size): without state, and ignorant of workers, so a run sees the same
batches after a resume, and on one worker or eight. Rows are shuffled by sorting the bit generator's raw numbers, which
numpy promises never to change; of its `permutation` it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

# Rows are sorted by length within so many global batches: enough for batches of even length, few enough to mix well.
POOL_BATCHES = 64
# What a stream of random numbers is for, so that no two uses share one.
_ROW_ORDER, _BATCH_ORDER = 0, 1


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """The examples of one optimizer step."""

    indices: Indices
    """Places in `lengths`, by rising length."""
    micro_batches: int
    """Number of shares."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shares(self) -> list[Indices]:
        """The fixed shares: neighbours in length, so that each is padded little.

        Sizes differ by at most one, the larger ones first; with fewer rows than shares, the last ones are empty.
        """
        size, larger = divmod(len(self.indices), self.micro_batches)
        ends = [share * size + min(share, larger) for share in range(self.micro_batches + 1)]
        return [self.indices[start:end] for start, end in pairwise(ends)]


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Global batches of an epoch; the last one may be smaller."""
    return -(-rows // batch_size)


def plan_epoch(
    lengths: npt.ArrayLike, *, seed: int, epoch: int, batch_size: int, micro_batches: int
) -> list[GlobalBatch]:
    """All global batches of an epoch: every row once, rows of similar length together, in a shuffled order.

    The rows are shuffled and, in pools of some batches, sorted by length and cut into batches, whose order is shuffled
    again. What fills no batch is the end of the first shuffle (a random choice, not the longest rows) and makes the
    last, smaller batch.

    Args:
        lengths: tokens of each row, [rows].
        batch_size: rows of a global batch.
        micro_batches: shares of a global batch.
    """
    lengths = np.asarray(lengths)
    order = _shuffled(len(lengths), seed, epoch, _ROW_ORDER)
    whole = len(order) - len(order) % batch_size
    pool = np.arange(len(order)) // (POOL_BATCHES * batch_size)
    pool[whole:] = len(order)  # a pool of their own, the last
    order = order[np.lexsort((lengths[order], pool))]
    batches = order[:whole].reshape(-1, batch_size)[_shuffled(whole // batch_size, seed, epoch, _BATCH_ORDER)]
    plan = [GlobalBatch(indices, micro_batches) for indices in batches]
    if whole < len(order):
        plan.append(GlobalBatch(order[whole:], micro_batches))
    return plan


def _shuffled(count: int, seed: int, epoch: int, purpose: int) -> Indices:
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch, purpose])).random_raw(count)
    return np.argsort(keys, kind="stable")


def plan_evaluation(lengths: npt.ArrayLike, batch_size: int) -> list[Indices]:
    """Batches of places in `lengths`, every row once, longest first (what does not fit in memory fails at once)."""
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def plan_tokens(lengths: npt.ArrayLike, max_tokens: int, multiple_of: int = 8) -> list[Indices]:
    """As `plan_evaluation`, but each batch has as many rows as fill `max_tokens` when padded (at least one)."""
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(-lengths, kind="stable")
    plan, start = [], 0
    while start < len(order):
        size = max(1, max_tokens // _padded(lengths[order[start]], multiple_of))
        plan.append(order[start : start + size])
        start += size
    return plan


def padding_efficiency(plan: Sequence[GlobalBatch], lengths: npt.ArrayLike, multiple_of: int = 8) -> float:
    """Tokens / tokens after padding, over all shares of a plan: 1 where nothing is padded."""
    lengths = np.asarray(lengths, np.int64)
    tokens = padded = 0
    for share in (share for batch in plan for share in batch.shares if len(share)):
        tokens += int(lengths[share].sum())
        padded += len(share) * _padded(lengths[share].max(), multiple_of)
    return tokens / padded


def _padded(length: int, multiple_of: int) -> int:
    return max(1, -(-int(length) // multiple_of)) * multiple_of
