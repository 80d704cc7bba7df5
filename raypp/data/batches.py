"""Global batches: which rows each step trains on, and how they are cut into shares.

Batches are a pure function of (lengths, seed, epoch, batch size). They depend on no state and on no number of workers,
so a run sees the same batches after a resume, and on one worker or eight. Rows are shuffled by sorting the raw numbers
of the bit generator: numpy promises never to change these, but does not promise that of its `permutation`.
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
# Rows are sorted by length within pools of this many global batches: enough to make the lengths in a batch similar, few
# enough to mix well.
POOL_BATCHES = 64
# Purposes of random numbers. Each has a stream of its own.
_ROW_ORDER, _BATCH_ORDER, _WINDOW = 0, 1, 3


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """The examples of one optimizer step."""

    indices: Indices
    """Indices of the rows, by rising length."""
    micro_batches: int
    """Number of shares."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shares(self) -> list[Indices]:
        """Row indices of each share. A share's rows have similar lengths, so that it needs little padding.

        Sizes differ by at most one, the larger ones first; with fewer rows than shares, the last shares are empty.
        """
        size, larger = divmod(len(self.indices), self.micro_batches)
        ends = [share * size + min(share, larger) for share in range(self.micro_batches + 1)]
        return [self.indices[start:end] for start, end in pairwise(ends)]


def batch_counter(settings: TrainSettings, lengths: npt.ArrayLike) -> Callable[[int], int]:
    """A function from an epoch to the number of its global batches.

    Args:
        lengths: tokens of each row, [rows]; only their number matters when `batch_size` is set.
    """
    lengths = np.asarray(lengths)
    if settings.batch_size is not None:
        batches = -(-len(lengths) // settings.batch_size)
        return lambda epoch: batches
    return lambda epoch: len(plan_epoch(lengths, settings, epoch, micro_batches=1))


def plan_epoch(
    lengths: npt.ArrayLike, settings: TrainSettings, epoch: int, micro_batches: int, window: int | None = None
) -> list[GlobalBatch]:
    """All global batches of an epoch: every row once, rows of similar length together, batches in a shuffled order.

    The rows are shuffled, sorted by length within pools of `POOL_BATCHES` batches, and cut into batches; then the
    batches are shuffled.

    Args:
        lengths: tokens of each row, [rows].
        settings: the seed, and the size of a global batch in rows or in tokens.
        epoch: counted from 0.
        micro_batches: number of shares of a global batch.
        window: for streamed data, the number of the part of the epoch with these rows. Each part has its own orders.
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
    """Batches of `batch_size` rows. The remainder is the end of the first shuffle, so a random choice and not the
    longest rows; it makes the last, smaller batch."""
    whole = len(order) - len(order) % batch_size
    pool = np.arange(len(order)) // (POOL_BATCHES * batch_size)
    pool[whole:] = len(order)  # the remainder is a pool of its own, the last
    order = order[np.lexsort((lengths[order], pool))]
    batches = order[:whole].reshape(-1, batch_size)[shuffled(whole // batch_size, *key, _BATCH_ORDER)]
    return [*batches, *([order[whole:]] if whole < len(order) else [])]


def _cut_by_tokens(
    order: Indices, lengths: npt.NDArray[np.int64], batch_tokens: int, key: tuple[int, ...]
) -> list[Indices]:
    """Batches of as many rows as fit into `batch_tokens` when padded to the longest of them; at least one row."""
    widths = padded_length(lengths)
    pool = np.cumsum(widths[order]) // (POOL_BATCHES * batch_tokens)
    order = order[np.lexsort((lengths[order], pool))]
    widths, pool = widths[order], np.sort(pool)
    batches, start = [], 0
    while start < len(order):
        # Lengths rise within a pool, so the padded size of the first n rows rises with n.
        end = min(start + max(1, batch_tokens // int(widths[start])), int(np.searchsorted(pool, pool[start], "right")))
        tokens = widths[start:end] * np.arange(1, end - start + 1)
        size = max(1, int(np.searchsorted(tokens, batch_tokens, "right")))
        batches.append(order[start : start + size])
        start += size
    return [batches[index] for index in shuffled(len(batches), *key, _BATCH_ORDER)]


def shuffled(count: int, *key: int) -> Indices:
    """The numbers 0 to count - 1, in an order that depends on the key (seed, epoch, purpose, …) alone."""
    keys = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(keys, kind="stable")


def plan_tokens(lengths: npt.ArrayLike, max_tokens: int, max_rows: int | None = None) -> list[Indices]:
    """Batches as indices into `lengths`: every row once, the longest first, so that one too large for memory fails at
    once.

    Args:
        lengths: tokens of each row, [rows].
        max_tokens: maximum size of a padded batch, in tokens; a longer row is a batch by itself.
        max_rows: maximum number of rows in a batch; None for no limit.
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
