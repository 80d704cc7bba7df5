"""What masks are compared with: full sorts, of scores with every kind of tie."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raypp.pruning.masks import Selection, ThresholdHint, keep_largest


def largest(scores: Tensor, count: int, tie_seed: int, hint: ThresholdHint | None = None) -> Tensor:
    """The mask of one matrix by itself."""
    return keep_largest([Selection([scores], count, [tie_seed], hint)])[0][0]


def largest_together(
    scores: list[Tensor], count: int, seeds: list[int], hint: ThresholdHint | None = None
) -> list[Tensor]:
    """The masks of several matrices together."""
    return keep_largest([Selection(scores, count, seeds, hint)])[0]


def reference_order(index: int, seed: int) -> int:
    """The same hash in Python's unbounded integers, reduced modulo 2**32."""
    x = (index ^ seed) % 2**32
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) % 2**32
    return x ^ (x >> 16)


def reference_masks(scores: list[Tensor], count: int, seeds: list[int]) -> list[list[bool]]:
    """Sorts everything: highest score first, then lowest hash, then first matrix."""
    entries = [
        (-score, reference_order(index, seed % 2**32), matrix, index)
        for matrix, (values, seed) in enumerate(zip(scores, seeds, strict=True))
        for index, score in enumerate(values.flatten().tolist())
    ]
    kept = {(matrix, index) for *_, matrix, index in sorted(entries)[:count]}
    return [[(m, i) in kept for i in range(values.numel())] for m, values in enumerate(scores)]


def scores_of_kind(kind: str, seed: int, shape: tuple[int, int] = (23, 17)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator)
    return {
        "distinct": normal,
        "constant": torch.zeros(shape),
        "two_valued": torch.where(normal > 0.3, 0.01, -0.01),
        "few_valued": (normal * 2).round(),
        "signed_zeros": torch.where(normal > 0, 0.0, -0.0),
        "infinite": torch.where(normal > 0.5, math.inf, torch.where(normal < -0.5, -math.inf, normal)),
        "halves": normal.bfloat16(),
        "integers": (normal * 3).long(),
    }[kind]


KINDS = ["distinct", "constant", "two_valued", "few_valued", "signed_zeros", "infinite", "halves", "integers"]
