"""Turns scores into boolean masks: a number of the largest scores, or all scores above a threshold.

These are pure functions of tensors. A mask keeps exactly the requested number of weights, however many scores are equal
(ties are normal: after the first Adam step, scores have only two values). It depends only on the values, their
row-major order and a seed, but not on memory layout, device or number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raypp.cpu import kernels as cpu_kernels
from raypp.gpu import kernels as gpu_kernels

HINT_MEMORY = 0.8  # part of an error that the next step still expects
_MIXER = 0x45D9F3B  # odd, so the multiplication is a bijection modulo 2**32; below 2**31, so int64 never overflows
_LOW_32_BITS = 0xFFFFFFFF

Integers = TypeVar("Integers", Tensor, npt.NDArray[np.int64])


def kept_count(density: float, total: int) -> int:
    """Number of weights that a density keeps: int(density * total), from 1 to `total`.

    A relative error of 1e-12 is forgiven before rounding down, because decimal densities are not exact in binary: 0.29
    of 100 weights is 29, although 0.29 * 100 == 28.999999999999996.
    """
    return min(max(int(density * total * (1 + 1e-12)), 1), total)


def floor_count(density_floor: float, total: int) -> int:
    """Minimum number of weights that a threshold method keeps: int(density_floor * total) + 1, as in the original.

    Because of the added 1, this is at least the floor's part, and at least one weight if the floor is 0.
    """
    return min(int(density_floor * total * (1 + 1e-12)) + 1, total)


def tie_order(index: Integers, seed: int | Integers) -> Integers:
    """The fixed, seeded order in which equal scores are kept, lowest first.

    It is a bijective 32-bit hash (two xor-shift-multiply rounds) of each flat index, so no two indices have the same.

    Args:
        index: row-major flat indices below 2**32, int64, any shape, of torch or numpy.
        seed: one for all indices or one for each; only its lower 32 bits are used.

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
    """The expected threshold of a selection, which is searched near there first.

    A threshold moves little, and much as at the previous step. A hint changes only the time that a selection takes,
    never its result. It is used for float32 scores on a CPU. On a GPU it would save one of four passes that are fast;
    each selection looks at all scores there, and sets only `found`.
    """

    value: float = math.nan
    """The threshold at the previous step."""
    move: float = 0.0
    """Its change from the step before that."""
    reach: float = 0.0
    """How far from the expected value to search."""
    found: Tensor | None = None
    """The previous selection's threshold, a scalar on the scores' device; None if it kept all weights or none."""

    @property
    def expected(self) -> float:
        return self.value + self.move

    def note(self, value: float) -> None:
        """Takes the exact threshold of this step into account."""
        if math.isfinite(self.value) and math.isfinite(value):
            # Three times the last error, or the rest of a larger earlier one, because a good guess may have been luck.
            self.reach = max(3 * abs(value - self.expected), self.reach * HINT_MEMORY)
            self.move = value - self.value
        else:
            self.reach = self.move = 0.0
        self.value = value


@dataclass(frozen=True)
class Selection:
    """Matrices, and the number of the largest scores to keep in all of them together."""

    scores: Sequence[Tensor]
    """Matrices of any shape and memory layout, on one device, without NaN."""
    count: int
    """Number of weights to keep, from 0 to the sum of the matrices' sizes."""
    tie_seeds: Sequence[int]
    """One per matrix. Among equal scores, those with the lowest (`tie_order`, index of the matrix) are kept."""
    hint: ThresholdHint | None = None
    """The caller passes the same hint at every step; None for none."""
    minimums: Sequence[int] = ()
    """Minimum number of weights to keep in each matrix; their sum is at most `count`. Empty for no minimums."""


