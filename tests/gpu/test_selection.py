"""Masks by the Triton kernels against full sorts: exact counts, ties in the seeded order, any layout; thresholds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from c_kernels import without_kernels
from mask_references import KINDS, largest, largest_together, reference_masks, scores_of_kind
from torch import Tensor
from triton_place import Place, needs_triton
from waits import Waits

from raypp.gpu import kernels as gpu_kernels
from raypp.pruning.masks import Selection, ThresholdHint, keep_above, keep_largest

pytestmark = needs_triton
FLOATS = [kind for kind in KINDS if kind not in ("halves", "integers")]  # all other scores are plain torch's
TILE = 32 * 1024  # scores of one program


@pytest.fixture(autouse=True)
def used(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Selections use the kernels; the names of those that they used."""
    names: list[str] = []

    class Watched:
        def __getattr__(self, name: str) -> object:
            names.append(name)
            return getattr(place.kernels, name)

    without_kernels(monkeypatch)
    monkeypatch.setattr(gpu_kernels, "kernels_for", lambda *tensors: Watched())
    return names


@pytest.mark.parametrize("kind", FLOATS)
def test_the_kernels_keep_the_head_of_a_full_sort(kind: str, place: Place, used: list[str]) -> None:
    scores = scores_of_kind(kind, 1).to(place.device)
    for count in (1, 57, 195, 390):
        mask = largest(scores, count, tie_seed=1)
        assert mask.dtype == torch.bool
        assert mask.flatten().tolist() == reference_masks([scores], count, [1])[0]
    assert [name for name in used if name != "clear"] == ["select_largest"] * 4


