"""Masks against full sorts: exact counts, ties in the seeded order, any layout; thresholds."""

from __future__ import annotations

import pytest
import torch
from mask_references import KINDS, largest, largest_together, reference_masks, reference_order, scores_of_kind

from raypp.pruning.masks import (
    Selection,
    ThresholdHint,
    floor_count,
    keep_above,
    keep_largest,
    kept_count,
    tie_order,
)
from raypp.seeds import named_seed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_keep_largest_is_the_head_of_a_full_sort(kind: str, seed: int) -> None:
    scores = scores_of_kind(kind, seed)
    for count in (0, 1, 2, 57, 195, 390, 391):
        mask = largest(scores, count, tie_seed=seed)
        assert mask.dtype == torch.bool
        assert mask.shape == scores.shape
        assert mask.flatten().tolist() == reference_masks([scores], count, [seed])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_keep_largest_global_is_the_head_of_one_sort_over_all_matrices(kind: str) -> None:
    shapes = [(7, 5), (1, 1), (11, 3), (4, 9)]
    scores = [scores_of_kind(kind, seed, shape) for seed, shape in enumerate(shapes)]
    seeds = [5, 5, 2**40 + 3, 8]
    total = sum(matrix.numel() for matrix in scores)
    for count in (0, 1, 13, total // 2, total - 1, total):
        masks = largest_together(scores, count, seeds)
        assert [mask.shape for mask in masks] == [matrix.shape for matrix in scores]
        assert [mask.flatten().tolist() for mask in masks] == reference_masks(scores, count, seeds)


@pytest.mark.parametrize("kind", ["distinct", "constant", "two_valued"])
def test_masks_do_not_depend_on_memory_layout(kind: str) -> None:
    scores = scores_of_kind(kind, 3, (12, 10))
    expected = largest(scores, 40, tie_seed=9)
    transposed = scores.t().contiguous().t()
    strided = torch.stack([scores, scores], dim=-1)[..., 0]
    expanded_rows = scores[:1].expand(12, 10)
    for view in (transposed, strided):
        assert not view.is_contiguous()
        assert torch.equal(largest(view, 40, tie_seed=9), expected)
        above = keep_above([view], 0.0, [1], [9])[0]
        assert above.is_contiguous()
        assert torch.equal(above, keep_above([scores], 0.0, [1], [9])[0])
    assert int(largest(expanded_rows, 40, tie_seed=9).sum()) == 40
    assert torch.equal(largest(expanded_rows, 40, 9), largest(expanded_rows.contiguous(), 40, 9))


def test_masks_do_not_depend_on_the_number_of_threads() -> None:
    scores = scores_of_kind("few_valued", 0, (400, 300))
    threads = torch.get_num_threads()
    try:
        masks = []
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            masks.append(largest(scores, 50_001, tie_seed=1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])
    assert int(masks[0].sum()) == 50_001


def test_ties_are_kept_all_over_the_matrix_and_differently_for_each_seed() -> None:
    scores = torch.zeros(64, 64)
    masks = [largest(scores, 1024, tie_seed=named_seed(0, f"layer.{i}")) for i in range(8)]
    for mask in masks:
        # A quarter of each row and column, within five standard deviations of a random choice (sigma = 3.5).
        assert mask.sum(0).min() > 0
        assert mask.sum(0).max() < 16 + 17
        assert mask.sum(1).max() < 16 + 17
        assert mask.sum(1).min() > 0
    for other in masks[1:]:
        assert 150 < int((masks[0] & other).sum()) < 362  # 256 expected of two independent choices


def test_a_lower_count_keeps_a_subset() -> None:
    scores = scores_of_kind("few_valued", 1)
    larger, smaller = largest(scores, 200, 4), largest(scores, 100, 4)
    assert torch.equal(larger & smaller, smaller)


def test_the_tie_order_is_a_bijection_that_never_leaves_32_bits() -> None:
    index = torch.cat([torch.arange(100_000), torch.arange(2**32 - 100_000, 2**32)])
    for seed in (0, 1, 2**32 - 1, named_seed(3, "x")):
        order = tie_order(index, seed)
        assert len(order.unique()) == len(index)
        assert int(order.min()) >= 0
        assert int(order.max()) < 2**32
        some = [0, 1, 12_345, 99_999, 100_000, 199_999]
        assert [int(order[i]) for i in some] == [reference_order(int(index[i]), seed % 2**32) for i in some]


def test_the_tie_order_is_pinned() -> None:
    # Another order would give another model for the same settings.
    assert tie_order(torch.arange(4), 42).tolist() == [reference_order(i, 42) for i in range(4)]
    assert largest(torch.zeros(8), 3, tie_seed=42).nonzero().flatten().tolist() == [1, 2, 6]


@pytest.mark.parametrize("count", [-1, 7])
def test_impossible_counts_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {count} of 6"):
        largest(torch.zeros(2, 3), count, 0)


@pytest.mark.parametrize(
    ("density", "total", "expected"),
    [
        (0.29, 100, 29),  # 0.29 * 100 == 28.999999999999996
        (0.15, 20, 3),
        (0.57, 100, 57),  # 0.57 * 100 == 56.99999999999999
        (0.15, 19, 2),
        (0.1, 19, 1),
        (1.0, 19, 19),
        (0.999999, 1000, 999),
        (0.001, 19, 1),  # never nothing
        (0.15, 768 * 3072, 353_894),  # 353894.4
    ],
)
def test_kept_count_is_int_of_the_product(density: float, total: int, expected: int) -> None:
    assert kept_count(density, total) == expected


def test_kept_count_reads_every_percentage_as_a_decimal() -> None:
    for total in (100, 1000, 147_456, 2_359_296):
        assert [kept_count(percent / 100, total) for percent in range(1, 101)] == [
            max(1, percent * total // 100) for percent in range(1, 101)
        ]


@pytest.mark.parametrize(
    ("floor", "total", "expected"),
    [(0.005, 1000, 6), (0.005, 147_456, 738), (0.0, 10, 1), (0.999, 10, 10), (0.5, 1, 1)],
)
def test_floor_count_is_the_originals(floor: float, total: int, expected: int) -> None:
    assert floor_count(floor, total) == expected


@pytest.mark.parametrize("seed", range(3))
def test_above_threshold_compares_strictly_and_keeps_the_minimum(seed: int) -> None:
    values = torch.sigmoid(scores_of_kind("distinct", seed))
    for threshold in (0.0, 0.2, 0.5, 0.9):
        mask = keep_above([values], threshold, [5], [0])[0]
        assert mask.flatten().tolist() == [value > threshold for value in values.flatten().tolist()]
    floored = keep_above([values], 2.0, [5], [0])[0]
    assert set(values[floored].tolist()) == set(sorted(values.flatten().tolist())[-5:])


def test_each_matrix_below_its_minimum_is_filled_up_separately() -> None:
    scores = [scores_of_kind("distinct", seed) - shift for seed, shift in ((0, 99.0), (1, 0.0), (2, 99.0))]
    low, middle, last = keep_above(scores, 0.0, [5, 6, 7], [3, 4, 5])
    assert torch.equal(low, largest(scores[0], 5, tie_seed=3))
    assert torch.equal(middle, scores[1] > 0.0)
    assert torch.equal(last, largest(scores[2], 7, tie_seed=5))


def test_a_threshold_that_all_scores_equal_keeps_the_floor_and_not_nothing() -> None:
    # The original's floor kept the scores above the kth value, and so none if all are equal.
    mask = keep_above([torch.zeros(30, 40)], 0.0, [7], [3])[0]
    assert int(mask.sum()) == 7
    assert torch.equal(mask, largest(torch.zeros(30, 40), 7, tie_seed=3))


@pytest.mark.parametrize("matrices", [1, 3])
def test_a_hint_never_changes_a_selection(matrices: int) -> None:
    """Scores as in training: tied, drifting, jumping, constant; the density falls and then stays."""
    generator = torch.Generator().manual_seed(0)
    scores = [torch.zeros(40, 30) for _ in range(matrices)]
    seeds, hint = list(range(matrices)), ThresholdHint()
    total = sum(matrix.numel() for matrix in scores)
    for step in range(60):
        move = 0.0 if step % 7 == 6 else 5.0 if step == 30 else 0.01
        for matrix in scores:
            noise = torch.randn(40, 30, generator=generator)
            matrix += move * (noise.sign() if step < 10 else noise)
        count = int(total * max(0.1, 1 - 0.02 * step))
        expected = largest_together(scores, count, seeds)
        hinted = largest_together(scores, count, seeds, hint)
        assert all(torch.equal(a, b) for a, b in zip(hinted, expected, strict=True)), step
        assert sum(int(mask.sum()) for mask in hinted) == count


def test_selections_in_one_call_are_those_of_separate_calls() -> None:
    matrices = [scores_of_kind(kind, seed) for seed, kind in enumerate(("distinct", "two_valued", "constant"))]
    selections = [Selection([matrix], 40 * place, [place]) for place, matrix in enumerate(matrices)]
    together = keep_largest(selections)
    assert [int(group[0].sum()) for group in together] == [0, 40, 80]
    for selection, (mask,) in zip(selections, together, strict=True):
        assert torch.equal(mask, keep_largest([selection])[0][0])


@pytest.mark.parametrize("count", [30, 200, 900])
@pytest.mark.parametrize("tied", [False, True])
def test_each_matrix_keeps_its_minimum_and_all_together_keep_the_count(count: int, tied: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(20, 15, generator=generator) + shift for shift in (0.0, -9.0, 9.0, -4.0)]
    if tied:
        matrices = [matrix.round() for matrix in matrices]
    minimums, seeds = [7, 8, 9, 6], [1, 2, 3, 4]
    (masks,) = keep_largest([Selection(matrices, count, seeds, None, minimums)])
    assert sum(int(mask.sum()) for mask in masks) == count
    forced = [int(mask.sum()) == least for mask, least in zip(masks, minimums, strict=True)]
    free = [matrix[mask].min() for matrix, mask, short in zip(matrices, masks, forced, strict=True) if not short]
    for matrix, mask, least, short in zip(matrices, masks, minimums, forced, strict=True):
        assert int(mask.sum()) >= least
        if not mask.all():
            assert matrix[~mask].max() <= matrix[mask].min(), "the largest of each matrix"
            if short and free:
                assert matrix[~mask].max() <= min(free), "a minimum does not change the other matrices' threshold"
