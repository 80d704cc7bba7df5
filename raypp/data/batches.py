"""Global batches: which rows are learned from at which step, and how they are cut into shares.

A pure function of (lengths, seed, epoch, size of a batch): without state, and ignorant of workers, so a run sees the
same batches after a resume, and on one worker or eight. Rows are shuffled by sorting the bit generator's raw numbers,
which numpy promises never to change; of its `permutation` it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from raypp.config import TrainSettings

Indices = npt.NDArray[np.int64]

WIDTH_MULTIPLE = 8
"""Batches are padded to a multiple of this many tokens, which suits matrix units."""
# Rows are sorted by length within so many global batches: enough for batches of even length, few enough to mix well.
POOL_BATCHES = 64
# What a stream of random numbers is for, so that no two uses share one.
_ROW_ORDER, _BATCH_ORDER, _WINDOW = 0, 1, 3


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


def batch_counter(settings: TrainSettings, lengths: npt.ArrayLike) -> Callable[[int], int]:
    """A function from an epoch to the number of its global batches.

    Args:
        lengths: tokens of each row, [rows]; where batches are cut by rows, only their number matters.
    """
    lengths = np.asarray(lengths)
    if settings.batch_size is not None:
        batches = -(-len(lengths) // settings.batch_size)
        return lambda epoch: batches
    return lambda epoch: len(plan_epoch(lengths, settings, epoch, micro_batches=1))


def plan_epoch(
    lengths: npt.ArrayLike, settings: TrainSettings, epoch: int, micro_batches: int, window: int | None = None
) -> list[GlobalBatch]:
    """All global batches of an epoch: every row once, rows of similar length together, in a shuffled order.

    The rows are shuffled and, in pools of some batches, sorted by length and cut into batches, whose order is shuffled
    again.

    Args:
        lengths: tokens of each row, [rows].
        settings: the seed, and the size of a global batch: its rows, or its tokens.
        epoch: counted from 0.
        micro_batches: shares of a global batch.
        window: number of the part of an epoch whose rows these are, where it is streamed; each has orders of its own.
    """
    lengths = np.asarray(lengths)
    key = (settings.seed, epoch) if window is None else (settings.seed, epoch, _WINDOW, window)
    order = shuffled(len(lengths), *key, _ROW_ORDER)
    if settings.batch_size is not None:
        cut = _cut_by_rows(order, lengths, settings.batch_size, key)
    else:
        assert settings.batch_tokens is not None, "a batch has a size"
        cut = _cut_by_tokens(order, lengths, settings.batch_tokens, key)
    return [GlobalBatch(indices, micro_batches) for indices in cut]


def _cut_by_rows(
    order: Indices, lengths: npt.NDArray[np.int64], batch_size: int, key: tuple[int, ...]
) -> list[Indices]:
    """Batches of so many rows. What fills none is the end of the first shuffle (a random choice, not the longest rows)
    and makes the last, smaller batch."""
    whole = len(order) - len(order) % batch_size
    pool = np.arange(len(order)) // (POOL_BATCHES * batch_size)
    pool[whole:] = len(order)  # a pool of their own, the last
    order = order[np.lexsort((lengths[order], pool))]
    batches = order[:whole].reshape(-1, batch_size)[shuffled(whole // batch_size, *key, _BATCH_ORDER)]
    return [*batches, *([order[whole:]] if whole < len(order) else [])]


def _cut_by_tokens(
    order: Indices, lengths: npt.NDArray[np.int64], batch_tokens: int, key: tuple[int, ...]
) -> list[Indices]:
    """Batches of as many rows as are at most so many tokens when all are padded to the longest; at least one row."""
    widths = padded_length(lengths)
    pool = np.cumsum(widths[order]) // (POOL_BATCHES * batch_tokens)
    order = order[np.lexsort((lengths[order], pool))]
    widths, pool = widths[order], np.sort(pool)
    batches, start = [], 0
    while start < len(order):
        # Within a pool lengths rise, so what a batch of the first n rows takes rises with n.
        end = min(start + max(1, batch_tokens // int(widths[start])), int(np.searchsorted(pool, pool[start], "right")))
        tokens = widths[start:end] * np.arange(1, end - start + 1)
        size = max(1, int(np.searchsorted(tokens, batch_tokens, "right")))
        batches.append(order[start : start + size])
        start += size
    return [batches[place] for place in shuffled(len(batches), *key, _BATCH_ORDER)]


def shuffled(count: int, *key: int) -> Indices:
    """The numbers from 0 in an order that the key (seed, epoch, what it is for, …) decides."""
    keys = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(keys, kind="stable")


def plan_tokens(lengths: npt.ArrayLike, max_tokens: int, max_rows: int | None = None) -> list[Indices]:
    """Batches of places in `lengths`, every row once, longest first (what does not fit in memory fails at once).

    Args:
        max_tokens: tokens of a batch at most, when padded; a longer row is a batch of its own.
        max_rows: rows of a batch at most; None: as many as fill it.
    """
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(-lengths, kind="stable")
    plan, start = [], 0
    while start < len(order):
        size = max(1, max_tokens // int(padded_length(lengths[order[start]])))
        plan.append(order[start : start + (size if max_rows is None else min(size, max_rows))])
        start += len(plan[-1])
    return plan


def padded_length(lengths: npt.ArrayLike) -> Indices:
    """The lengths rounded up to the width that a batch has, in tokens."""
    return np.maximum(1, -(-np.asarray(lengths, np.int64) // WIDTH_MULTIPLE)) * WIDTH_MULTIPLE