@pytest.mark.parametrize("kind", FLOATS)
def test_the_kernels_keep_the_head_of_one_sort_over_all_matrices(kind: str, place: Place) -> None:
    shapes = [(7, 5), (1, 1), (11, 3), (4, 9)]
    scores = [scores_of_kind(kind, seed, shape).to(place.device) for seed, shape in enumerate(shapes)]
    seeds = [5, 5, 2**40 + 3, 8]
    total = sum(matrix.numel() for matrix in scores)
    for count in (0, 1, 13, total // 2, total - 1, total):
        masks = largest_together(scores, count, seeds)
        assert [mask.shape for mask in masks] == [matrix.shape for matrix in scores]
        assert [mask.flatten().tolist() for mask in masks] == reference_masks(scores, count, seeds)


def test_scores_of_every_magnitude_are_in_order(place: Place) -> None:
    """All floats that differ in one bit of the exponent or the fraction, subnormal ones included, of both signs."""
    bits = torch.tensor([0, *(1 << bit for bit in range(31)), *(0x7F7FFFFF - (1 << bit) for bit in range(23))])
    scores = bits.to(torch.int32).view(torch.float32)
    scores = torch.cat([scores, -scores]).to(place.device)
    masks = keep_largest([Selection([scores], count, [0]) for count in range(1, len(scores))])
    for count, (mask,) in enumerate(masks, 1):
        assert mask.tolist() == reference_masks([scores], count, [0])[0]


@pytest.mark.parametrize(
    ("sizes", "shift"),
    [
        ([TILE, 2 * TILE + 1024, 4096], 0),  # wide loads only
        ([TILE, 2 * TILE + 1500, 3, TILE + 1, 0], 0),
        ([TILE, 4096], 1),  # at addresses that no wide load can read
    ],
)
def test_matrices_of_several_programs_and_of_one_are_selected_by_the_same_launch(
    sizes: list[int], shift: int, place: Place
) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(size + shift, generator=generator).to(place.device) for size in sizes]
    scores = [values[shift:] for values in whole]
    for values in scores[:2]:
        values[[5, 17, 1000]] = torch.tensor([math.inf, -math.inf, -0.0], device=place.device)
    masks = [mask for (mask,) in keep_largest([Selection([values], len(values) // 3, [0]) for values in scores])]
    for values, mask in zip(scores, masks, strict=True):
        expected = torch.zeros(len(values), dtype=torch.bool, device=place.device)
        expected[values.argsort(descending=True)[: len(values) // 3]] = True
        assert torch.equal(mask, expected)
    above = keep_above(scores, 0.5, [0] * len(scores), [0] * len(scores))
    assert all(torch.equal(mask, values > 0.5) for mask, values in zip(above, scores, strict=True))


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_ties_are_in_their_order_whether_the_kernels_list_all_of_them_or_not(
    scope: str, missing: int, place: Place, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes, seeds = [TILE + 1500, 2000, 1000], [1, 2**62 + 5, 3]
    scores = [torch.randn(size, generator=generator).mul(200).round().to(place.device) for size in sizes]
    group_size = 1 if scope == "local" else 3
    groups = [slice(start, start + group_size) for start in range(0, 3, group_size)]
    counts, number_of_ties = [], 0
    for group in groups:
        ordered = torch.cat(scores[group]).sort(descending=True).values
        highest = ordered == ordered[len(ordered) // 4]
        counts.append(int(highest.nonzero()[0]) + 1)  # all that are tied but the first are dropped
        number_of_ties += int(highest.sum())
    assert number_of_ties > len(groups) + 10
    monkeypatch.setattr(place.kernels, "MAX_LISTED", number_of_ties - missing)
    kept = keep_largest(
        [Selection(scores[group], count, seeds[group]) for group, count in zip(groups, counts, strict=True)]
    )
    for group, count, masks in zip(groups, counts, kept, strict=True):
        expected = reference_masks(scores[group], count, seeds[group])
        assert [mask.tolist() for mask in masks] == expected
    assert used == (["select_largest"] if missing else ["select_largest", "clear"])


@pytest.mark.parametrize("max_listed", [4096, 16])
def test_a_matrix_that_loses_too_many_ties_is_filled_up_to_its_minimum(
    max_listed: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place.kernels, "MAX_LISTED", max_listed)
    scores = [torch.zeros(size, device=place.device) for size in (10, 30)]
    selection = Selection(scores, 20, [1, 2])
    fewest = int(keep_largest([selection])[0][0].sum())
    assert fewest < 9
    (masks,) = keep_largest([replace(selection, minimums=[9, 0])])
    assert [int(mask.sum()) for mask in masks] == [9, 11]


@pytest.mark.parametrize("scope", ["local", "global"])
def test_for_ties_the_host_waits_no_more_often_for_more_matrices(scope: str, place: Place) -> None:
    def waits(number: int) -> int:
        scores = [scores_of_kind("few_valued", seed).to(place.device) for seed in range(number)]
        seeds, size = list(range(number)), scores[0].numel()
        selections = [Selection(scores, number * size // 3, seeds)]
        if scope == "local":
            selections = [Selection([matrix], size // 3, [seed]) for matrix, seed in zip(scores, seeds, strict=True)]
        keep_largest(selections)  # compiles the kernels
        with Waits() as counted:
            keep_largest(selections)
        return counted.count

    assert waits(5) == waits(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_torchs_default_type_changes_nothing(dtype: torch.dtype, place: Place) -> None:
    scores = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(place.device)
    try:
        torch.set_default_dtype(dtype)
        assert int(largest(scores, 345, tie_seed=0).sum()) == 345
        assert torch.equal(keep_above([scores], 0.1234567, [0], [0])[0], scores > 0.1234567)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_selection_with_a_hint_reports_its_threshold(place: Place) -> None:
    scores, hint = scores_of_kind("distinct", 0).to(place.device), ThresholdHint()
    for count in (100, 150, 391):
        largest(scores, count, tie_seed=0, hint=hint)
        expected = None if count == 391 else scores.flatten().sort(descending=True).values[count - 1]
        assert (hint.found is None) if expected is None else torch.equal(hint.found, expected)


@pytest.mark.parametrize("tied", [False, True])
def test_minimums_and_layouts_are_those_of_plain_torch(
    tied: bool, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(20, 15, generator=generator) + shift for shift in (0.0, -9.0, 9.0, -4.0)]
    matrices = [(matrix.round() if tied else matrix).to(place.device) for matrix in matrices]
    matrices[0] = matrices[0].t().contiguous().t()
    minimums, seeds = [7, 8, 9, 6], [1, 2, 3, 4]

    def masks() -> list[Tensor]:
        (chosen,) = keep_largest([Selection(matrices, 200, seeds, None, minimums)])
        return chosen

    found, above = masks(), keep_above(matrices, 8.0, minimums, seeds)
    monkeypatch.setattr(gpu_kernels, "kernels_for", lambda *tensors: None)
    assert all(torch.equal(one, other) for one, other in zip(found, masks(), strict=True))
    expected = keep_above(matrices, 8.0, minimums, seeds)
    assert all(torch.equal(one, other) for one, other in zip(above, expected, strict=True))
    assert all(mask.is_contiguous() for mask in (*found, *above))


@pytest.mark.parametrize("threshold", [-math.inf, -1e300, 0.0, 1.0, 1e300, math.inf])
def test_the_kernels_compare_strictly(threshold: float, place: Place, used: list[str]) -> None:
    for kind in FLOATS:
        scores = scores_of_kind(kind, 2).to(place.device)
        mask = keep_above([scores], threshold, [0], [0])[0]
        assert torch.equal(mask, scores > threshold)
    assert set(used) == {"mark_above"}
