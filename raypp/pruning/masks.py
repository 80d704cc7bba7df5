"""How scores become a mask: so many of the largest, all above a threshold, or hard concrete gates.

Pure functions of tensors. A boolean mask keeps exactly as many weights as was asked for, however many scores tie (after
the first Adam step scores hold two values only, so ties are the normal case), and depends on nothing but the values,
their row-major order and a seed: not on memory layout, device or number of threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Hard concrete distribution (Louizos et al. 2018, section 2.2): the stretch interval and the temperature.
GATE_LOW, GATE_HIGH, GATE_TEMPERATURE = -0.1, 1.1, 2 / 3
NOISE_MARGIN = 1e-4  # keeps log(u) and log(1 - u) finite, as in the original

_MIXER = 0x45D9F3B  # odd, so the multiplication is a bijection modulo 2**32; below 2**31, so int64 never overflows
_LOW_32_BITS = 0xFFFFFFFF


def named_seed(seed: int, name: str) -> int:
    """A 63-bit seed for one matrix: depends on `seed` and the matrix's name, not on the order of matrices."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


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


def keep_largest(scores: Tensor, count: int, tie_seed: int) -> Tensor:
    """The mask of the `count` largest scores (Sanh et al. 2020, section 3: Top_v).

    Args:
        scores: any shape and memory layout, no NaN.
        count: weights to keep, 0 to scores.numel().
        tie_seed: decides among equal scores (`tie_order`).

    Returns:
        bool, contiguous, shaped as `scores`, exactly `count` True.
    """
    return keep_largest_global([scores], count, [tie_seed])[0]


def keep_largest_global(scores: Sequence[Tensor], count: int, tie_seeds: Sequence[int]) -> list[Tensor]:
    """The masks of the `count` largest scores of several matrices together.

    Args:
        scores: matrices of any shapes, on one device, no NaN.
        count: weights to keep over all of them, 0 to the sum of their sizes.
        tie_seeds: one per matrix; among equal scores the lowest (tie_order, position in the list) stay.

    Returns:
        bool masks shaped as `scores`, together exactly `count` True.
    """
    flats = [matrix.detach().reshape(-1) for matrix in scores]
    total = sum(flat.numel() for flat in flats)
    if not 0 <= count <= total:
        raise ValueError(f"cannot keep {count} of {total} weights")
    if count in (0, total):
        return [torch.full(matrix.shape, count > 0, dtype=torch.bool, device=matrix.device) for matrix in scores]
    together = flats[0] if len(flats) == 1 else torch.cat(flats)
    smallest_kept = kth_smallest(together, total - count + 1)
    del together
    masks = [flat >= smallest_kept for flat in flats]
    surplus = int(torch.stack([mask.sum() for mask in masks]).sum()) - count
    if surplus:
        _drop_last_ties(flats, masks, smallest_kept, surplus, tie_seeds)
    return [mask.view(matrix.shape) for mask, matrix in zip(masks, scores, strict=True)]


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest of `values` [n], k from 1 to n, as a scalar on their device. A selection, not a sort.

    numpy's vectorised quickselect takes less than half the time of torch's on a CPU; both give an element, so the same.
    """
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.int64):
        return torch.from_numpy(np.partition(values.numpy(), k - 1)[k - 1 : k])[0]
    return values.kthvalue(k).values


def _drop_last_ties(
    flats: Sequence[Tensor], masks: Sequence[Tensor], tied_value: Tensor, surplus: int, tie_seeds: Sequence[int]
) -> None:
    """Clears the `surplus` last, in the tie order, of the entries equal to `tied_value`."""
    tied = [(flat == tied_value).nonzero().squeeze(1) for flat in flats]
    orders = [
        # Hashes differ within a matrix; the position in the list makes them differ between matrices too.
        tie_order(index, seed) * len(flats) + position
        for position, (index, seed) in enumerate(zip(tied, tie_seeds, strict=True))
    ]
    order = torch.cat(orders)
    last_kept = kth_smallest(order, order.numel() - surplus)
    for mask, index, order in zip(masks, tied, orders, strict=True):
        mask[index[order > last_kept]] = False


def above_threshold(values: Tensor, threshold: float, minimum_count: int, tie_seed: int) -> Tensor:
    """The mask of the values above a threshold (Sanh et al. 2020, section 4), but never fewer than a minimum.

    Args:
        values: scores, or their sigmoid; any shape and memory layout, no NaN.
        threshold: kept is what is strictly above.
        minimum_count: where fewer are above, exactly so many of the largest are kept (see `floor_count`).
        tie_seed: decides among equal values then.

    Returns:
        bool, contiguous, shaped as `values`.
    """
    mask = (values.detach() > threshold).contiguous()
    if int(mask.sum()) < minimum_count:
        return keep_largest(values, minimum_count, tie_seed)
    return mask


def hard_concrete(log_alpha: Tensor, noise: Tensor | None) -> Tensor:
    """L0 regularization's gate (Louizos et al. 2018, equations 10 to 13), differentiable in `log_alpha`.

    Args:
        log_alpha: the scores, any shape.
        noise: uniform in [0, 1], shaped as the scores, to sample a gate; None for the deterministic one.

    Returns:
        Gates in [0, 1], float, shaped as the scores.
    """
    if noise is None:
        gate = torch.sigmoid(log_alpha)
    else:
        uniform = noise.clamp(NOISE_MARGIN, 1 - NOISE_MARGIN)
        gate = torch.sigmoid((uniform.log() - (1 - uniform).log() + log_alpha) / GATE_TEMPERATURE)
    return (gate * (GATE_HIGH - GATE_LOW) + GATE_LOW).clamp(0.0, 1.0)
