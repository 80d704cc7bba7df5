"""The order of the stream: every block once per epoch, repeatable, at most a window at a time."""

from __future__ import annotations

import numpy as np
import pytest

from raypp.corpus.stream import StreamOrder

SIZES = [int(size) for size in np.random.default_rng(0).integers(0, 40, 60)]


def order(batch_size: int = 16, window_blocks: int = 100, seed: int = 42) -> StreamOrder:
    return StreamOrder(SIZES, seed, batch_size, window_blocks)


def blocks(stream: StreamOrder, epoch: int, window: int) -> list[tuple[int, int]]:
    return [(span.group, row) for span in stream.spans(epoch, window) for row in range(span.start, span.stop)]


@pytest.mark.parametrize(("batch_size", "window_blocks"), [(16, 100), (1, 1), (16, 16), (7, 10_000), (500, 100)])
def test_every_block_comes_once_an_epoch_in_windows_of_whole_batches(batch_size: int, window_blocks: int) -> None:
    stream = order(batch_size, window_blocks)
    windows = [blocks(stream, 1, window) for window in range(stream.num_windows)]
    whole = [block for window in windows for block in window]
    assert sorted(whole) == [(group, row) for group, size in enumerate(SIZES) for row in range(size)]
    assert all(len(window) == stream.window_batches * batch_size for window in windows[:-1])
    assert (
        sum(-(-len(window) // batch_size) for window in windows) == stream.num_batches == -(-sum(SIZES) // batch_size)
    )
    assert max(map(len, windows)) <= max(window_blocks, batch_size)


def test_the_order_depends_on_epoch_and_seed_alone() -> None:
    first = blocks(order(), 0, 1)
    assert blocks(order(), 0, 1) == first
    assert blocks(order(), 1, 1) != first
    assert blocks(order(seed=43), 0, 1) != first


def test_groups_are_mixed_over_the_corpus() -> None:
    groups = [span.group for span in order().spans(0, 0)]
    assert np.std(groups) > 8, "a window is not a stretch of the source"