def keep_largest(selections: Sequence[Selection]) -> list[list[Tensor]]:
    """Masks of the largest scores (Sanh et al. 2020, section 3: Top_v), for each selection.

    The host waits for the device once, and not once per matrix, unless scores tie at a threshold or a matrix would keep
    fewer than its minimum. For ties, it waits once more if the kernels for GPUs list all of them, and otherwise for
    each matrix.

    Returns:
        For each selection, a mask per matrix: bool, contiguous, shaped as the scores. The masks of a selection together
        have exactly `count` True.

    Raises:
        ValueError: a count is negative or more than the number of weights.
    """
    if not selections:
        return []
    flats = [[matrix.detach().reshape(-1) for matrix in selection.scores] for selection in selections]
    fast, listed = _cuts_on_gpu(selections, flats)
    fast |= _cuts_near(selections, flats)
    cuts = [fast.get(index) or _cut(selection, flats[index]) for index, selection in enumerate(selections)]
    on_device = [cut.kept for cut in cuts if isinstance(cut.kept, Tensor)]
    fetched = iter(torch.cat(on_device).tolist() if on_device else [])
    kept = [[next(fetched) for _ in cut.masks] if isinstance(cut.kept, Tensor) else list(cut.kept) for cut in cuts]
    surpluses = {
        index: surplus
        for index, selection in enumerate(selections)
        if (surplus := sum(kept[index]) - selection.count) > 0
    }
    if surpluses and (listed is None or not _drop_listed_ties(listed, surpluses, selections, kept)):
        for index, surplus in surpluses.items():
            cut, selection = cuts[index], selections[index]
            _drop_last_ties(cut, surplus, selection.tie_seeds)
            if selection.minimums:
                kept[index] = torch.stack([mask.count_nonzero() for mask in cut.masks]).tolist()
    chosen = []
    for selection, cut, numbers in zip(selections, cuts, kept, strict=True):
        short = {index for index, least in enumerate(selection.minimums) if numbers[index] < least}
        chosen.append(_with_minimums(selection, short) if short else _shaped(cut.masks, selection))
    return chosen


def _shaped(masks: Sequence[Tensor], selection: Selection) -> list[Tensor]:
    return [mask.view(matrix.shape) for mask, matrix in zip(masks, selection.scores, strict=True)]


def _with_minimums(selection: Selection, short: set[int]) -> list[Tensor]:
    """Gives matrices that would keep too few weights their minimum, and selects the rest from the other matrices."""
    scores, seeds, minimums = selection.scores, selection.tie_seeds, selection.minimums
    others = [index for index in range(len(scores)) if index not in short]
    count = selection.count - sum(minimums[index] for index in short)
    alone = [Selection([scores[index]], minimums[index], [seeds[index]]) for index in sorted(short)]
    together = Selection(
        [scores[index] for index in others],
        count,
        [seeds[index] for index in others],
        selection.hint,
        [minimums[index] for index in others],
    )
    *fixed, shared = keep_largest([*alone, together])
    chosen = {index: mask for index, (mask,) in zip(sorted(short), fixed, strict=True)}
    chosen |= dict(zip(others, shared, strict=True))
    return [chosen[index] for index in range(len(scores))]


@dataclass(frozen=True)
class _Cut:
    """A selection that still keeps all scores equal to its threshold."""

    flats: list[Tensor]
    """The matrices, flattened row-major."""
    masks: list[Tensor]
    """Whether each score is at or above the threshold."""
    threshold: Tensor
    """The k-th largest of all scores, a scalar; meaningless if all weights are kept, or none."""
    kept: Sequence[int] | Tensor
    """Number of scores in each mask, on the host, or int64 [masks] on the device."""


def _cut(selection: Selection, flats: list[Tensor]) -> _Cut:
    """Makes the cut by looking at all scores. Several matrices (scope global) are copied into one tensor for it, which
    takes as much memory as they do."""
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
        hint.found = threshold.clone()  # because the threshold may be a view of all scores
        if all(_in_numpy(flat) for flat in flats):
            hint.note(float(threshold))
    return _Cut(flats, masks, threshold, torch.stack([mask.count_nonzero() for mask in masks]))


@dataclass(frozen=True)
class _ListedTies:
    """The scores that equal their thresholds, of all cuts that the kernels for GPUs made together."""

    kernels: ModuleType
    entries: Tensor
    """See `triton_kernels.select_largest`."""
    masks: list[Tensor]
    """Those of all the cuts."""
    begins: Mapping[int, int]
    """Where in `masks` each cut's masks begin, by the index of its selection."""


