"""How scores become a mask: so many of the largest, or all above a threshold.

Pure functions of tensors. A boolean mask keeps exactly as many weights as was asked for, however many scores tie (after
the first Adam step scores hold two values only, so ties are the normal case), and depends on nothing but the values,
their row-major order and a seed: not on memory layout, device or number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raypp.cpu import kernels as cpu_kernels

HINT_MEMORY = 0.8  # part of an error that the next step still reckons with
_MIXER = 0x45D9F3B  # odd, so the multiplication is a bijection modulo 2**32; below 2**31, so int64 never overflows
_LOW_32_BITS = 0xFFFFFFFF


def kept_count(density: float, total: int) -> int:
    """How many of `total` weights a density keeps: int(density * total), but at least 1 (and at most `total`).

    The product is rounded down after forgiving a relative error of 1e-12, since decimal densities are not exact in
    binary: 0.29 of 100 weights is 29, although 0.29 * 100 == 28.999999999999996.
    """
    return min(max(int(density * total * (1 + 1e-12)), 1), total)


def floor_count(density_floor: float, total: int) -> int:
    """How many of `total` weights a threshold method keeps at least: int(density_floor * total) + 1, as the original.

    The added one makes it at least the floor's part, and at least one weight where the floor is 0.
    """
    return min(int(density_floor * total * (1 + 1e-12)) + 1, total)


def tie_order(index: Tensor, seed: int) -> Tensor:
    """The fixed seeded order in which equal scores are kept, lowest first.

    A bijective 32-bit integer hash (two xor-shift-multiply rounds) of each flat index, so no two indices are equal.

    Args:
        index: row-major flat indices below 2**32, int64, any shape.
        seed: its lower 32 bits are used.

    Returns:
        int64 values in [0, 2**32), the same on every device.
    """
    mixed = index ^ (seed & _LOW_32_BITS)
    for _ in range(2):
        mixed ^= mixed >> 16
        mixed *= _MIXER
        mixed &= _LOW_32_BITS
    mixed ^= mixed >> 16
    return mixed


@dataclass
class ThresholdHint:
    """Where a selection's threshold is to be expected: it moves little and much as at the last step, so it is looked
    for there first. A hint changes the time that a selection takes, never its result.

    Of float32 scores on a CPU alone. On a GPU each selection looks at all scores anew; of a hint, `found` is all that
    is kept there."""

    value: float = math.nan
    """At the last step."""
    move: float = 0.0
    """From the step before."""
    reach: float = 0.0
    """How far from the expected value to look."""
    found: Tensor | None = None
    """The last selection's threshold, a scalar on the scores' device; None if it kept all or nothing."""

    @property
    def expected(self) -> float:
        return self.value + self.move

    def note(self, value: float) -> None:
        """Takes the exact threshold of this step into account."""
        if math.isfinite(self.value) and math.isfinite(value):
            # Three times the last error, or what is left of a larger one before it: a good guess may have been luck.
            self.reach = max(3 * abs(value - self.expected), self.reach * HINT_MEMORY)
            self.move = value - self.value
        else:
            self.reach = self.move = 0.0
        self.value = value


@dataclass(frozen=True)
class Selection:
    """Matrices of which the `count` largest scores are kept, all matrices together."""

    scores: Sequence[Tensor]
    """Any shapes and memory layouts, on one device, no NaN."""
    count: int
    """Weights to keep, 0 to the sum of the matrices' sizes."""
    tie_seeds: Sequence[int]
    """One per matrix; among equal scores the lowest (`tie_order`, place of the matrix) stay."""
    hint: ThresholdHint | None = None
    """Kept from step to step by whoever selects."""
    minimums: Sequence[int] = ()
    """One per matrix, of which no fewer are kept, together at most `count`; empty for none."""


