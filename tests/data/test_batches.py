"""Global batches: every row once an epoch, similar lengths together, and the same again for the same arguments."""

from __future__ import annotations

import numpy as np
import pytest

from raypp.config import TrainSettings
from raypp.data.batches import (
    POOL_BATCHES,
    GlobalBatch,
    batch_counter,
    padded_length,
    plan_epoch,
    plan_tokens,
)


def lengths_of(rows: int, seed: int = 0) -> np.ndarray:
    """Lengths like those of sentences: many short ones, few long ones."""
    return np.random.default_rng(seed).gamma(3.0, 10.0, rows).astype(np.int64).clip(3, 128)


def plan_of(
    rows: int, *, seed: int = 42, epoch: int = 0, batch_size: int = 32, micro_batches: int = 4
) -> list[GlobalBatch]:
    settings = TrainSettings(seed=seed, batch_size=batch_size)
    return plan_epoch(lengths_of(rows), settings, epoch, micro_batches)


def token_plan(rows: int, batch_tokens: int, *, seed: int = 42, epoch: int = 0) -> list[GlobalBatch]:
    return plan_epoch(lengths_of(rows), TrainSettings(seed=seed, batch_tokens=batch_tokens), epoch, micro_batches=4)


def flat(plan: list[GlobalBatch]) -> list[int]:
    return [int(row) for batch in plan for share in batch.shares for row in share]


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 64, 3668, POOL_BATCHES * 32, POOL_BATCHES * 32 + 1])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_every_row_comes_once_an_epoch(rows: int, micro_batches: int) -> None:
    plan = plan_of(rows, micro_batches=micro_batches)
    assert sorted(flat(plan)) == list(range(rows))
    assert len(plan) == -(-rows // 32) == batch_counter(TrainSettings(batch_size=32), lengths_of(rows))(0)
    assert [len(batch) for batch in plan[:-1]] == [32] * (len(plan) - 1)
    if plan:
        assert len(plan[-1]) == (rows - 1) % 32 + 1


def test_a_plan_depends_on_all_arguments_and_on_nothing_else() -> None:
    plan = flat(plan_of(1000))
    assert flat(plan_of(1000)) == plan
    assert flat(plan_of(1000, epoch=1)) != plan
    assert flat(plan_of(1000, seed=43)) != plan
    # (seed, epoch) are not added: epoch 1 of a seed is not epoch 0 of the next seed
    assert flat(plan_of(1000, seed=43, epoch=0)) != flat(plan_of(1000, seed=42, epoch=1))


def test_plan_is_pinned() -> None:
    """Runs of old must stay what they were: numpy's raw bits and stable sorting are the same everywhere and for
    ever."""
    lengths = np.array([5, 9, 3, 7, 5, 8, 4, 6, 5, 5])
    plan = plan_epoch(lengths, TrainSettings(seed=7, batch_size=4), epoch=2, micro_batches=2)
    assert [[share.tolist() for share in batch.shares] for batch in plan] == [
        [[7, 3], [5, 1]],
        [[6, 8], [4, 0]],
        [[2], [9]],
    ]


def test_plan_does_not_depend_on_how_it_is_cut() -> None:
    whole = plan_of(1000, micro_batches=1)
    for micro_batches in (2, 3, 8, 40):
        for batch, cut in zip(whole, plan_of(1000, micro_batches=micro_batches), strict=True):
            assert np.array_equal(batch.indices, cut.indices)
            assert np.array_equal(batch.indices, np.concatenate(cut.shares))


@pytest.mark.parametrize(
    ("rows", "sizes"), [(32, [8, 8, 8, 8]), (30, [8, 8, 7, 7]), (5, [2, 1, 1, 1]), (3, [1, 1, 1, 0]), (1, [1, 0, 0, 0])]
)
def test_shares_are_as_even_as_they_can_be_and_may_be_empty(rows: int, sizes: list[int]) -> None:
    batch = GlobalBatch(np.arange(rows), 4)
    assert [len(share) for share in batch.shares] == sizes
    assert np.array_equal(np.concatenate(batch.shares), batch.indices)


def test_lengths_rise_within_a_batch_and_are_close() -> None:
    lengths = lengths_of(20_000)
    plan = plan_of(20_000)
    assert all((np.diff(lengths[batch.indices]) >= 0).all() for batch in plan)
    spread = np.median([np.ptp(lengths[batch.indices]) for batch in plan])
    shuffled = np.random.default_rng(0).permutation(20_000)[: 32 * 625].reshape(625, 32)
    assert spread <= 1
    assert np.median(np.ptp(lengths[shuffled], axis=1)) > 50


def test_order_of_batches_is_shuffled() -> None:
    """There is no curriculum: a batch's mean length does not depend on its number."""
    lengths = lengths_of(20_000)
    means = [lengths[batch.indices].mean() for batch in plan_of(20_000)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.1


def test_smaller_last_batch_is_a_random_choice_of_rows() -> None:
    """It does not have the longest rows of a pool, which would then always be in such a batch."""
    lengths = lengths_of(1000)
    last = np.concatenate([plan_of(1000, epoch=epoch)[-1].indices for epoch in range(200)])
    assert len(last) == 200 * (1000 % 32)
    assert abs(lengths[last].mean() - lengths.mean()) < 4 * lengths.std() / np.sqrt(len(last))


def test_rows_are_in_other_batches_in_each_epoch() -> None:
    first, second = ({frozenset(batch.indices.tolist()) for batch in plan_of(3668, epoch=epoch)} for epoch in (0, 1))
    assert not first & second


def padding_efficiency(plan: list[GlobalBatch], lengths: np.ndarray) -> float:
    """Tokens divided by tokens with padding."""
    shares = [lengths[share] for batch in plan for share in batch.shares if len(share)]
    return sum(int(share.sum()) for share in shares) / sum(
        len(share) * int(padded_length(share.max())) for share in shares
    )


def test_bucketing_wastes_little() -> None:
    lengths = lengths_of(20_000)
    random = np.random.default_rng(0).permutation(20_000).reshape(-1, 32)
    unsorted = padding_efficiency([GlobalBatch(rows, 4) for rows in random], lengths)
    assert padding_efficiency(plan_of(20_000), lengths) > 0.87
    assert unsorted < 0.6


def test_evaluation_takes_every_row_once_longest_first() -> None:
    lengths = lengths_of(1043)
    plan = plan_tokens(lengths, 64 * 128, max_rows=64)
    rows = np.concatenate(plan)
    assert sorted(rows) == list(range(1043))
    assert (np.diff(lengths[rows]) <= 0).all()
    assert [len(batch) for batch in plan] == [64] * 16 + [19]
    assert plan_tokens([], 64) == []
    assert [len(batch) for batch in plan_tokens([500] * 20, 64 * 128, max_rows=64)] == [16, 4]


def test_token_batches_fill_their_budget_and_do_not_exceed_it() -> None:
    lengths = lengths_of(5000)
    plan = plan_tokens(lengths, 1024)
    assert sorted(np.concatenate(plan)) == list(range(5000))
    padded = [len(batch) * -(-lengths[batch].max() // 8) * 8 for batch in plan]
    assert max(padded) <= 1024
    assert np.mean(padded[:-1]) > 0.9 * 1024
    assert [len(batch) for batch in plan_tokens([2000, 3], 1024)] == [1, 1]


@pytest.mark.parametrize("rows", [0, 1, 50, 5000])
def test_batches_cut_by_tokens_hold_every_row_once_within_the_budget(rows: int) -> None:
    lengths = lengths_of(rows)
    plan = token_plan(rows, 1024)
    assert sorted(flat(plan)) == list(range(rows))
    padded = [len(batch) * -(-lengths[batch.indices].max() // 8) * 8 for batch in plan]
    assert max(padded, default=0) <= 1024
    if rows == 5000:
        assert np.mean(padded) > 0.85 * 1024
        assert len({len(batch) for batch in plan}) > 10, "short examples come in larger batches"
        counter = batch_counter(TrainSettings(batch_tokens=1024, seed=42), lengths)
        assert [counter(epoch) for epoch in (0, 1)] == [len(plan), len(token_plan(rows, 1024, epoch=1))]


def test_batches_cut_by_tokens_differ_by_epoch_and_seed_and_come_in_any_order() -> None:
    plan = token_plan(5000, 1024)
    assert flat(token_plan(5000, 1024)) == flat(plan)
    assert flat(token_plan(5000, 1024, epoch=1)) != flat(plan)
    assert flat(token_plan(5000, 1024, seed=43)) != flat(plan)
    means = [lengths_of(5000)[batch.indices].mean() for batch in plan]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


def test_an_example_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    plan = plan_epoch(np.array([3, 100, 4]), TrainSettings(batch_tokens=16), 0, micro_batches=1)
    assert sorted(batch.indices.tolist() for batch in plan) == [[0, 2], [1]]