def _cuts_on_gpu(
    selections: Sequence[Selection], flats: Sequence[list[Tensor]]
) -> tuple[dict[int, _Cut], _ListedTies | None]:
    """Makes all cuts together with the kernels for GPUs, where these can be used; by the index of the selection."""
    chosen = [index for index, selection in enumerate(selections) if _keeps_some(selection, flats[index])]
    everything = [flat for index in chosen for flat in flats[index]]
    if not chosen or (kernels := gpu_kernels.float32_kernels_for(*everything)) is None:
        return {}, None
    counts = [selections[index].count for index in chosen]
    thresholds, masks, kept, tied = kernels.select_largest([flats[index] for index in chosen], counts)
    cuts, begins, begin = {}, {}, 0
    for index, threshold in zip(chosen, thresholds.unbind(), strict=True):
        end = begin + len(flats[index])
        cuts[index], begins[index] = _Cut(flats[index], masks[begin:end], threshold, kept[begin:end]), begin
        if (hint := selections[index].hint) is not None:
            hint.found = threshold
        begin = end
    return cuts, _ListedTies(kernels, tied, masks, begins)


def _keeps_some(selection: Selection, flats: Sequence[Tensor]) -> bool:
    """Whether a selection keeps neither no weight nor all of them, so that it has a threshold."""
    return 0 < selection.count < sum(flat.numel() for flat in flats)


def _cuts_near(selections: Sequence[Selection], flats: Sequence[list[Tensor]]) -> dict[int, _Cut]:
    """Makes cuts by looking only at scores near the expected thresholds, by the index of the selection. A selection
    whose threshold is not there has none."""
    expecting = {
        index: selection.hint
        for index, selection in enumerate(selections)
        if selection.hint is not None
        and math.isfinite(selection.hint.expected)
        and all(_in_numpy(flat) for flat in flats[index])
        and _keeps_some(selection, flats[index])
    }
    if not expecting:
        return {}
    near = _select_near(
        [flats[index] for index in expecting],
        [selections[index].count for index in expecting],
        [(hint.expected - hint.reach, hint.expected + hint.reach) for hint in expecting.values()],
    )
    cuts = {}
    for (index, hint), found in zip(expecting.items(), near, strict=True):
        if found is not None:
            threshold, masks, kept = found
            hint.note(threshold)
            hint.found = torch.tensor(threshold, dtype=flats[index][0].dtype)
            cuts[index] = _Cut(flats[index], masks, hint.found, kept)
    return cuts


def _select_near(
    groups: Sequence[Sequence[Tensor]], counts: Sequence[int], ranges: Sequence[tuple[float, float]]
) -> Sequence[tuple[float, list[Tensor], list[int]] | None]:
    """`Kernels.select_near` or, without kernels, the same in numpy, which finds a mask's indices several times as fast
    as torch."""
    if (kernels := cpu_kernels.kernels_for(*[flat for group in groups for flat in group])) is not None:
        return kernels.select_near(groups, counts, ranges)
    return [_select_in_numpy(*each) for each in zip(groups, counts, ranges, strict=True)]