def keep_largest(selections: Sequence[Selection]) -> list[list[Tensor]]:
    """The masks of the largest scores (Sanh et al. 2020, section 3: Top_v), selection by selection.

    A device is waited for once and not once per matrix, unless scores tie at a threshold or a matrix falls short of its
    minimum.

    Returns:
        Bool, contiguous, shaped as the scores; in each selection together exactly `count` True.
    """
    if not selections:
        return []
    flats = [[matrix.detach().reshape(-1) for matrix in selection.scores] for selection in selections]
    near = _cuts_near(selections, flats)
    cuts = [found or _cut(*whole) for whole, found in zip(zip(selections, flats, strict=True), near, strict=True)]
    counted = [number for cut in cuts for number in cut.kept]
    if any(isinstance(number, Tensor) for number in counted):  # all counts come to the host together
        device = cuts[0].flats[0].device
        counted = torch.stack([torch.as_tensor(number, device=device) for number in counted]).tolist()
    numbers = iter(counted)
    chosen = []
    for selection, cut in zip(selections, cuts, strict=True):
        kept = [int(next(numbers)) for _ in cut.masks]
        if (surplus := sum(kept) - selection.count) > 0:
            _drop_last_ties(cut, surplus, selection.tie_seeds)
            if selection.minimums:
                kept = [int(mask.count_nonzero()) for mask in cut.masks]
        short = {place for place, least in enumerate(selection.minimums) if kept[place] < least}
        chosen.append(_with_minimums(selection, short) if short else _shaped(cut.masks, selection))
    return chosen


def _shaped(masks: Sequence[Tensor], selection: Selection) -> list[Tensor]:
    return [mask.view(matrix.shape) for mask, matrix in zip(masks, selection.scores, strict=True)]


def _with_minimums(selection: Selection, short: set[int]) -> list[Tensor]:
    """Gives the matrices that would keep too few their minimum, and shares what is left among the others."""
    scores, seeds, minimums = selection.scores, selection.tie_seeds, selection.minimums
    others = [place for place in range(len(scores)) if place not in short]
    count = selection.count - sum(minimums[place] for place in short)
    alone = [Selection([scores[place]], minimums[place], [seeds[place]]) for place in sorted(short)]
    together = Selection(
        [scores[place] for place in others],
        count,
        [seeds[place] for place in others],
        selection.hint,
        [minimums[place] for place in others],
    )
    *fixed, shared = keep_largest([*alone, together])
    chosen = {place: mask for place, (mask,) in zip(sorted(short), fixed, strict=True)}
    chosen |= dict(zip(others, shared, strict=True))
    return [chosen[place] for place in range(len(scores))]


@dataclass(frozen=True)
class _Cut:
    """A selection that still keeps every score that ties at its threshold."""

    flats: list[Tensor]
    """The matrices, row-major."""
    masks: list[Tensor]
    """What is at or above the threshold."""
    threshold: Tensor
    """The k-th largest of all values, a scalar; without meaning where all or nothing is kept."""
    kept: Sequence[int | Tensor]
    """How many that are in each matrix, on the host or as int64 scalars on the device."""


def _cut(selection: Selection, flats: list[Tensor]) -> _Cut:
    """By looking at all values; those of several matrices (scope global) are copied into one for it, which takes as
    much memory as they do."""
    k = selection.count
    total = sum(flat.numel() for flat in flats)
    if not 0 <= k <= total:
        raise ValueError(f"cannot keep {k} of {total} weights")
    hint = selection.hint
    if k in (0, total):
        if hint is not None:
            hint.found = None
        masks = [torch.full_like(flat, k > 0, dtype=torch.bool) for flat in flats]
        return _Cut(flats, masks, flats[0][:1].sum(), [flat.numel() if k else 0 for flat in flats])
    threshold = kth_smallest(flats[0] if len(flats) == 1 else torch.cat(flats), total - k + 1)
    masks = [flat >= threshold for flat in flats]
    if hint is not None:
        hint.found = threshold.clone()  # of its own: it may be a view of all scores
        if all(_in_numpy(flat) for flat in flats):
            hint.note(float(threshold))
    return _Cut(flats, masks, threshold, [mask.count_nonzero().to(threshold.device) for mask in masks])


def _cuts_near(selections: Sequence[Selection], flats: Sequence[list[Tensor]]) -> list[_Cut | None]:
    """The same, from the few scores near each expected threshold alone; None where the threshold is not among them."""
    expecting = {
        place: selection.hint
        for place, selection in enumerate(selections)
        if selection.hint is not None
        and math.isfinite(selection.hint.expected)
        and all(_in_numpy(flat) for flat in flats[place])
        and 0 < selection.count < sum(flat.numel() for flat in flats[place])
    }
    cuts: list[_Cut | None] = [None] * len(selections)
    if not expecting:
        return cuts
    near = _select_near(
        [flats[place] for place in expecting],
        [selections[place].count for place in expecting],
        [(hint.expected - hint.reach, hint.expected + hint.reach) for hint in expecting.values()],
    )
    for (place, hint), found in zip(expecting.items(), near, strict=True):
        if found is not None:
            threshold, masks, kept = found
            hint.note(threshold)
            hint.found = torch.tensor(threshold, dtype=flats[place][0].dtype)
            cuts[place] = _Cut(flats[place], masks, hint.found, kept)
    return cuts


def _select_near(
    groups: Sequence[Sequence[Tensor]], counts: Sequence[int], ranges: Sequence[tuple[float, float]]
) -> Sequence[tuple[float, list[Tensor], list[int]] | None]:
    """`Kernels.select_near`; without kernels in numpy, which finds the places of a mask several times faster than
    torch."""
    if (kernels := cpu_kernels.kernels_for(*[flat for group in groups for flat in group])) is not None:
        return kernels.select_near(groups, counts, ranges)
    return [_select_in_numpy(*each) for each in zip(groups, counts, ranges, strict=True)]


def _select_in_numpy(
    group: Sequence[Tensor], count: int, limits: tuple[float, float]
) -> tuple[float, list[Tensor], list[int]] | None:
    low, high = limits
    numbers = [flat.numpy() for flat in group]
    masks = [scores > high for scores in numbers]
    places = [np.flatnonzero((scores >= low) ^ mask) for scores, mask in zip(numbers, masks, strict=True)]
    values = [scores[near] for scores, near in zip(numbers, places, strict=True)]
    candidates = np.concatenate(values)
    rank = len(candidates) - (count - sum(int(np.count_nonzero(mask)) for mask in masks))
    if not 0 <= rank < len(candidates):
        return None
    threshold = np.partition(candidates, rank)[rank]
    for mask, near, value in zip(masks, places, values, strict=True):
        mask[near[value >= threshold]] = True
    return threshold.item(), [torch.from_numpy(mask) for mask in masks], [int(np.count_nonzero(mask)) for mask in masks]


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest of `values` [n], k from 1 to n, as a scalar on their device.

    numpy's quickselect takes less than half the time of torch's on a CPU; both give an element, so the same. On a GPU
    torch.kthvalue searches a whole matrix with one block of threads, and refuses under deterministic algorithms;
    torch.topk uses many blocks. It gathers the values up to the one looked for, so from the nearer end.
    """
    if _in_numpy(values):
        return torch.from_numpy(np.partition(values.numpy(), k - 1)[k - 1 : k])[0]
    if k <= values.numel() // 2:
        return values.topk(k, largest=False, sorted=False).values.amax()
    return values.topk(values.numel() - k + 1, sorted=False).values.amin()


def _in_numpy(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.int64)


def _drop_last_ties(cut: _Cut, surplus: int, tie_seeds: Sequence[int]) -> None:
    """Clears the `surplus` last, in the tie order, of the entries that tie at the threshold."""
    tied = [(flat == cut.threshold).nonzero().squeeze(1) for flat in cut.flats]
    orders = [
        # Hashes differ within a matrix; the position in the list makes them differ between matrices too.
        tie_order(index, seed) * len(tied) + position
        for position, (index, seed) in enumerate(zip(tied, tie_seeds, strict=True))
    ]
    order = torch.cat(orders)
    last_kept = kth_smallest(order, order.numel() - surplus)
    for mask, index, order in zip(cut.masks, tied, orders, strict=True):
        mask[index[order > last_kept]] = False


def keep_above(
    scores: Sequence[Tensor], threshold: float, minimums: Sequence[int], seeds: Sequence[int]
) -> list[Tensor]:
    """The masks of the scores above a threshold (Sanh et al. 2020, section 4), but of no matrix fewer than a minimum.

    A device is waited for at most twice, unless scores tie.

    Args:
        scores: matrices of any shape and memory layout, on one device, no NaN.
        threshold: kept is what is strictly above; may be infinite.
        minimums: one per matrix; where fewer are above, exactly so many of the largest are kept (see `floor_count`).
        seeds: one per matrix; decides among equal scores then.

    Returns:
        Bool, contiguous, shaped as the scores.
    """
    matrices = [matrix.detach() for matrix in scores]
    if (kernels := cpu_kernels.kernels_for(*matrices)) is not None:
        marked = [kernels.mark_above(matrix, threshold) for matrix in matrices]
        masks, kept = [mask for mask, _ in marked], [above for _, above in marked]
    else:
        masks = [(matrix > threshold).contiguous() for matrix in matrices]
        kept = torch.stack([mask.count_nonzero() for mask in masks]).tolist()
    short = [place for place, minimum in enumerate(minimums) if kept[place] < minimum]
    filled = keep_largest([Selection([scores[place]], minimums[place], [seeds[place]]) for place in short])
    for place, (mask,) in zip(short, filled, strict=True):
        masks[place] = mask
    return masks