def _select_in_numpy(
    group: Sequence[Tensor], count: int, limits: tuple[float, float]
) -> tuple[float, list[Tensor], list[int]] | None:
    low, high = limits
    numbers = [flat.numpy() for flat in group]
    masks = [scores > high for scores in numbers]
    indices = [np.flatnonzero((scores >= low) ^ mask) for scores, mask in zip(numbers, masks, strict=True)]
    values = [scores[near] for scores, near in zip(numbers, indices, strict=True)]
    candidates = np.concatenate(values)
    rank = len(candidates) - (count - sum(int(np.count_nonzero(mask)) for mask in masks))
    if not 0 <= rank < len(candidates):
        return None
    threshold = np.partition(candidates, rank)[rank]
    for mask, near, value in zip(masks, indices, values, strict=True):
        mask[near[value >= threshold]] = True
    return threshold.item(), [torch.from_numpy(mask) for mask in masks], [int(np.count_nonzero(mask)) for mask in masks]


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest of `values` [n], k from 1 to n, as a scalar on their device.

    On a CPU, numpy's quickselect takes less than half the time of torch's and gives the same element. On a GPU,
    torch.kthvalue searches a whole matrix with one block of threads and raises an error under deterministic algorithms,
    but torch.topk uses many blocks. It gathers all values up to the k-th, so it starts from the nearer end.
    """
    if _in_numpy(values):
        return torch.from_numpy(np.partition(values.numpy(), k - 1)[k - 1 : k])[0]
    if k <= values.numel() // 2:
        return values.topk(k, largest=False, sorted=False).values.amax()
    return values.topk(values.numel() - k + 1, sorted=False).values.amin()


def _in_numpy(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.int64)


def _drop_last_ties(cut: _Cut, surplus: int, tie_seeds: Sequence[int]) -> None:
    """Removes the last `surplus` entries, in the tie order, of those equal to the threshold."""
    tied = [(flat == cut.threshold).nonzero().squeeze(1) for flat in cut.flats]
    orders = [
        # Hashes differ within a matrix; the matrix's index makes them differ between matrices, too.
        tie_order(index, seed) * len(tied) + position
        for position, (index, seed) in enumerate(zip(tied, tie_seeds, strict=True))
    ]
    order = torch.cat(orders)
    last_kept = kth_smallest(order, order.numel() - surplus)
    for mask, index, order in zip(cut.masks, tied, orders, strict=True):
        mask[index[order > last_kept]] = False


def _drop_listed_ties(
    listed: _ListedTies, surpluses: Mapping[int, int], selections: Sequence[Selection], kept: Sequence[list[int]]
) -> bool:
    """Does as `_drop_last_ties` for all selections with a surplus together, and corrects the numbers of entries that
    are `kept`. The host waits for the device once.

    Returns:
        False, with nothing done, if there are too many ties for the list.
    """
    total, entries = np.split(listed.entries.numpy(force=True), [1])
    if total[0] > len(entries):
        return False
    numbers, indices = np.divmod(entries[: total[0]], 2**32)
    dropped: list[tuple[int, int]] = []
    for selection, surplus in surpluses.items():
        seeds = np.array([seed & _LOW_32_BITS for seed in selections[selection].tie_seeds], dtype=np.int64)
        begin = listed.begins[selection]
        is_tied = (numbers >= begin) & (numbers < begin + len(seeds))
        position, index = numbers[is_tied] - begin, indices[is_tied]
        last = np.argsort(tie_order(index, seeds[position]) * len(seeds) + position)[-surplus:]
        for place, entry in zip(position[last].tolist(), index[last].tolist(), strict=True):
            kept[selection][place] -= 1
            dropped.append((begin + place, entry))
    listed.kernels.clear(listed.masks, dropped)
    return True


def keep_above(
    scores: Sequence[Tensor], threshold: float, minimums: Sequence[int], seeds: Sequence[int]
) -> list[Tensor]:
    """Masks of the scores above a threshold (Sanh et al. 2020, section 4), with a minimum number per matrix.

    The host waits for the device at most twice, unless scores tie.

    Args:
        scores: matrices of any shape and memory layout, on one device, no NaN.
        threshold: scores strictly above it are kept; may be infinite.
        minimums: one per matrix (see `floor_count`). If fewer scores are above the threshold, exactly this number of
            the largest is kept.
        seeds: one per matrix; they decide among equal scores in that case.

    Returns:
        A mask per matrix: bool, contiguous, shaped as the scores.
    """
    matrices = [matrix.detach() for matrix in scores]
    if (kernels := cpu_kernels.kernels_for(*matrices)) is not None:
        marked = [kernels.mark_above(matrix, threshold) for matrix in matrices]
        masks, kept = [mask for mask, _ in marked], [above for _, above in marked]
    elif (on_gpu := gpu_kernels.float32_kernels_for(*matrices)) is not None:
        masks, above = on_gpu.mark_above([matrix.reshape(-1) for matrix in matrices], threshold)
        masks = [mask.view(matrix.shape) for mask, matrix in zip(masks, matrices, strict=True)]
        kept = above.tolist()
    else:
        masks = [(matrix > threshold).contiguous() for matrix in matrices]
        kept = torch.stack([mask.count_nonzero() for mask in masks]).tolist()
    short = [index for index, minimum in enumerate(minimums) if kept[index] < minimum]
    filled = keep_largest([Selection([scores[index]], minimums[index], [seeds[index]]) for index in short])
    for index, (mask,) in zip(short, filled, strict=True):
        masks[index] = mask
    return masks
